"""The prompts that a teacher is asked, and those rows of their file that are none."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_gad.data.conversation import Messages, read_messages
from megatron_gad.data.forms import missing_column
from megatron_gad.data.rows import Row, read_file_rows
from megatron_gad.engines.asking.failure import readable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherPrompt:
    """One row to ask.

    id: names the row in every file of a collection.
    messages: the conversation, as {"role", "content", ...} dicts; the last one is not the
        assistant's.
    """

    id: str | int
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class BadPrompt:
    """A row that cannot be asked.

    id: the row's, or its number if it has none that can be used.
    reason: file, row and what is wrong.
    """

    id: str | int
    reason: str


def read_prompts(
    path: Path, prompt_column: str = "content"
) -> tuple[list[TeacherPrompt], list[BadPrompt]]:
    """Read all prompts of a path, in the forms that data.path takes, and list the rows without one.

    A row without "id" takes its number among the rows, counted from 1.

    Raises:
        ValueError: the file cannot be read, its first readable row lacks the column, or no row can
            be asked.
    """
    prompts: dict[str | int, TeacherPrompt] = {}
    bad: list[BadPrompt] = []
    is_first = True
    wanted = (prompt_column, "id")
    for number, row in enumerate(read_file_rows(str(path), wanted), start=1):
        lacks = "" if row.problem else missing_column([*row.columns], [prompt_column])
        if is_first and lacks:
            raise ValueError(f"{row.place} {lacks}; name the right one with --prompt-column")
        is_first = is_first and bool(row.problem)
        identity = number
        try:
            identity = _id(row, number)
            if identity in prompts:
                raise ValueError(f"id {identity!r} was used before; give each row its own")
            prompts[identity] = TeacherPrompt(identity, _messages(row, prompt_column, lacks))
        except ValueError as error:
            bad.append(BadPrompt(identity, f"{row.place}: {error}"))
            logger.warning("%s", bad[-1].reason)
    if not prompts:
        problem = f"; {bad[0].reason}" if bad else "; it holds no rows"
        raise ValueError(f"{path} has no prompt that can be asked{problem}")
    return list(prompts.values()), bad


def _id(row: Row, number: int) -> str | int:
    identity = row.values.get("id", number)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError(f"id = {identity!r} is neither a string nor a whole number")
    if isinstance(identity, str) and readable(identity) != identity:
        raise ValueError(f"id = {identity!r} holds half of a surrogate pair; replace it")
    return identity


def _messages(row: Row, column: str, lacks: str) -> list[dict[str, Any]]:
    if row.problem or lacks:
        raise ValueError(row.problem or lacks)
    messages = _as_json(read_messages(row.values[column]))
    if not messages or not messages[-1]["content"].strip():
        raise ValueError("the prompt is empty")
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "the last message is the assistant's, so there is nothing to answer; end the"
            " conversation with the user's message"
        )
    return messages


def _as_json(messages: Messages) -> list[dict[str, Any]]:
    """Return messages as a request and a file hold them."""
    try:
        encoded = json.dumps(messages, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the messages cannot be written as JSON ({error})") from error
    if readable(encoded) != encoded:
        raise ValueError("a message holds half of a surrogate pair; replace it")
    return json.loads(encoded)
