"""Prompt files, good and bad."""

import json
from datetime import datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_gad.data.teacher.prompt_file import read_prompts


def write(path: Path, *lines: str | bytes) -> Path:
    encoded = [line if isinstance(line, bytes) else line.encode("utf-8") for line in lines]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def test_messages_and_strings_are_both_conversations(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "größe?"}]
    path = write(
        tmp_path / "p.jsonl",
        json.dumps({"id": "a", "content": chat, "other": 1}),
        "",
        '{"content": "hello"}',
    )
    (first, second), bad = read_prompts(path)
    assert (first.id, first.messages) == ("a", chat)
    assert (second.id, second.messages) == (2, [{"role": "user", "content": "hello"}])
    assert bad == []


def test_another_column_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"question": "hello"}')
    (prompt,), _ = read_prompts(path, "question")
    assert prompt.messages == [{"role": "user", "content": "hello"}]


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"content": "one"}\r\n{"content": "two"}\r\n')
    prompts, bad = read_prompts(path)
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["one", "two"]
    assert bad == []


@pytest.mark.parametrize(
    ("line", "identity", "reason"),
    [
        ('{"content": "half', 2, "is not JSON"),
        (b'{"content": "\xff"}', 2, "is not UTF-8"),
        ("[1]", 2, "is a JSON list"),
        ("[" * 100_000, 2, "is not JSON"),
        ('{"text": "hello"}', 2, "has no column 'content'; it has 'text'"),
        ('{"id": "b", "text": "hello"}', "b", "has no column 'content'; it has 'id', 'text'"),
        ('{"content": ""}', 2, "the prompt is empty"),
        ('{"content": []}', 2, "the prompt is empty"),
        ('{"content": [{"role": "user", "content": " "}]}', 2, "the prompt is empty"),
        ('{"content": [{"role": "user"}]}', 2, "message 1 of the prompt has"),
        ('{"content": 3}', 2, "has type int"),
        ('{"content": "half \\ud800"}', 2, "half of a surrogate pair"),
        (
            '{"content": [{"role": "user", "content": "x", "name": "\\ud800"}]}',
            2,
            "half of a surrogate pair",
        ),
        ('{"content": [{"role": "user", "content": "x", "weight": NaN}]}', 2, "written as JSON"),
        ('{"id": "a", "content": "again"}', "a", "id 'a' was used before"),
        ('{"id": [1], "content": "x"}', 2, "id = [1] is neither"),
        ('{"id": true, "content": "x"}', 2, "id = True is neither"),
        ('{"id": "\\ud800", "content": "x"}', 2, "half of a surrogate pair"),
        (
            '{"content": [{"role": "assistant", "content": "y"}]}',
            2,
            "the last message is the assistant's",
        ),
    ],
)
def test_a_bad_row_is_listed_with_its_number_and_the_others_are_asked(
    tmp_path: Path, line: str | bytes, identity: str | int, reason: str
) -> None:
    path = write(tmp_path / "p.jsonl", '{"id": "a", "content": "fine"}', line, '{"content": "x"}')
    prompts, (bad,) = read_prompts(path)
    assert [prompt.id for prompt in prompts] == ["a", 3]
    assert bad.id == identity
    assert bad.reason.startswith(f"{path} row 2: ") and reason in bad.reason


def test_a_wrong_name_of_the_column_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", "[1]", '{"text": "a"}', '{"content": "b"}')
    with pytest.raises(
        ValueError,
        match="row 2 has no column 'content'; it has 'text'; the nearest is 'text'; name",
    ):
        read_prompts(path)


@pytest.mark.parametrize(
    ("line", "reason"), [("", "it holds no rows"), ("[1]", "row 1: is a JSON list")]
)
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"has no prompt that can be asked; .*{reason}"):
        read_prompts(write(tmp_path / "p.jsonl", line, ""))


def test_prompts_have_the_forms_of_training_data(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "be brief"}, {"from": "human", "value": "why?"}]
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}, "id": "c"}]
    tools = [
        {"role": "user", "content": [{"type": "text", "text": "ask"}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "c"},
    ]
    path = write(
        tmp_path / "p.jsonl",
        json.dumps({"content": turns}),
        json.dumps({"content": json.dumps([{"role": "user", "content": "as text"}])}),
        json.dumps({"content": tools}),
    )
    prompts, bad = read_prompts(path)
    assert bad == []
    assert [prompt.messages for prompt in prompts] == [
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
        [{"role": "user", "content": "as text"}],
        [
            {"role": "user", "content": "ask"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "3", "tool_call_id": "c"},
        ],
    ]


def test_a_parquet_file_gives_its_prompts_and_ids(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "one", "at": datetime(2020, 1, 1)}]
    table = pyarrow.table(
        {
            "id": ["a", "b"],
            "content": [chat, [{"role": "user", "content": "two", "at": None}]],
            "other": [1, 2],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    (prompt,), (bad,) = read_prompts(tmp_path / "p.parquet")
    assert (prompt.id, prompt.messages) == ("b", [{"role": "user", "content": "two"}])
    assert bad.id == "a" and "cannot be written as JSON" in bad.reason
