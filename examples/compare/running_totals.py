"""Running totals: a task in which every prompt has one right answer, and no layout to choose.

A prompt starts at a digit and names six operations: ``from 4 add 7 times 3 less 5 add 2 ...``. The
answer is the last digit of the total after each of them: ``1 3 8 0 ...``. An error goes on into all
that follows, so a response is right only if every step is.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

NUM_OPERATIONS = 6
MODULUS = 10
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda total, number: (total + number) % MODULUS,
    "less": lambda total, number: (total - number) % MODULUS,
    "times": lambda total, number: (total * number) % MODULUS,
}
SMALLEST, LARGEST = 2, 9  # operands

_PROMPT = re.compile(rf"from (?P<start>\d)(?P<rest>(?: (?:{'|'.join(OPERATIONS)}) \d){{1,}})")


@dataclass(frozen=True)
class Graded:
    """What the checker says about one response.

    is_right: every total is the teacher's. has_form: as many digits as there are operations.
    good_steps, num_steps: totals that follow from the one written before, and all of them; of a
        response without the form none count.
    """

    is_right: bool
    has_form: bool
    good_steps: int
    num_steps: int


def draw_prompts(seed: int, count: int) -> list[str]:
    """Draw different prompts in a seeded order."""
    generator = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        steps = [
            f" {generator.choice([*OPERATIONS])} {generator.randint(SMALLEST, LARGEST)}"
            for _ in range(NUM_OPERATIONS)
        ]
        found[f"from {generator.randrange(MODULUS)}{''.join(steps)}"] = None
    return [*found]


def answer_of(prompt: str) -> str:
    """Return the one right response.

    Raises:
        ValueError: the text is not a prompt of this task.
    """
    total, steps = _read(prompt)
    totals: list[str] = []
    for name, number in steps:
        total = OPERATIONS[name](total, number)
        totals.append(str(total))
    return " ".join(totals) + "."


def grade(prompt: str, response: str) -> Graded:
    """Compare a response with the right one, and each step with the step before it."""
    total, steps = _read(prompt)
    if not re.fullmatch(rf"\d(?: \d){{{len(steps) - 1}}}\.", response):
        return Graded(False, False, 0, 0)
    written = [int(digit) for digit in re.findall(r"\d", response)]
    good = 0
    for (name, number), claimed in zip(steps, written, strict=True):
        good += claimed == OPERATIONS[name](total, number)
        total = claimed
    return Graded(response == answer_of(prompt), True, good, len(steps))


def report(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Any]:
    """Summarise what the checker says: accuracy, form_share and step_accuracy, as shares."""
    graded = [grade(*pair) for pair in zip(prompts, responses, strict=True)]
    num_steps = sum(each.num_steps for each in graded)
    return {
        "accuracy": sum(each.is_right for each in graded) / len(graded),
        "form_share": sum(each.has_form for each in graded) / len(graded),
        "step_accuracy": sum(each.good_steps for each in graded) / max(1, num_steps),
    }


def _read(prompt: str) -> tuple[int, list[tuple[str, int]]]:
    match = _PROMPT.fullmatch(prompt)
    if not match:
        raise ValueError(
            f"{prompt[:80]!r} is no prompt of the task; write 'from <digit>' and operations such "
            "as 'add 7'"
        )
    words = match["rest"].split()
    return int(match["start"]), [
        (name, int(number)) for name, number in zip(words[::2], words[1::2], strict=True)
    ]
