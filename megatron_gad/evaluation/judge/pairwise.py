"""Pairs of answers, each shown in both orders: who wins, and how far the judge can be trusted."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_gad.evaluation.judge.calls import Judge
from megatron_gad.evaluation.judge.prompt_files import JudgePrompts

_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
FIRST, SECOND = "shown first", "shown second"


@dataclass(frozen=True)
class Pair:
    """The verdicts on one pair, for the model: 1 it wins, 0 it loses, 0.5 a tie.

    first: the model's answer was shown first. second: it was shown second.
    """

    first: float
    second: float

    @property
    def preference(self) -> float:
        """The mean of both orders."""
        return (self.first + self.second) / 2.0

    @property
    def is_contradicted(self) -> bool:
        """Whether the two orders have different outcomes, which is the judge's own noise."""
        return self.first != self.second


@dataclass(frozen=True)
class Orders:
    """How much the order of the answers says, over the pairs with both verdicts.

    disagreement: share of pairs with another outcome in the other order.
    first_wins: share of the verdicts other than ties that went to the answer shown first; 0.5 if
        the place does not matter.
    """

    disagreement: float
    first_wins: float


def compare(
    judge: Judge,
    prompts: JudgePrompts,
    conversations: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    baseline: Sequence[str],
) -> dict[str, list[Pair | None]]:
    """Return model -> verdicts on each of its answers against the baseline's; None without both."""
    calls: dict[str, str] = {}
    for model, texts in answers.items():
        for place, (text, other) in enumerate(zip(texts, baseline, strict=True)):
            for order, (a, b) in {FIRST: (text, other), SECOND: (other, text)}.items():
                calls[f"{place}/{order}/{model}"] = prompts.write(
                    "pairwise.txt", conversation=conversations[place], answer_a=a, answer_b=b
                )
    given = judge.ask(calls, read_winner, "pairs").given
    found: dict[str, list[Pair | None]] = {}
    for model in answers:
        found[model] = []
        for place in range(len(conversations)):
            first = given.get(f"{place}/{FIRST}/{model}")
            second = given.get(f"{place}/{SECOND}/{model}")
            if first is None or second is None:
                found[model].append(None)
            else:
                found[model].append(Pair(first, 1.0 - second))
    return found


def read_winner(text: str) -> float | None:
    """Return 1 if answer A won, 0 if B did, 0.5 for a tie; None for no verdict or several."""
    found = {*_VERDICT.findall(text)}
    return {"A": 1.0, "B": 0.0, "C": 0.5}[found.pop()] if len(found) == 1 else None


def orders(pairs: Sequence[Pair | None]) -> Orders | None:
    """Return what the order did; None without any pair."""
    seen = [pair for pair in pairs if pair is not None]
    if not seen:
        return None
    firsts = [x for pair in seen for x in (pair.first, 1.0 - pair.second) if x != 0.5]
    return Orders(
        disagreement=sum(pair.is_contradicted for pair in seen) / len(seen),
        first_wins=sum(firsts) / len(firsts) if firsts else 0.5,
    )
