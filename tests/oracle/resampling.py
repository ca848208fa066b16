"""Further groups in the places of those whose rewards do not differ, as the oracle has it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tests.oracle.rewards import advantages_of
from tests.oracle.texts import Sampled


def resampled(
    oracle: Any,
    groups: Sequence[Sampled],
    scores: Tensor,
    advantages: Tensor,
    further: Sequence[Sequence[Sampled]],
) -> tuple[list[Sampled], Tensor, int]:
    """Let further groups that differ take the places of groups that do not, row by row.

    Writes into scores and advantages.
    """
    groups, count = list(groups), 0

    def in_order(some: Sequence[Sampled], table: Tensor, differs: bool) -> list[int]:
        ranked = sorted(range(len(some)), key=lambda number: some[number].row)
        return [number for number in ranked if bool(table[number].any()) == differs]

    for more in further:
        rows = oracle._sampled_rows(more)
        _, new_scores, _ = oracle._judge(more, 0, learns=False)
        total, _ = oracle._summed(more, new_scores)
        total = total - oracle._penalty(rows, oracle._anchored(rows)).view_as(total)
        new = advantages_of(total, oracle.options["gad.advantage"])
        flat = in_order(groups, advantages, differs=False)
        for old, own in zip(flat, in_order(more, new, differs=True), strict=False):
            groups[old], advantages[old], scores[old] = more[own], new[own], new_scores[own]
            count += 1
    return groups, advantages, count
