"""The prompts of an evaluation with the teacher's answers, and files of a student's answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_gad.config.data import DataConfig
from megatron_gad.data.conversation import Answer, Messages
from megatron_gad.data.forms import RowForm, find_form, wanted_columns
from megatron_gad.data.rows import read_file_rows
from megatron_gad.evaluation.answers import Answered


@dataclass(frozen=True)
class Item:
    """One prompt. teacher: the teacher's answers to it; empty if there are none."""

    messages: Messages
    teacher: tuple[Answered, ...] = ()

    @property
    def key(self) -> str:
        """What is the same for the same conversation."""
        return _key(self.messages)


def read_items(
    paths: Sequence[str], prompt_column: str, teacher_column: str, num_prompts: int = 0
) -> list[Item]:
    """Return the prompts of some files; rows with the same conversation are one prompt.

    num_prompts: the first so many; 0: all.

    Raises ValueError: a file that cannot be read or holds no prompts.
    """
    config = DataConfig(prompt_column=prompt_column, teacher_column=teacher_column)
    items: dict[str, Item] = {}
    for path in paths:
        for messages, answers in _read(path, config, needs_answers=False):
            key = _key(messages)
            if key not in items and num_prompts and len(items) == num_prompts:
                continue
            whole = [_answered(each) for each in answers if each.text.strip()]
            before = items.get(key, Item(messages))
            items[key] = replace(before, teacher=(*before.teacher, *whole))
    if not items:
        raise ValueError(f"{', '.join(paths)}: no prompts; give a file with rows")
    return list(items.values())


def read_answers(
    path: str, prompt_column: str, column: str, items: Sequence[Item]
) -> list[list[Answered]]:
    """Return a file's answers to the prompts, found by their conversations.

    Raises ValueError: the file cannot be read, or lacks an answer to a prompt.
    """
    config = DataConfig(prompt_column=prompt_column, teacher_column=column)
    found: dict[str, list[Answered]] = {}
    for messages, answers in _read(path, config, needs_answers=True):
        found.setdefault(_key(messages), []).extend(map(_answered, answers))
    missing = [item for item in items if not found.get(item.key)]
    if missing:
        shown = str(missing[0].messages[-1]["content"])[:60]
        raise ValueError(
            f"{path}: no answer to {len(missing)} of {len(items)} prompts, the first is {shown!r}; "
            "the conversations have to be those of the prompts"
        )
    return [found[item.key] for item in items]


def _read(
    path: str, config: DataConfig, needs_answers: bool
) -> Iterator[tuple[Messages, tuple[Answer, ...]]]:
    form: RowForm | None = None
    for row in read_file_rows(path, wanted_columns(config)):
        if row.problem:
            raise ValueError(f"{row.place}: {row.problem}")
        try:
            form = form or _form(row.columns, row.values, config, needs_answers)
            read = form.read(row.values)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{row.place}: {error}") from error
        if not read.messages:
            raise ValueError(f"{row.place}: the prompt is empty")
        yield read.messages, read.answers


def _form(
    columns: Any, values: Mapping[str, Any], config: DataConfig, needs_answers: bool
) -> RowForm:
    try:
        return find_form(columns, values, config)
    except ValueError:
        if needs_answers or config.prompt_column not in columns:
            raise
        return RowForm("columns", config.prompt_column)


def _answered(answer: Answer) -> Answered:
    return Answered(answer.text, answer.ending == "cut")


def _key(messages: Messages) -> str:
    return json.dumps([dict(turn) for turn in messages], sort_keys=True, default=str)
