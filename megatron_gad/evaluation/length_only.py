"""How far the lengths of two responses alone tell which is the teacher's."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class LengthSums(NamedTuple):
    """Sums over the pairs of one half of the prompts.

    longer: of +1 if the teacher's response is the longer one, -1 if it is the shorter, 0 if equal.
    along: of that times +1 if the discriminator puts the teacher's response ahead, -1 if behind.
    """

    longer: float = 0.0
    along: float = 0.0
    count: float = 0.0

    def plus(self, other: "LengthSums") -> "LengthSums":
        """Return the sums over both."""
        return LengthSums(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


def length_sums(differences: Tensor, margins: Tensor) -> LengthSums:
    """Return the sums of some pairs.

    differences: length of the teacher's response less the student's. margins: the same of scores.
    """
    longer = differences.sign().to(margins)
    along = longer * margins.sign()
    return LengthSums(float(longer.sum()), float(along.sum()), float(margins.numel()))


def length_only(halves: Sequence[LengthSums]) -> Mapping[str, float]:
    """Return how often a rule that sees the lengths alone is right, and agrees with the scores.

    The rule of a half takes the longer response for the teacher's if the teacher's is the longer
    one in most pairs of the other half, and else the shorter one. If the other half has as many of
    each, the rule guesses. Guesses and ties count half.
    """
    right = agreeing = 0.0
    for half, other in zip(halves, reversed(halves), strict=True):
        direction = (other.longer > 0) - (other.longer < 0)
        right += (half.count + direction * half.longer) / 2
        agreeing += (half.count + direction * half.along) / 2
    count = sum(half.count for half in halves)
    return {"length_only_accuracy": right / count, "length_only_agreement": agreeing / count}
