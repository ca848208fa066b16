"""What the cells of a row mean: a conversation, tools, and a teacher's answer."""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

# Of types.Message; types.py imports torch, for which the collector of responses need not wait.
Messages = tuple[Mapping[str, Any], ...]
# Names of roles in ShareGPT's "from", as chat templates know them.
SHAREGPT_ROLES = {
    **{"human": "user", "user": "user", "system": "system"},
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
# Names of roles in "role" that templates would write as they are, and no model was trained with.
OTHER_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},  # in capitals
    **{"human": "user"},
    **dict.fromkeys(("gpt", "chatgpt", "ai", "bot", "model"), "assistant"),
}
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SYSTEM_ROLES = ("system", "developer")
REASONING_KEYS = ("reasoning_content", "reasoning")
FINISH_KEYS = ("finish_reason", "stop_reason")
# How an endpoint says that the teacher ended its answer, or that the limit of tokens did.
WHOLE = {
    *("stop", "eos", "eos_token", "end_turn", "stop_sequence", "completed", "complete"),
    *("tool_calls", "tool_use", "function_call"),
}
CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "incomplete"}

Ending = Literal["whole", "cut", "failed"]


@dataclass(frozen=True)
class Answer:
    """One answer of the teacher.

    reasoning: what stands beside the text; the text may begin with reasoning itself.
    finish_reason: why it ends, in the endpoint's word; empty if the row does not say.
    has_calls: it calls tools.
    """

    text: str
    reasoning: str = ""
    finish_reason: str = ""
    has_calls: bool = False

    @property
    def ending(self) -> Ending:
        """Whether the teacher ended it, a limit did, or something failed."""
        reason = self.finish_reason.lower()
        if reason in CUT:
            return "cut"
        return "whole" if not reason or reason in WHOLE else "failed"


def cell_kind(cell: Any) -> str:
    """Return how a conversation is written, in words, for the report."""
    if isinstance(cell, str):
        return "plain text" if _from_text(cell) is None else "messages as text"
    first: Any = next(iter(cell), None) if _is_list(cell) else None
    if _is_part(first):
        return "text parts"
    return "ShareGPT turns" if _is_object(first) and "from" in first else "messages"


def read_messages(cell: Any) -> Messages:
    """Return the turns of a prompt cell; plain text, or text parts, are one user message.

    Raises ValueError saying what the cell has to be.
    """
    if isinstance(cell, str):
        inside = _from_text(cell)
        if inside is None:
            return ({"role": "user", "content": _valid_text(cell)},)
        cell = inside
    if not _is_list(cell):
        raise ValueError(
            f"the prompt has type {type(cell).__name__}; it has to be a string or a list of "
            "messages"
        )
    if cell and _is_part(cell[0]):
        return ({"role": "user", "content": _read_content(cell, "the prompt")},)
    return tuple(_read_message(number, turn) for number, turn in enumerate(cell, 1))


def read_tools(cell: Any) -> tuple[Any, ...]:
    """Return the definitions of tools in a cell; a string is taken as JSON."""
    tools = _from_json(cell) if isinstance(cell, str) and cell.strip() else cell
    if not tools:
        return ()
    if not _is_list(tools):
        raise ValueError(f"the tools have type {type(tools).__name__}; they have to be a list")
    found = [_from_json(tool) if isinstance(tool, str) else tool for tool in tools]
    for number, tool in enumerate(found, 1):
        if not _is_object(tool):
            raise ValueError(
                f"tool {number} has type {type(tool).__name__}; it has to be an object that "
                "describes a function"
            )
    return tuple(found)


def end_of_conversation(cell: Any, messages: Messages) -> Any:
    """Return the answer in a cell: of a conversation that begins with the prompt, its last turn.

    Preference data has such cells. Anything else than turns is returned as it is.

    messages: the prompt.

    Raises ValueError for another conversation, whose turns are no answers.
    """
    if not _is_list(cell) or len(cell) == 0 or not all(map(_is_turn, cell)) or _is_part(cell[0]):
        return cell
    turns = read_messages(cell)
    if all(turn["role"] == "assistant" for turn in turns):
        return turns
    if turns[-1]["role"] == "assistant" and _said(turns[:-1]) == _said(messages):
        return turns[-1]
    roles = ", ".join(turn["role"] for turn in turns)
    raise ValueError(
        f"the teacher's response is a conversation ({roles}) that does not go on from the prompt; "
        "name its column in data.prompt_column alone: then it is the prompt, and ends with the "
        "response"
    )


def _said(messages: Messages) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in messages]


