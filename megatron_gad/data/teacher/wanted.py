"""The rows that a collection wants: which teacher is asked which prompt, and how often."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_gad.data.teacher.prompt_file import TeacherPrompt


class RowKey(NamedTuple):
    """What names a row: the prompt's id, and which of its answers it holds, from 1."""

    id: str | int
    answer: int

    def __str__(self) -> str:
        return f"row {self.id!r}" + (f", answer {self.answer}" if self.answer > 1 else "")


@dataclass(frozen=True)
class WantedRow:
    """A row to collect.

    teacher: number of the teacher that is asked, from 0.
    model: name of the teacher's model.
    """

    key: RowKey
    messages: list[dict[str, Any]]
    teacher: int
    model: str


def plan_rows(
    prompts: Iterable[TeacherPrompt],
    num_answers: int,
    models: Sequence[str],
    weights: Sequence[float],
    seed: int,
) -> list[WantedRow]:
    """Return num_answers rows of every prompt, each with a teacher drawn by weight.

    The draw depends on the seed and on the row's key, and on nothing else: an interrupted
    collection asks the same teacher again.
    """
    rows: list[WantedRow] = []
    for prompt in prompts:
        for answer in range(1, num_answers + 1):
            draw = random.Random(f"{seed}/{prompt.id!r}/{answer}")
            (teacher,) = draw.choices(range(len(models)), weights)
            key = RowKey(prompt.id, answer)
            rows.append(WantedRow(key, prompt.messages, teacher, models[teacher]))
    return rows
