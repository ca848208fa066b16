"""Prompts that were tokenised before: the same as fresh ones, until anything changes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.config.data import DataConfig
from megatron_gad.data.cache import MIN_BYTES, fill_cache, find_cache, read_cache
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.codecs import Codecs
from megatron_gad.data.dataset import load_prompts
from megatron_gad.data.stored import StoredPrompts, write_prompts
from tests.tiny_tokenizer import make_tokenizer
from tests.unit.data.test_template import ASKED, CALLED, RESULT, THINKING, TOOL

LONG = "turn right, turn left, "


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = make_tokenizer(folder)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(str(folder))
    return folder


def write_rows(path: Path, rows: list[dict[str, object]], num_bytes: int = 0) -> None:
    """Write rows, padded by a column that is not read to at least a number of bytes."""
    padding = "x" * (num_bytes // len(rows))
    path.write_text("".join(json.dumps(row | {"id": padding}) + "\n" for row in rows))


def test_stored_prompts_are_those_that_were_written(tmp_path: Path, hf_folder: Path) -> None:
    config = DataConfig(max_prompt_tokens=300, max_response_tokens=30, reward_columns=("id",))
    codec = ChatCodec.from_config(hf_folder, config)
    rows: list[dict[str, object]] = [
        {"content": [ASKED, CALLED, RESULT], "teacher_response": "東京 🙂\u2028", "tools": [TOOL]},
        {"content": "", "teacher_response": "dropped"},
        {"content": "long", "teacher_response": LONG * 30},
        *({"content": f"q {n}", "teacher_response": f"a {n}"} for n in range(1200)),
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    prompts = load_prompts(config, codec, str(tmp_path / "a.jsonl")).prompts
    write_prompts(tmp_path / "a.arrow", prompts)
    stored = StoredPrompts(tmp_path / "a.arrow")
    assert len(stored) == len(prompts) == 1202
    assert tuple(stored) == prompts
    assert (stored[1].index, stored[1].teacher_truncated) == (2, True)
    assert (stored[-1], stored[5:1000:7]) == (prompts[-1], prompts[5:1000:7])
    assert all(type(number) is int for number in (*stored[0].ids, *stored[0].teacher_ids))
    with pytest.raises(IndexError):
        stored[1202]


def test_what_was_tokenised_is_taken_until_anything_changes(
    tmp_path: Path, hf_folder: Path
) -> None:
    data, folder = tmp_path / "a.jsonl", tmp_path / "prompts"
    config = DataConfig(str(data), max_prompt_tokens=300, max_response_tokens=30)

    def fill(config: DataConfig = config) -> Path:
        codecs = Codecs(ChatCodec.from_config(hf_folder, config), str(hf_folder))
        found = find_cache(folder, config, codecs, held_out=False)
        file = fill_cache(folder, config, codecs, held_out=False)
        assert found in (None, file) and find_cache(folder, config, codecs, held_out=False) == file
        assert file is not None
        assert sorted(folder.iterdir()) == [file, file.with_suffix(".json")]  # and no older one
        return file

    texts = ("turn right", LONG * 9 + "stop")
    rows: list[dict[str, object]] = [{"content": "a", "teacher_response": x} for x in texts]
    write_rows(data, rows, MIN_BYTES)
    first = fill()
    fresh = load_prompts(config, ChatCodec.from_config(hf_folder, config), str(data))
    taken = read_cache(first)
    assert (*taken.prompts,) == fresh.prompts
    assert replace(taken, prompts=fresh.prompts) == fresh
    assert fresh.counts["num_teacher_truncated"] == 1
    assert len(fresh.warnings) == 2  # of the cut one, and of reasoning that is not switched off

    # Nothing is read again: the rows are gone, and only size and time are as they were.
    stamp, size = data.stat(), data.stat().st_size
    data.write_bytes(b" " * size)
    os.utime(data, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert fill() == first
    # Neither does what the prompts do not depend on make a difference.
    assert fill(replace(config, shuffle=False, eval_path="b.jsonl")) == first

    write_rows(data, rows[:1], MIN_BYTES)
    os.utime(data, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    second = fill()
    assert len(read_cache(second).prompts) == 1
    third = fill(replace(config, max_response_tokens=3))
    assert read_cache(third).prompts[0].teacher_truncated
    assert len({first, second, third}) == 3
    fill()
    tokenizer_file = hf_folder / "tokenizer.json"
    os.utime(tokenizer_file, ns=(0, 0))
    assert fill() not in (first, second, third)


def test_data_that_cannot_be_read_leaves_nothing_to_be_taken(
    tmp_path: Path, hf_folder: Path
) -> None:
    data, folder = tmp_path / "a.jsonl", tmp_path / "prompts"
    config = DataConfig(str(data))
    codecs = Codecs(ChatCodec.from_config(hf_folder, config), str(hf_folder))
    good: dict[str, object] = {"content": "a", "teacher_response": "b"}
    for bad in ([good, {"content": 5, "teacher_response": "b"}], [good | {"content": ""}]):
        write_rows(data, bad, MIN_BYTES)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"1 row cannot be read|has no usable row"):
                fill_cache(folder, config, codecs, held_out=False)
            assert find_cache(folder, config, codecs, held_out=False) is None
    assert list(folder.glob("*.json")) == []


def test_little_data_is_not_kept(tmp_path: Path, hf_folder: Path) -> None:
    data = tmp_path / "a.jsonl"
    write_rows(data, [{"content": "a", "teacher_response": "b"}])
    config = DataConfig(str(data))
    codecs = Codecs(ChatCodec.from_config(hf_folder, config), str(hf_folder))
    assert fill_cache(tmp_path / "p", config, codecs, held_out=False) is None
    assert not (tmp_path / "p").exists()


def test_data_of_the_hub_stays_what_a_run_began_with(
    tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "set"
    data.mkdir()
    write_rows(data / "train.jsonl", [{"content": "a", "teacher_response": "b"}])
    config = DataConfig(f"hub:{data}")
    codecs = Codecs(ChatCodec.from_config(hf_folder, config), str(hf_folder))
    file = fill_cache(tmp_path / "p", config, codecs, held_out=False)
    assert file is not None
    kept = read_cache(file).prompts
    assert [prompt.teacher_text for prompt in kept] == ["b"]
    (data / "train.jsonl").unlink()
    assert fill_cache(tmp_path / "p", config, codecs, held_out=False) == file


def test_what_the_discriminator_reads_is_kept_with_the_rest(
    tmp_path: Path, hf_folder: Path
) -> None:
    data, other = tmp_path / "a.jsonl", tmp_path / "other"
    write_rows(data, [{"content": "a", "teacher_response": "b"}], MIN_BYTES)
    make_tokenizer(other, "llama3")
    config = DataConfig(str(data))
    codec, scorer = (ChatCodec.from_config(each, config) for each in (hf_folder, other))
    alone = Codecs(codec, str(hf_folder))
    both = Codecs(codec, str(hf_folder), scorer, str(other))
    first, second = (
        fill_cache(tmp_path / "p", config, codecs, held_out=False) for codecs in (alone, both)
    )
    assert first is not None and second is not None and first != second
    (prompt,) = read_cache(second).prompts
    messages = ({"role": "user", "content": "a"},)
    assert (prompt.ids, prompt.scorer_ids) == (
        codec.encode_prompt(messages),
        scorer.encode_prompt(messages),
    )
    os.utime(other / "tokenizer.json", ns=(0, 0))
    assert fill_cache(tmp_path / "p", config, both, held_out=False) != second
