"""The two tasks: their data, their untrained student, and what their checkers say."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.compare import running_totals
from examples.quickstart import robot_turns
from examples.quickstart.data import DataFiles, write_answered
from examples.quickstart.student import StudentShape, make_student

SPLITS = {"train": 2500, "validation": 200, "test": 400}
TEACHER_SEED = 1000
Report = Callable[[Sequence[str], Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What is learned, and by how large a student.

    prompts: seed and number -> different prompts. answer: prompt and seed -> the teacher's text.
    report: prompts, responses -> ``accuracy`` and other shares of them. shown: key of those ->
        heading in the tables.
    max_tokens: of a response, its end included. flags: for every arm.
    teacher_rows: prompts, and answers to each, that a model of the teacher is trained on.
    """

    name: str
    title: str
    prompts: Callable[[int, int], Sequence[str]]
    answer: Callable[[str, int], str]
    report: Report
    shown: dict[str, str]
    max_tokens: int
    shape: StudentShape
    teacher_rows: tuple[int, int]
    flags: dict[str, str] = field(default_factory=dict[str, str])

    def make(self, folder: Path, seed: int) -> tuple[DataFiles, Path]:
        """Write the data and the student; return where they are. The same seed, the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        prompts = self.prompts(seed, sum(SPLITS.values()))
        files, start = {}, 0
        for split, count in SPLITS.items():
            files[split] = folder / f"{split}.jsonl"
            part = prompts[start : start + count]
            write_answered(files[split], split, part, seed, self.answer)
            start += count
        return DataFiles(**files), self.make_student(folder, seed)

    def make_student(self, folder: Path, seed: int) -> Path:
        """Write an untrained student; all of a task have the same tokenizer."""
        texts = [text for each in self.prompts(0, 600) for text in (each, self.answer(each, 0))]
        return make_student(folder / "student", seed, self.shape, texts)

    def write_teacher_rows(self, file: Path) -> None:
        """Write the rows that a model of the teacher is trained on."""
        num_prompts, num_answers = self.teacher_rows
        prompts = self.prompts(TEACHER_SEED, num_prompts)
        with file.open("w", encoding="utf-8") as out:
            for seed in range(num_answers):
                for prompt in prompts:
                    content = [{"role": "user", "content": prompt}]
                    row = {"content": content, "teacher_response": self.answer(prompt, seed)}
                    out.write(json.dumps(row) + "\n")


def _turn_prompts(seed: int, count: int) -> Sequence[str]:
    return robot_turns.split_prompts(seed, count, 0, 0).train


def _turns_report(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Any]:
    found = robot_turns.report(prompts, responses)
    return {"accuracy": found["accuracy"], **found["layout_shares"]}


TASKS = {
    "turns": Task(
        name="turns",
        title="Robot turns, the quickstart's task",
        prompts=_turn_prompts,
        answer=robot_turns.teacher_answer,
        report=_turns_report,
        shown={"because": "because", "steps": "steps", "list": "list", "none": "none"},
        max_tokens=24,
        shape=StudentShape(),
        teacher_rows=(3000, 8),
    ),
    "totals": Task(
        name="totals",
        title="Running totals, one right answer",
        prompts=running_totals.draw_prompts,
        answer=lambda prompt, seed: running_totals.answer_of(prompt),
        report=running_totals.report,
        shown={"step_accuracy": "single steps", "form_share": "form"},
        max_tokens=10,
        shape=StudentShape(num_layers=2, width=48, mlp_width=128),
        teacher_rows=(24000, 1),
        flags={"seqkd.steps": "300", "warmup.steps": "150", "warmup.stop_below": "0"},
    ),
}
