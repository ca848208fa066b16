"""Robot turns: a text task small enough for a laptop whose answers a program can check.

A prompt names a direction and five or six turns: ``face west turn right right back left right``.
The teacher is always right and answers in one of three layouts:

    because   facing south, because west right north right east ... right south.
    steps     from west right north right east ... right south, so south.
    list      * west right north right east ... right south > south

"because" names the answer before the working, the other two after it. The checker reads a whole
response; training never sees it.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

DIRECTIONS = ("north", "east", "south", "west")  # clockwise
QUARTER_TURNS = {"right": 1, "back": 2, "left": 3}
NUM_TURNS = (5, 6)
LAYOUT_WEIGHTS = {"because": 0.50, "steps": 0.25, "list": 0.25}

_DIRECTION = "(?:" + "|".join(DIRECTIONS) + ")"
_TURN = "(?:" + "|".join(QUARTER_TURNS) + ")"
_WORKING = rf"(?P<working>{_DIRECTION}(?: {_TURN} {_DIRECTION})+)"
_ANSWER = rf"(?P<answer>{_DIRECTION})"
_LAYOUTS = {
    "because": re.compile(rf"facing {_ANSWER}, because {_WORKING}\."),
    "steps": re.compile(rf"from {_WORKING}, so {_ANSWER}\."),
    "list": re.compile(rf"\* {_WORKING} > {_ANSWER}"),
}
_PROMPT = re.compile(
    rf"face (?P<start>{_DIRECTION}) turn"
    rf"(?P<turns>(?: {_TURN}){{{NUM_TURNS[0]},{NUM_TURNS[-1]}}})"
)
_WORD = re.compile(r"[a-z]+|[^a-z\s]")


@dataclass(frozen=True)
class Verdict:
    """What the checker says about one response.

    layout: the layout that the whole response follows, or None where it follows none.
    is_right: every step of the working and every copy of the answer are right.
    """

    layout: str | None
    is_right: bool


@dataclass(frozen=True)
class Split:
    """Disjoint prompts: to train on, to watch the training, and to report on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def all_prompts() -> list[str]:
    """Return the 3,888 prompts of the task in a fixed order."""
    return [
        f"face {start} turn {' '.join(turns)}"
        for length in NUM_TURNS
        for start in DIRECTIONS
        for turns in product(QUARTER_TURNS, repeat=length)
    ]


def split_prompts(
    seed: int, num_train: int = 2500, num_validation: int = 300, num_test: int = 400
) -> Split:
    """Draw disjoint prompts in a seeded order.

    Raises:
        ValueError: more prompts are asked for than exist.
    """
    prompts = all_prompts()
    wanted = num_train + num_validation + num_test
    if wanted > len(prompts):
        raise ValueError(
            f"num_train + num_validation + num_test = {wanted}, but the task has only"
            f" {len(prompts)} prompts; ask for fewer"
        )
    random.Random(seed).shuffle(prompts)
    held_out = num_train + num_validation
    return Split(
        train=tuple(prompts[:num_train]),
        validation=tuple(prompts[num_train:held_out]),
        test=tuple(prompts[held_out:wanted]),
    )


def teacher_answer(prompt: str, seed: int) -> str:
    """Return the teacher's response: always right, in a layout drawn for this prompt and seed.

    Raises:
        ValueError: the text is not a prompt of this task.
    """
    working = _working(prompt)
    generator = random.Random(f"{seed} {prompt}")
    (layout,) = generator.choices(list(LAYOUT_WEIGHTS), weights=list(LAYOUT_WEIGHTS.values()))
    return write_answer(layout, " ".join(working), working[-1])


def write_answer(layout: str, working: str, answer: str) -> str:
    """Return a response in a layout; working is "west right north ...", answer a direction."""
    if layout == "because":
        return f"facing {answer}, because {working}."
    if layout == "steps":
        return f"from {working}, so {answer}."
    if layout == "list":
        return f"* {working} > {answer}"
    raise ValueError(f"layout = {layout!r} is unknown; use one of {', '.join(LAYOUT_WEIGHTS)}")


def check(prompt_text: str, response_text: str) -> Verdict:
    """Judge a whole response: one layout, every step right, every copy of the answer right.

    Raises:
        ValueError: prompt_text is not a prompt of this task.
    """
    working = _working(prompt_text)
    for layout, pattern in _LAYOUTS.items():
        match = pattern.fullmatch(response_text)
        if match:
            is_right = match["working"].split(" ") == working and match["answer"] == working[-1]
            return Verdict(layout, is_right)
    return Verdict(None, False)


def report(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Any]:
    """Summarise the checker's verdicts, one response per prompt.

    Returns:
        num_responses; accuracy, the share that is right; layout_shares, per layout and "none";
        accuracy_by_layout, None for a layout without a response; length_mean, in words, where a
        punctuation mark counts as one; layout_entropy, in nats over the responses that follow a
        layout (at most ln 3 = 1.10).

    Raises:
        ValueError: no responses, or not one per prompt.
    """
    if not responses or len(prompts) != len(responses):
        raise ValueError(
            f"{len(prompts)} prompts and {len(responses)} responses; give one response per prompt"
            " and at least one"
        )
    verdicts = [check(*pair) for pair in zip(prompts, responses, strict=True)]
    counts = Counter(verdict.layout for verdict in verdicts)
    right = Counter(verdict.layout for verdict in verdicts if verdict.is_right)
    total = len(verdicts)
    shares = {layout: counts[layout] / total for layout in LAYOUT_WEIGHTS}
    return {
        "num_responses": total,
        "accuracy": right.total() / total,
        "layout_shares": shares | {"none": counts[None] / total},
        "accuracy_by_layout": {
            layout: right[layout] / counts[layout] if counts[layout] else None
            for layout in LAYOUT_WEIGHTS
        },
        "length_mean": sum(count_words(response) for response in responses) / total,
        "layout_entropy": _entropy([counts[layout] for layout in LAYOUT_WEIGHTS]),
    }


def count_words(text: str) -> int:
    """Return the number of words and punctuation marks, each of which is one token."""
    return len(_WORD.findall(text))


def _working(prompt: str) -> list[str]:
    """Return start, turn, direction, turn, direction, ... of a prompt."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        raise ValueError(
            f"{prompt[:80]!r} is no prompt of the task; write 'face <direction> turn' and five or"
            f" six of {', '.join(QUARTER_TURNS)}"
        )
    heading = DIRECTIONS.index(match["start"])
    working = [match["start"]]
    for turn in match["turns"].split():
        heading = (heading + QUARTER_TURNS[turn]) % len(DIRECTIONS)
        working += [turn, DIRECTIONS[heading]]
    return working


def _entropy(counts: Sequence[int]) -> float:
    """Return the entropy, in nats, of the distribution that the counts describe; 0 if none."""
    total = sum(counts)
    return sum(count / total * math.log(total / count) for count in counts if count)
