"""Kinds of files: the same rows in each, and what is wrong with one is said."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import LoadedPrompts, load_prompts
from megatron_gad.data.rows import is_held_out, read_file_rows
from tests.tiny_tokenizer import make_tokenizer
from tests.unit.data.test_template import CALL

COLUMNS = ("content", "teacher_response")
ROWS: list[dict[str, Any]] = [
    {"content": [{"role": "user", "content": f"東京 {n}?"}], "teacher_response": f"yes, {n}"}
    for n in range(130)
]
MARK = b"\xef\xbb\xbf"


def lines(end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(row).encode() + end for row in ROWS)


def compressed(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def arrow(opened: Any, path: Path) -> bytes:
    table = pyarrow.Table.from_pylist([row | {"id": 1} for row in ROWS])
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines()),
        ("a.json", lines()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        *((name, MARK + lines(b"\r\n")) for name in ("a.jsonl", "a.json")),
        ("a.json", MARK + b"\r\n" + json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode()),
        ("a.jsonl.gz", gzip.compress(lines())),
        ("a.json.gz", gzip.compress(MARK + json.dumps(ROWS).encode())),
        ("a.jsonl.zst", compressed(MARK + lines(b"\r\n"))),
        ("A.JSON.ZST", compressed(json.dumps(ROWS).encode())),
    ],
)
def test_json_of_every_kind_has_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    rows = list(read_file_rows(str(path), COLUMNS))
    assert [row.values for row in rows] == ROWS
    assert rows[129].place == f"{path} row 130"
    assert {row.problem for row in rows} == {""}


@pytest.mark.parametrize("opened", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_arrow_files_of_both_kinds_have_the_same_rows(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "a.arrow"
    arrow(opened, path)
    rows = list(read_file_rows(str(path), COLUMNS))
    assert [row.values for row in rows] == ROWS
    assert rows[129].place == f"{path} row 130"
    assert list(rows[0].columns) == [*COLUMNS, "id"]  # of which one is not read
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a\.arrow is not a sound Arrow file after row \d+ \("):
        list(read_file_rows(str(path), COLUMNS))


def test_keys_that_a_columnar_file_adds_to_make_rows_alike_are_none(tmp_path: Path) -> None:
    rows = [
        {"content": [{"role": "user", "content": "a"}]},
        {"content": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read_file_rows(str(tmp_path / "a.parquet"), COLUMNS)
    assert first.values == rows[0]
    assert second.values == {"content": [{"role": "assistant", "tool_calls": [CALL]}]}


def test_a_broken_file_is_named_with_how_far_it_went(tmp_path: Path) -> None:
    def message_of(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as caught:
            list(read_file_rows(str(tmp_path / name), COLUMNS))
        return str(caught.value)

    for name, data in (
        ("a.jsonl.gz", gzip.compress(lines())),
        ("b.jsonl.zst", compressed(lines())),
    ):
        assert f"{name} cannot be read after row " in message_of(name, data[:-20])
        assert f"{name} cannot be read after row 0 (" in message_of(name, b"no archive at all")
    assert "a.json is not a JSON list (" in message_of("a.json", json.dumps(ROWS)[:-9].encode())
    assert "b.json is not UTF-8 (byte 0xe9 at 2)" in message_of("b.json", b'["\xe9"]')
    (tmp_path / "c.json").write_text('[{"content": "a"}, 5]')
    _, bad = read_file_rows(str(tmp_path / "c.json"), COLUMNS)
    assert (bad.place, bad.problem) == (
        f"{tmp_path / 'c.json'} row 2",
        "is a JSON int; every entry of the list has to be one JSON object",
    )


def test_names_of_data_for_testing() -> None:
    for name in ("test.jsonl", "test-00000-of-00001.parquet", "my_eval.json", "VAL.jsonl.gz"):
        assert is_held_out(name), name
    for name in (
        "train.jsonl",
        "latest.jsonl",
        "contest.parquet",
        "evaluations.json",
        "tests2.json",
    ):
        assert not is_held_out(name), name


def test_a_folders_files_for_testing_are_never_trained_on(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    codec = ChatCodec.from_folder(tmp_path / "tokenizer", 99, 99)
    folder = tmp_path / "data"
    folder.mkdir()

    def texts(held_out: bool) -> list[str]:
        loaded = load_prompts(DataConfig(), codec, str(folder), held_out)
        notes.append(loaded.notes[0])
        return [prompt.teacher_text for prompt in loaded.prompts]

    def write(name: str) -> None:
        (folder / name).write_text(json.dumps({"content": "a", "teacher_response": name}) + "\n")

    notes: list[str] = []
    write("part.jsonl")
    assert texts(held_out=True) == ["part.jsonl"]
    for name in ("test-0.jsonl", "train-0.json", "validation.jsonl", "state.json", ".part.jsonl"):
        write(name)
    assert texts(held_out=False) == ["part.jsonl", "train-0.json"]
    assert notes[-1].endswith("; files left out: test-0.jsonl, validation.jsonl")
    assert texts(held_out=True) == ["test-0.jsonl", "validation.jsonl"]
    assert notes[-1].endswith("; files left out: part.jsonl, train-0.json")
    for name in ("part.jsonl", "train-0.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"data that is held out \(test-0.jsonl, validation.json"):
        texts(held_out=False)
    file = str(folder / "test-0.jsonl")
    (warning,) = load_prompts(DataConfig(), codec, file).warnings
    assert warning.startswith(f"data.path = {file!r} is named like data for testing, and is trai")
    assert load_prompts(DataConfig(), codec, file, held_out=True).warnings == ()


def test_rows_of_a_file_come_as_often_in_an_epoch_as_its_weight_says(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    codec = ChatCodec.from_folder(tmp_path / "tokenizer", 99, 99)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("a", 1), ("b", 2), ("eval", 1)):
        rows = [{"content": "x", "teacher_response": f"{name}{n}"} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def load(weights: dict[str, int], held_out: bool = False) -> LoadedPrompts:
        return load_prompts(DataConfig(weights=weights), codec, str(folder), held_out)

    loaded = load({"b.jsonl": 3})
    texts = ["a0", "b0", "b1", "b0", "b1", "b0", "b1"]
    assert [each.teacher_text for each in loaded.prompts] == texts
    # Each is a row of its own, with its own rollouts.
    assert [each.index for each in loaded.prompts] == list(range(7))
    assert loaded.counts["num_rows"] == 7
    assert "b.jsonl 3 times" in loaded.notes[0]
    held_out = load({"b.jsonl": 3, "a.jsonl": 2}, held_out=True)
    assert [each.teacher_text for each in held_out.prompts] == ["eval0"]
    for weights, message in (
        ({"c.jsonl": 2}, "data.weights has 'c.jsonl', which is no file of data.path = "),
        ({"eval.jsonl": 2}, "it has a.jsonl, b.jsonl$"),
        ({"a.jsonl": 0}, "data.weights.a.jsonl = 0 has to be 1 or more; take the file out of "),
    ):
        with pytest.raises(ValueError, match=message):
            load(weights)
    (folder / "b.jsonl").write_text(json.dumps(rows[0]) + "\n5\n7\n")
    with pytest.raises(ValueError) as refused:
        load({"a.jsonl": 2, "b.jsonl": 3})
    assert "data: 2 rows cannot be read; correct or remove them" in str(refused.value)
