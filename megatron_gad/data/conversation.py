"""What the cells of a row mean: a conversation, and a response."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

Messages = tuple[tuple[str, str], ...]


def read_messages(cell: Any) -> Messages:
    """Return a prompt cell as (role, content) pairs; a string is one user message.

    Raises ValueError saying what the cell has to be.
    """
    if isinstance(cell, str):
        return (("user", _valid_text(cell)),)
    if not isinstance(cell, Sequence):
        raise ValueError(
            f"the prompt has type {type(cell).__name__}; it has to be a string or a list of "
            "messages"
        )
    turns = cast(Sequence[Any], cell)
    return tuple(_read_message(number, turn) for number, turn in enumerate(turns, 1))


def read_response(cell: Any) -> str:
    """Return the teacher's response, empty for a missing one; raises ValueError if not text."""
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise ValueError(
            f"the teacher's response has type {type(cell).__name__}; it has to be a string"
        )
    return _valid_text(cell)


def _read_message(number: int, turn: Any) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise ValueError(
            f"message {number} of the prompt has type {type(turn).__name__}; it has to be an "
            "object with 'role' and 'content'"
        )
    message = cast(Mapping[Any, Any], turn)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        found = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in message.items())
        raise ValueError(
            f"message {number} of the prompt has {{{found}}}; 'role' and 'content' have to be "
            "strings"
        )
    return role, _valid_text(content)


def _valid_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds half of a surrogate pair (U+{ord(text[error.start]):04X} at character "
            f"{error.start}); replace it"
        ) from error
    return text
