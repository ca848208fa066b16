"""Groups whose rewards do not differ, replaced by groups of further prompts (DAPO's sampling)."""

from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from megatron_gad.stages.rewards import Rewarded
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Group


@dataclass(frozen=True)
class Scored:
    """Groups of this data rank with what the student learns from, a row of each tensor a group.

    scores_PG, advantages_PG: [P, G] float32.
    """

    groups: list[Group]
    scores_PG: Tensor
    rewarded: Rewarded
    advantages_PG: Tensor

    def is_flat(self) -> list[bool]:
        """Return for every group whether it teaches nothing."""
        return (self.advantages_PG == 0).all(dim=1).tolist()

    def row(self, place: int) -> "Scored":
        """Return one group alone."""
        only, whole = slice(place, place + 1), self.rewarded
        rewarded = Rewarded(
            whole.total_PG[only],
            whole.is_left_out_PG[only],
            {name: values[only] for name, values in whole.parts.items()},
            {},
        )
        return Scored(self.groups[only], self.scores_PG[only], rewarded, self.advantages_PG[only])

    def with_rows(self, rows: dict[int, "Scored"]) -> "Scored":
        """Return the same with other groups at some places."""
        places = range(len(self.groups))
        parts = [rows[place] if place in rows else self.row(place) for place in places]
        names = self.rewarded.parts
        rewarded = replace(
            self.rewarded,
            total_PG=torch.cat([part.rewarded.total_PG for part in parts]),
            is_left_out_PG=torch.cat([part.rewarded.is_left_out_PG for part in parts]),
            parts={n: torch.cat([part.rewarded.parts[n] for part in parts]) for n in names},
        )
        return Scored(
            [*chain.from_iterable(part.groups for part in parts)],
            torch.cat([part.scores_PG for part in parts]),
            rewarded,
            torch.cat([part.advantages_PG for part in parts]),
        )


def count_flat(parallel: Parallel, scored: Scored) -> int:
    """Return how many groups of all data ranks teach nothing."""
    return sum(parallel.gather_over_data(sum(scored.is_flat())))


def replace_flat(parallel: Parallel, scored: Scored, further: Scored) -> tuple[Scored, int]:
    """Put further groups that teach something in the places of groups that do not.

    Both in the order of their rows in the data, so that the result is the same on any data ranks.
    Of what does not match, flat groups stay and further ones are left out. Returns how many were
    replaced on all data ranks.
    """
    rank = parallel.data_rank
    places = [
        (group.prompt.index, rank, place)
        for place, (group, is_flat) in enumerate(zip(scored.groups, scored.is_flat(), strict=True))
        if is_flat
    ]
    useful = [
        (group.prompt.index, rank, further.row(place))
        for place, (group, is_flat) in enumerate(
            zip(further.groups, further.is_flat(), strict=True)
        )
        if not is_flat
    ]
    wanted = sorted(chain.from_iterable(parallel.gather_over_data(places)))
    given = sorted(
        chain.from_iterable(parallel.gather_over_data(useful)), key=lambda each: each[:2]
    )
    pairs = [*zip(wanted, given, strict=False)]
    own = {place: row for (_, at, place), (*_, row) in pairs if at == rank}
    return scored.with_rows(own), len(pairs)
