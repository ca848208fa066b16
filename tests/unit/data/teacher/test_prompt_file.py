"""Prompt files, good and bad."""

import json
from pathlib import Path

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
    with pytest.raises(ValueError, match="row 2 has no column 'content'; it has 'text'; name the"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("line", "reason"), [("", "write one JSON object per line"), ("[1]", "row 1: is a JSON list")]
)
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"has no prompt that can be asked; .*{reason}"):
        read_prompts(write(tmp_path / "p.jsonl", line, ""))
