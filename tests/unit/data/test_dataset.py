"""Data sets become prompts; what is dropped is counted, and what is wrong is named."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_gad.config.data import DataConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import CHUNK_ROWS, load_prompts
from megatron_gad.data.reading import COUNTS
from tests.tiny_tokenizer import make_tokenizer

CONFIG = DataConfig()


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ChatCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, "qwen")
    return ChatCodec.from_folder(folder, max_prompt_tokens=64, max_response_tokens=32)


def row(content: Any = "hello", teacher_response: Any = "hello, you") -> dict[str, Any]:
    return {"content": content, "teacher_response": teacher_response}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def error_of(codec: ChatCodec, path: str | Path, config: DataConfig = CONFIG) -> str:
    with pytest.raises(ValueError) as caught:
        load_prompts(config, codec, str(path))
    return str(caught.value)


def test_rows_become_prompts_with_the_codecs_ids(tmp_path: Path, codec: ChatCodec) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *user("東京?")]
    path = write_jsonl(tmp_path / "a.jsonl", [row(messages, " yes \n"), row("hi", "x" * 99)])
    loaded = load_prompts(CONFIG, codec, path)
    first, second = loaded.prompts
    assert first.index == 0
    assert first.messages == tuple(messages)
    assert first.teacher_text == " yes \n"
    assert first.ids == codec.encode_prompt(first.messages)
    assert (first.teacher_ids, first.teacher_truncated) == codec.encode_response(" yes \n")
    assert second.messages == tuple(user("hi"))
    assert len(second.teacher_ids) == 32
    assert second.teacher_truncated
    assert codec.end_id not in second.teacher_ids
    assert loaded.counts == dict.fromkeys(COUNTS, 0) | {
        "num_rows": 2,
        "num_prompts": 2,
        "num_teacher_truncated": 1,
    }


def test_jsonl_parquet_folder_and_hub_give_the_same_prompts(
    tmp_path: Path, codec: ChatCodec
) -> None:
    rows = [row(user(f"question {number}"), f"answer {number}") for number in range(150)]
    expected = load_prompts(CONFIG, codec, write_jsonl(tmp_path / "a.jsonl", rows))
    assert [prompt.index for prompt in expected.prompts] == list(range(150))
    assert expected.prompts[149].messages == tuple(user("question 149"))

    assert load_prompts(CONFIG, codec, write_parquet(tmp_path / "a.parquet", rows)) == expected

    folder = tmp_path / "folder"
    folder.mkdir()
    write_parquet(folder / "part-1.parquet", rows[:70])
    write_jsonl(folder / "part-2.jsonl", rows[70:])
    (folder / "README.md").write_text("not data")
    (folder / ".part-0.jsonl").write_text("not data")
    assert load_prompts(CONFIG, codec, str(folder)) == expected


def test_hub_data_sets_load_through_datasets(
    tmp_path: Path, codec: ChatCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"  # datasets takes a local folder where a name is expected
    (folder / "data").mkdir(parents=True)
    train = [row(user(f"question {number}"), f"answer {number}") for number in range(5)]
    write_parquet(folder / "data" / "train-00000.parquet", train)
    write_parquet(folder / "data" / "test-00000.parquet", [row(user("held out"), "answer")])
    expected = load_prompts(CONFIG, codec, write_jsonl(tmp_path / "a.jsonl", train))
    assert load_prompts(CONFIG, codec, f"hub:{folder}") == expected
    held_out = load_prompts(CONFIG, codec, f"hub:{folder}:test").prompts
    assert [prompt.messages for prompt in held_out] == [tuple(user("held out"))]

    assert error_of(codec, "hub:") == "hub: names no data set; write hub:OWNER/NAME"
    message = error_of(codec, f"hub:{folder}:valid")
    assert message.startswith(f"hub:{folder}:valid cannot be loaded (")
    assert message.endswith("or download the data set and give its folder")
    message = error_of(codec, f"hub:{folder}", DataConfig(teacher_column="teacher"))
    assert "has no column 'teacher'; it has 'content', 'teacher_response'; the nearest" in message


def test_columns_can_have_other_names(tmp_path: Path, codec: ChatCodec) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"x": 1, "prompt": "hi", "answer": "you"}])
    config = DataConfig(prompt_column="prompt", teacher_column="answer")
    assert load_prompts(config, codec, path).prompts[0].teacher_text == "you"


def test_further_columns_come_along_and_every_row_has_them(
    tmp_path: Path, codec: ChatCodec
) -> None:
    config = DataConfig(reward_columns=("answer", "tests"))
    answers: list[Any] = [42, "x", [1, {"a": None}]]
    rows = [row() | {"answer": each, "tests": [], "other": 1} for each in answers]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    loaded = load_prompts(config, codec, path)
    assert [p.columns for p in loaded.prompts] == [{"answer": a, "tests": []} for a in answers]
    assert all("not read: other" in note for note in loaded.notes if "not read" in note)
    path = write_jsonl(tmp_path / "b.jsonl", [row() | {"answer": 1}])
    assert "has no column 'tests'" in error_of(codec, path, config)


def test_dropped_rows_are_counted_by_reason_and_keep_their_number(
    tmp_path: Path, codec: ChatCodec
) -> None:
    rows = [
        row("word " * 100),
        row("fine"),
        row("fine", "  \n"),
        row("fine", None),
        row("fine", ""),
        row("  "),
        row([]),
        row([*user("a"), {"role": "assistant", "content": "b"}]),
        row("fine too"),
    ]
    for path in (
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_parquet(
            tmp_path / "a.parquet",
            [
                entry | {"content": user(entry["content"])}
                if isinstance(entry["content"], str)
                else entry
                for entry in rows
            ],
        ),
    ):
        loaded = load_prompts(CONFIG, codec, path)
        assert [(prompt.index, prompt.messages[0]["content"]) for prompt in loaded.prompts] == [
            (1, "fine"),
            (8, "fine too"),
        ]
        assert loaded.counts == {
            "num_rows": 9,
            "num_prompts": 2,
            "num_dropped_long_prompt": 1,
            "num_dropped_empty_prompt": 2,
            "num_dropped_empty_response": 3,
            "num_dropped_ends_with_assistant": 1,
            "num_dropped_failed_response": 0,
            "num_dropped_tool_call_response": 0,
            "num_dropped_refused_by_template": 0,
            "num_teacher_truncated": 0,
            "num_teacher_cut_at_source": 0,
        }


def test_a_prompt_is_dropped_from_one_token_over_the_cap(tmp_path: Path, codec: ChatCodec) -> None:
    texts = ["1" * number for number in range(1, 80)]
    lengths = [len(codec.encode_prompt(user(text))) for text in texts]
    assert codec.max_prompt_tokens in lengths
    path = write_jsonl(tmp_path / "a.jsonl", [row(text) for text in texts])
    kept = [prompt.index for prompt in load_prompts(CONFIG, codec, path).prompts]
    assert kept == [index for index, length in enumerate(lengths) if length <= 64]


def test_conversations_that_the_template_refuses_are_dropped_and_counted(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "qwen")
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if turn.role == 'system' %}"
        "{{ raise_exception('no system turns') }}{% endif %}{{ turn.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(str(tmp_path))
    codec = ChatCodec.from_folder(tmp_path, 64, 32)
    rows = [row([{"role": "system", "content": "x"}, *user("y")]), row("y")]
    loaded = load_prompts(CONFIG, codec, write_jsonl(tmp_path / "a.jsonl", rows))
    assert [prompt.index for prompt in loaded.prompts] == [1]
    assert loaded.counts["num_dropped_refused_by_template"] == 1


def test_a_row_of_ten_megabytes_is_dropped_or_cut_like_any_other(
    tmp_path: Path, codec: ChatCodec
) -> None:
    huge = "turn right, " * 900_000
    rows = [row(huge), row("fine"), row("fine", huge)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    loaded = load_prompts(CONFIG, codec, path)
    assert [prompt.index for prompt in loaded.prompts] == [1, 2]
    assert loaded.counts["num_dropped_long_prompt"] == 1
    assert loaded.counts["num_teacher_truncated"] == 1
    assert loaded.prompts[1].teacher_ids == codec.encode_response("turn right, " * 40)[0]


def test_more_rows_than_a_chunk_keep_their_order(tmp_path: Path, codec: ChatCodec) -> None:
    count = 2 * CHUNK_ROWS + 3
    rows = [row("long " * 100 if number == 700 else f"q{number}") for number in range(count)]
    loaded = load_prompts(CONFIG, codec, write_jsonl(tmp_path / "a.jsonl", rows))
    assert loaded.counts["num_rows"] == count
    assert [prompt.index for prompt in loaded.prompts] == [n for n in range(count) if n != 700]
    assert all(prompt.messages[0]["content"] == f"q{prompt.index}" for prompt in loaded.prompts)


def test_blank_lines_byte_order_mark_and_line_ends_of_windows_are_no_rows(
    tmp_path: Path, codec: ChatCodec
) -> None:
    one, two = (json.dumps(row(text)).encode() for text in ("one", "two"))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + one + b"\r\n\r\n" + two)
    loaded = load_prompts(CONFIG, codec, str(tmp_path / "a.jsonl"))
    assert [prompt.messages[0]["content"] for prompt in loaded.prompts] == ["one", "two"]
    assert loaded.counts["num_rows"] == 2


def test_a_path_that_holds_no_data_is_refused(tmp_path: Path, codec: ChatCodec) -> None:
    assert error_of(codec, "") == "data.path is empty; give a file, a folder or hub:NAME"
    missing = tmp_path / "missing.jsonl"
    kinds = ".jsonl, .json (both also as .gz or .zst), .parquet or .arrow"
    assert error_of(codec, missing) == (
        f"{missing} does not exist; give a {kinds} file, a folder of them or hub:NAME"
    )
    other = tmp_path / "a.csv"
    other.write_text("content,teacher_response\n")
    assert error_of(codec, other) == (f"{other} is not a {kinds} file; rename or convert it")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error_of(codec, empty) == (f"the folder {empty} holds no {kinds} file directly in it")
    (empty / "data").mkdir()
    write_jsonl(empty / "data" / "a.jsonl", [row()])
    assert error_of(codec, empty).endswith("file directly in it; name its folder data")


def test_no_usable_row_is_an_error_with_the_reasons(tmp_path: Path, codec: ChatCodec) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    assert error_of(codec, path).startswith(f"{path} has no usable row (it is empty)")
    write_jsonl(path, [row("word " * 100), row("fine", ""), row("fine", "")])
    assert error_of(codec, path) == (
        f"{path} has no usable row (num_rows = 3, num_dropped_long_prompt = 1, "
        "num_dropped_empty_response = 2); look at the columns 'content' and 'teacher_response' "
        "and at data.max_prompt_tokens = 64"
    )


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_missing_column_is_named_with_those_that_exist(
    tmp_path: Path, codec: ChatCodec, write: Any
) -> None:
    name = "a.jsonl" if write is write_jsonl else "a.parquet"
    path = write(tmp_path / name, [{"content": "hi", "teacher_respons": "you", "id": 1}] * 9)
    assert error_of(codec, path) == (
        f"{path} row 1 has no column 'teacher_response'; it has 'content', 'teacher_respons', "
        "'id'; the nearest is 'teacher_respons'. Set data.prompt_column and data.teacher_column to "
        "columns it has"
    )


def test_unreadable_rows_are_collected_into_one_error(tmp_path: Path, codec: ChatCodec) -> None:
    good = json.dumps(row()).encode()
    lines = [
        good,
        b'{"content": "caf\xe9", "teacher_response": "x"}',
        b"[1, 2]",
        good,
        b'{"content": "hi"}',
        b'{"content": 5, "teacher_response": "x"}',
        b'{"content": "hi", "teacher_response": {"x": 1}}',
        b'{"content": "hi", "teacher_response": "\\ud83d"}',
        b"",
        b'{"content": [{"from": "human"}], "teacher_response": "x"}',
        good[:-20],
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    message = error_of(codec, path)
    assert message.splitlines() == [
        f"{path}: 8 rows cannot be read (the first 5 follow); correct or remove them",
        f"  {path} row 2: is not UTF-8 (byte 0xe9 at 16); convert it",
        f"  {path} row 3: is a JSON list; every line has to be one JSON object",
        f"  {path} row 5: has no column 'teacher_response'; it has 'content'",
        f"  {path} row 6: the prompt has type int; it has to be a string or a list of messages",
        f"  {path} row 7: the teacher's response has type dict; it has to be a string",
    ]
    path.write_bytes(b"\n".join([good, *lines[7:]]))
    lines_of_message = error_of(codec, path).splitlines()
    assert lines_of_message[0] == f"{path}: 3 rows cannot be read; correct or remove them"
    assert "row 2: a text holds half of a surrogate pair (U+D83D at" in lines_of_message[1]
    assert lines_of_message[2].endswith(
        "row 4: message 1 of the prompt has {'from': str}; 'role' and 'content' have to be strings"
    )
    assert re.search(
        r"row 5: is not JSON \(.*\); the file ends inside this row, copy it again$",
        lines_of_message[3],
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (["hi"], "message 1 of the prompt has type str; it has to be an object with 'role' and"),
        ([{"role": "user", "content": None}], "has {'role': str, 'content': NoneType}; 'role'"),
        ({"role": "user", "content": "x"}, "the prompt has type dict; it has to be a string or a"),
        (None, "the prompt has type NoneType; it has to be a string or a list of messages"),
        ([*user("a"), {"role": 1, "content": "b"}], "message 2 of the prompt has {'role': int"),
    ],
)
def test_a_prompt_of_another_form_is_described(
    tmp_path: Path, codec: ChatCodec, content: Any, problem: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(), row(content)])
    message = error_of(codec, path)
    first, second = message.splitlines()
    assert first == f"{path}: 1 row cannot be read; correct or remove them"
    assert second.startswith(f"  {path} row 2: ")
    assert problem in second


def test_a_pretty_printed_json_file_is_refused_at_its_first_row(
    tmp_path: Path, codec: ChatCodec
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([row(), row()], indent=1))
    assert f"{path} row 1: is not JSON (" in error_of(codec, path)


def test_a_broken_parquet_file_is_named(tmp_path: Path, codec: ChatCodec) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [row(f"question {number}") for number in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = error_of(codec, path)
    assert message.startswith(f"{path} is not a sound Parquet file after row 0 (")
    assert message.endswith("; get it again")


def test_text_in_parquet_that_is_not_utf8_is_refused(tmp_path: Path, codec: ChatCodec) -> None:
    path = tmp_path / "a.parquet"
    text = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"content": text, "teacher_response": text}), path)
    message = error_of(codec, path)
    assert message.startswith(f"{path} is not a sound Parquet file after row 0 (")
    assert "0xe9" in message


def test_problems_in_several_files_are_told_apart(tmp_path: Path, codec: ChatCodec) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row(), row(1)])
    message = error_of(codec, tmp_path)
    assert message.splitlines()[0] == (f"{tmp_path}: 2 rows cannot be read; correct or remove them")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        f"{tmp_path / 'a.jsonl'} row 2",
        f"{tmp_path / 'b.jsonl'} row 2",
    ]