def read_answers(cell: Any, row: Mapping[str, Any]) -> tuple[Answer, ...]:
    """Return the answers in a cell: a text, a message, or a list of them; none of a missing one.

    row: its finish reason and reasoning belong to the answers, a list to several.
    """
    if cell is None:
        return ()
    cells: list[Any] = list(cell) if _is_list(cell) and not _is_text_parts(cell) else [cell]
    reasons = _beside(row, FINISH_KEYS, len(cells))
    reasonings = _beside(row, REASONING_KEYS, len(cells))
    return tuple(
        _read_answer(each, reasoning, reason)
        for each, reasoning, reason in zip(cells, reasonings, reasons, strict=True)
    )


def _read_answer(cell: Any, reasoning: str, reason: str) -> Answer:
    if cell is None:
        return Answer("", reasoning, reason)
    if _is_object(cell) and "content" in cell:
        content = cell["content"]
        text = "" if content is None else _read_content(content, "the teacher's response")
        return Answer(
            text,
            reasoning or next(_texts(cell, REASONING_KEYS), ""),
            reason or next(_texts(cell, FINISH_KEYS), ""),
            bool(cell.get("tool_calls")),
        )
    if not isinstance(cell, str) and not _is_text_parts(cell):
        raise ValueError(
            f"the teacher's response has type {type(cell).__name__}; it has to be a string"
        )
    return Answer(_read_content(cell, "the teacher's response"), reasoning, reason)


def _beside(row: Mapping[str, Any], keys: Sequence[str], count: int) -> list[str]:
    """Return for each answer the text that a row has beside it under one of the keys."""
    for key in keys:
        cell = row.get(key)
        if isinstance(cell, str):
            return [_valid_text(cell)] * count
        if _is_list(cell) and len(cell) == count:
            return ["" if each is None else _valid_text(str(each)) for each in cell]
        if _is_list(cell):
            raise ValueError(f"{key!r} has {len(cell)} entries for {count} answers")
    return [""] * count


def _texts(row: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    return (_valid_text(row[key]) for key in keys if isinstance(row.get(key), str))


def _read_message(number: int, turn: Any) -> Mapping[str, Any]:
    if not _is_object(turn):
        raise ValueError(
            f"message {number} of the prompt has type {type(turn).__name__}; it has to be an "
            "object with 'role' and 'content'"
        )
    is_sharegpt = isinstance(turn.get("from"), str) and "value" in turn
    message = _from_sharegpt(number, turn) if is_sharegpt else turn
    role, content = message.get("role"), message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(role, str) or not (isinstance(content, str) or _is_list(content)):
        found = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in message.items())
        raise ValueError(
            f"message {number} of the prompt has {{{found}}}; 'role' and 'content' have to be "
            "strings"
        )
    if role not in KNOWN_ROLES:
        role = OTHER_ROLES.get(role.lower(), role)
    others = {key: value for key, value in message.items() if value is not None}
    return others | {"role": role, "content": _read_content(content, f"message {number}")}


def _from_sharegpt(number: int, turn: Mapping[str, Any]) -> Mapping[str, Any]:
    sender, value = turn["from"], turn["value"]
    role = SHAREGPT_ROLES.get(sender.lower())
    if role is None:
        raise ValueError(
            f"message {number} is from {sender!r}; known are {', '.join(SHAREGPT_ROLES)}"
        )
    if sender.lower() != "function_call":
        return {"role": role, "content": value}
    call = {"type": "function", "function": _from_json(value)}
    return {"role": role, "content": "", "tool_calls": [call]}


def _read_content(content: Any, what: str) -> str:
    """Return the text of a content; of several text parts on a line each."""
    if isinstance(content, str):
        return _valid_text(content)
    texts: list[str] = []
    for part in content:
        text = part.get("text") if _is_object(part) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if _is_object(part) else type(part).__name__
            raise ValueError(
                f"{what} holds a part of type {kind!r}; models are trained on text alone: leave "
                "such rows out, or write the part as text"
            )
        texts.append(_valid_text(text))
    return "\n".join(texts)


def _from_text(text: str) -> list[Any] | None:
    """Return the messages or parts that a text holds as JSON, or as Python writes them."""
    start = text.lstrip()[:2].replace("\n", " ")
    if not start.startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            inside = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        is_conversation = _is_list(inside) and len(inside) > 0 and all(map(_is_turn, inside))
        return [*inside] if is_conversation else None
    return None


def _from_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{str(text)[:40]!r} is not JSON ({error})") from error


def _is_turn(value: Any) -> bool:
    return _is_object(value) and ("role" in value or "from" in value or _is_part(value))


def _is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_part(value: Any) -> bool:
    return _is_object(value) and "type" in value and "role" not in value


def _is_text_parts(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(map(_is_part, value))


def _valid_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds half of a surrogate pair (U+{ord(text[error.start]):04X} at character "
            f"{error.start}); replace it"
        ) from error
    return text
