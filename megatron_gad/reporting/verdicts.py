"""Evaluations in a run directory: their tables, and all students' answers side by side."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_gad.evaluation.table import (
    ANSWERS_FILE,
    RESULTS_FILE,
    difference_rows,
    note_lines,
    student_rows,
)

# Prompts whose answers are on the page; the rest is in the evaluation's own file.
MAX_PROMPTS = 60
Rows = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Answers:
    """All answers to one prompt. by_name: (who, first answer), the teacher first."""

    prompt: str
    by_name: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Verdict:
    """What ``megatron-gad evaluate`` found.

    name: of its folder. rows: measure -> text of each student's number.
    differences: measure -> of whom, difference, number of prompts, whether it is noise.
    answers: of the first prompts; num_hidden: prompts beyond them.
    """

    name: str
    num_prompts: int
    students: tuple[str, ...]
    rows: Rows
    differences: Rows
    notes: tuple[str, ...]
    answers: tuple[Answers, ...]
    num_hidden: int


def read_verdicts(run_folder: Path, problems: list[str]) -> list[Verdict]:
    """Return the evaluations whose results are in a run directory or in a folder of it.

    problems: gets a sentence for each that cannot be read.
    """
    folders = [run_folder, *sorted(path for path in run_folder.iterdir() if path.is_dir())]
    found = []
    for folder in folders:
        file = folder / RESULTS_FILE
        if not file.is_file():
            continue
        try:
            found.append(_read(folder, json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"{type(error).__name__}: {error}"
            problems.append(f"{file.relative_to(run_folder)} is no evaluation ({problem}).")
    return found


def _read(folder: Path, results: dict[str, Any]) -> Verdict:
    answers = _read_answers(folder / ANSWERS_FILE)
    return Verdict(
        name=folder.name,
        num_prompts=results["num_prompts"],
        students=tuple(results["students"]),
        rows=_frozen(student_rows(results)),
        differences=_frozen(difference_rows(results)),
        notes=tuple(note_lines(results)),
        answers=tuple(answers[:MAX_PROMPTS]),
        num_hidden=max(0, len(answers) - MAX_PROMPTS),
    )


def _read_answers(file: Path) -> list[Answers]:
    if not file.is_file():
        return []
    found = []
    for line in file.open(encoding="utf-8"):
        row = json.loads(line)
        given = [("teacher", row["teacher"]), *row["students"].items()]
        by_name = tuple((name, str(texts[0])) for name, texts in given if texts)
        found.append(Answers(str(row["prompt"]), by_name))
    return found


def _frozen(rows: list[tuple[str, list[str]]]) -> Rows:
    return tuple((name, tuple(cells)) for name, cells in rows)
