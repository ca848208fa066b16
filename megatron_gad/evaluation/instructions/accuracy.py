"""How many instructions answers fulfil, strict and loose."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from megatron_gad.config.evaluation import PACKAGED
from megatron_gad.evaluation.instructions.checkers import CHECKERS, fulfils, fulfils_loosely
from megatron_gad.evaluation.intervals import Interval, count_interval
from megatron_gad.types import Instructed

PACKAGED_FILE = Path(__file__).with_name("instructions.jsonl")


@dataclass(frozen=True)
class InstructionAccuracy:
    """Shares of prompts of which all instructions are fulfilled.

    by_kind: name of a checker -> strict share of its instructions.
    each_strict, each_loose: of each prompt whether they are.
    """

    strict: Interval
    loose: Interval
    by_kind: Mapping[str, Interval]
    each_strict: Sequence[bool]
    each_loose: Sequence[bool]


def read_instructions(source: str | Path = PACKAGED) -> list[Instructed]:
    """Read a set: JSON lines with "id", "prompt" and "checks".

    source: a file, or "packaged".

    Raises ValueError: no such file, a row of another form, a checker that does not exist, or
    parameters that it does not take.
    """
    path = PACKAGED_FILE if source == PACKAGED else Path(source)
    try:
        # A line ends at a line feed alone: JSON may hold what else ends a line of text.
        with path.open(encoding="utf-8") as file:
            lines = [*file]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); name a file of instructions, or {PACKAGED!r}"
        ) from error
    found: list[Instructed] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            read = Instructed(str(row["id"]), row["prompt"], tuple(row["checks"]))
            if not (isinstance(read.prompt, str) and read.prompt.strip() and read.checks):
                raise ValueError("the prompt is no text, or nothing is checked")
            (read.id + read.prompt).encode("utf-8")  # raises for half of a surrogate pair
            for check in read.checks:
                _check_parameters(check)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: {type(error).__name__}: {error}; a row has id, prompt and "
                f"checks, each {{'check': name, ...}} with a name of {', '.join(CHECKERS)}"
            ) from error
        found.append(read)
    if not found:
        raise ValueError(f"{path} holds no instructions")
    return found


def instruction_accuracy(
    instructions: Sequence[Instructed], answers: Sequence[str]
) -> InstructionAccuracy:
    """Return how many of the prompts are answered as instructed.

    Raises ValueError: not one answer per prompt.
    """
    if len(instructions) != len(answers):
        raise ValueError(f"{len(instructions)} prompts and {len(answers)} answers; give one each")
    pairs = [*zip(instructions, answers, strict=True)]
    results = [[fulfils(text, check) for check in each.checks] for each, text in pairs]
    strict = [all(each) for each in results]
    loose = [all(fulfils_loosely(text, check) for check in each.checks) for each, text in pairs]
    by_kind: dict[str, list[bool]] = {}
    for each, fulfilled in zip(instructions, results, strict=True):
        for check, result in zip(each.checks, fulfilled, strict=True):
            by_kind.setdefault(check["check"], []).append(result)
    return InstructionAccuracy(
        strict=count_interval(sum(strict), len(pairs)),
        loose=count_interval(sum(loose), len(pairs)),
        by_kind={
            name: count_interval(sum(each), len(each)) for name, each in sorted(by_kind.items())
        },
        each_strict=strict,
        each_loose=loose,
    )


def _check_parameters(check: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError for what no checker takes."""
    signature = inspect.signature(CHECKERS[check["check"]], eval_str=True)
    given = {name: value for name, value in check.items() if name != "check"}
    signature.bind("", **given)
    for name, value in given.items():
        TypeAdapter(signature.parameters[name].annotation).validate_python(value, strict=True)
