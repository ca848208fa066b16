"""The prompts that a teacher is asked: rows of a JSONL file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TeacherPrompt:
    """One row to ask.

    id: names the row in every file of a collection.
    messages: the conversation, as {"role", "content"} dicts; the last one is not the assistant's.
    """

    id: str | int
    messages: list[dict[str, str]]


def read_prompts(path: Path, prompt_column: str = "content") -> list[TeacherPrompt]:
    """Read all prompts of a file, one JSON object per line.

    prompt_column holds a list of {"role", "content"} messages, or a string, which is one user
    message. A row without "id" takes its row number, counted from 1.

    Raises:
        ValueError: a row cannot be used; the message says which and why. Nothing is skipped.
    """
    prompts: dict[str | int, TeacherPrompt] = {}
    for number, row in _rows(path):
        place = f"{path}, row {number}"
        prompt = TeacherPrompt(_id(row, number, place), _messages(row, prompt_column, place))
        if prompt.id in prompts:
            raise ValueError(f"{place}: id {prompt.id!r} was used before; give each row its own")
        prompts[prompt.id] = prompt
    if not prompts:
        raise ValueError(f"{path}: no rows; write one JSON object per line")
    return list(prompts.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, row) of every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, row {number}: not UTF-8 ({error})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, row {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, row {number}: {str(row)[:40]!r} is not a JSON object; write"
                    ' {"id": ..., "content": [...]}'
                )
            yield number, row


def _id(row: dict[str, Any], number: int, place: str) -> str | int:
    identity = row.get("id", number)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError(f"{place}: id = {identity!r} is neither a string nor a whole number")
    return identity


def _messages(row: dict[str, Any], column: str, place: str) -> list[dict[str, str]]:
    if column not in row:
        raise ValueError(
            f"{place}: no column {column!r}, only {', '.join(sorted(row))}; name it with"
            " --prompt-column"
        )
    content = row[column]
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise ValueError(
            f"{place}: column {column!r} is neither a string nor a list of messages"
            ' {"role": ..., "content": ...} with text in both'
        )
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{place}: the last message is the assistant's, so there is nothing to answer; end the"
            " conversation with the user's message"
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    """Return whether it has a role and a content that is not blank."""
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        and bool(message["content"].strip())
    )
