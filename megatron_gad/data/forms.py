"""In which form a file has its rows: found by its columns, unless the settings name them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from megatron_gad.config.data import DataConfig
from megatron_gad.data.conversation import (
    FINISH_KEYS,
    REASONING_KEYS,
    SYSTEM_ROLES,
    Answer,
    Messages,
    cell_kind,
    end_of_conversation,
    read_answers,
    read_messages,
    read_tools,
)

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
CONVERSATIONS = ("messages", "ShareGPT turns", "messages as text")  # what may end with an answer
INSTRUCTION, OUTPUT = "instruction", "output"
INPUTS = ("input", "context")  # of Alpaca, and of Dolly
NO_INPUT = "<noinput>"  # as Alpaca's prompts write it
SYSTEM, TOOLS = "system", "tools"
DEFAULTS = {field.name: field.default for field in fields(DataConfig)}


@dataclass(frozen=True)
class Read:
    """What a row says: a conversation, the tools in it, and the teacher's answers to it."""

    messages: Messages
    tools: tuple[Any, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class RowForm:
    """Where a row has its conversation and its answer.

    prompt: column of the conversation, or of Alpaca's instruction.
    answer: column of the answer; empty if the conversation ends with it.
    """

    kind: Literal["columns", "conversation", "alpaca"]
    prompt: str
    answer: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row has to have."""
        return (self.prompt, self.answer) if self.answer else (self.prompt,)

    @property
    def further(self) -> tuple[str, ...]:
        """The columns that are read if a row has them."""
        own = {"columns": (), "conversation": (SYSTEM,), "alpaca": (*INPUTS, SYSTEM)}
        return (*own[self.kind], TOOLS, *REASONING_KEYS, *FINISH_KEYS)

    def read(self, row: Mapping[str, Any]) -> Read:
        """Return what a row says; raises ValueError for cells of another form."""
        if self.kind == "alpaca":
            messages: Messages = ({"role": "user", "content": _instruction(row, self.prompt)},)
        else:
            messages = read_messages(row[self.prompt])
        answer: Any = row[self.answer] if self.answer else None
        if not self.answer and messages and messages[-1]["role"] == "assistant":
            messages, answer = messages[:-1], messages[-1]
        if SYSTEM in self.further and isinstance(row.get(SYSTEM), str):
            messages = with_system(messages, row[SYSTEM])
        if self.answer:
            answer = end_of_conversation(answer, messages)
        return Read(messages, read_tools(row.get(TOOLS)), read_answers(answer, row))

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return in words how a row is read."""
        if self.kind == "alpaca":
            return f"Alpaca's {INSTRUCTION} and {INPUTS[0]}, answered in {self.answer!r}"
        end = f"answered in {self.answer!r}" if self.answer else "ending with the answer"
        return f"{self.prompt!r} as {cell_kind(row[self.prompt])}, {end}"


def with_system(messages: Messages, text: str) -> Messages:
    """Return a conversation that begins with a system turn: its own, or this one if not blank."""
    has_own = bool(messages) and messages[0]["role"] in SYSTEM_ROLES
    if has_own or not messages or not text.strip():
        return messages
    return ({"role": "system", "content": text}, *messages)


def wanted_columns(config: DataConfig) -> tuple[str, ...]:
    """Return the columns that rows of any form may be read from."""
    own = (config.prompt_column, config.teacher_column, *CONVERSATION_COLUMNS)
    alpaca = (INSTRUCTION, *INPUTS, OUTPUT, SYSTEM)
    named = (*own, *config.reward_columns)
    return tuple(dict.fromkeys((*named, *alpaca, TOOLS, *REASONING_KEYS, *FINISH_KEYS)))


def find_form(columns: Iterable[str], row: Mapping[str, Any], config: DataConfig) -> RowForm:
    """Return the form of a file's rows.

    columns: all that the file has. row: one of its rows.

    Raises ValueError that names the column it lacks, and those it has.
    """
    names = [str(name) for name in columns]
    prompt, answer = config.prompt_column, config.teacher_column
    conversations = [prompt] if prompt in names else []
    if prompt == DEFAULTS["prompt_column"]:
        conversations += [name for name in CONVERSATION_COLUMNS if name in names]
    if conversations and answer in names:
        return RowForm("columns", conversations[0], answer)
    is_answer_free = answer == DEFAULTS["teacher_column"]
    for name in conversations:
        cell = row.get(name)
        if is_answer_free and cell is not None and cell_kind(cell) in CONVERSATIONS:
            return RowForm("conversation", name)
    if not conversations and prompt == DEFAULTS["prompt_column"] and INSTRUCTION in names:
        outputs = [name for name in (answer, OUTPUT) if name in names]
        if outputs and (is_answer_free or outputs[0] == answer):
            return RowForm("alpaca", INSTRUCTION, outputs[0])
    raise ValueError(missing_column(names, ((conversations or [prompt])[0], answer)))


def missing_column(existing: Sequence[str], wanted: Sequence[str]) -> str:
    """Return what is wrong when a wanted column does not exist, else an empty string."""
    for column in wanted:
        if column not in existing:
            nearest = difflib.get_close_matches(column, existing, n=1, cutoff=0.4)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            has = ", ".join(map(repr, existing)) or "none"
            return f"has no column {column!r}; it has {has}{hint}"
    return ""


def _instruction(row: Mapping[str, Any], column: str) -> str:
    """Return Alpaca's instruction with its input, if there is one, a blank line behind it."""
    parts: list[str] = []
    for name in (column, *INPUTS):
        cell = row.get(name)
        if not isinstance(cell, str) and cell is not None:
            raise ValueError(f"{name!r} has type {type(cell).__name__}; it has to be a string")
        if cell and cell.strip() not in ("", NO_INPUT):
            parts.append(cell)
    return "\n\n".join(parts)
