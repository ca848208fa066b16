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
    first, second = read_prompts(path)
    assert (first.id, first.messages) == ("a", chat)
    assert (second.id, second.messages) == (3, [{"role": "user", "content": "hello"}])


def test_another_column_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"question": "hello"}')
    assert read_prompts(path, "question")[0].messages == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"content": "half', r"row 2: not JSON"),
        (b'{"content": "\xff"}', r"row 2: not UTF-8"),
        ("[1]", r"row 2: .* is not a JSON object"),
        ('{"text": "hello"}', r"row 2: no column 'content', only text"),
        ('{"content": ""}', r"row 2: column 'content' is neither"),
        ('{"content": []}', r"row 2: column 'content' is neither"),
        ('{"content": [{"role": "user"}]}', r"row 2: column 'content' is neither"),
        ('{"content": 3}', r"row 2: column 'content' is neither"),
        ('{"id": "a", "content": "again"}', r"row 2: id 'a' was used before"),
        ('{"id": [1], "content": "x"}', r"row 2: id = \[1\]"),
        (
            '{"content": [{"role": "assistant", "content": "y"}]}',
            r"row 2: the last message is the assistant's",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_number(tmp_path: Path, line: str | bytes, reason: str) -> None:
    path = write(tmp_path / "p.jsonl", '{"id": "a", "content": "fine"}', line)
    with pytest.raises(ValueError, match=reason):
        read_prompts(path)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        read_prompts(write(tmp_path / "p.jsonl", "", ""))
