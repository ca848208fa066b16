"""Between data ranks, of one layout or two: whole items there, what was computed of them back.

Only costs go to all data ranks; of the items, each rank receives those of its own share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor

from megatron_gad.data.balance import balanced_shares
from megatron_gad.training.parallel import Parallel

T = TypeVar("T")


@dataclass(frozen=True)
class Moved(Generic[T]):
    """Items that came from one layout's data shares into another's.

    items: this rank's share in the layout they went to, never none.
    numbers: where they stand among the items of all shares they came from, in the order of ranks.
    origin: the numbers that this rank had in the layout they came from.
    """

    items: list[T]
    numbers: Sequence[int]
    origin: range
    source: Parallel
    target: Parallel

    def back(self, rows: Tensor) -> Tensor:
        """Return what was computed of the items that this rank had before.

        rows: [R, ...], as many rows for every item of ``items``, in their order.
        """
        if self.source is self.target:
            return rows
        every_share = self.target.gather_over_data((self.numbers, rows.cpu()))
        order = torch.tensor([number for numbers, _ in every_share for number in numbers])
        by_item = torch.cat([share for _, share in every_share]).unflatten(0, (len(order), -1))
        own = by_item[order.argsort()][self.origin.start : self.origin.stop]
        return own.flatten(0, 1)


def move(
    items: Sequence[T], cost: Callable[[T], float], source: Parallel, target: Parallel
) -> Moved[T]:
    """Share the items of all data ranks of one layout out to those of another, at equal cost.

    All ranks call it. How many items a share has differs from rank to rank, and none has none;
    their order stays. In one and the same layout, items stay where they are.

    items: this rank's share in ``source``; picklable.
    """
    if source is target:
        own = range(len(items))
        return Moved(list(items), own, own, source, target)
    return share_out(items, cost, source, target)


def share_out(
    items: Sequence[T], cost: Callable[[T], float], source: Parallel, target: Parallel
) -> Moved[T]:
    """Do what ``move`` does, between the data ranks of one and the same layout, too.

    Every rank receives its own share alone, from those that stand where it stands in ``source``,
    one of every data rank. What it has of that share already is not sent.
    """
    told = source.gather_over_data(([cost(item) for item in items], target.data_rank))
    sizes = [len(share) for share, _ in told]
    first = sum(sizes[: source.data_rank])
    own = dict(enumerate(items, start=first))
    costs = [each for share, _ in told for each in share]
    assert len(costs) >= target.data_size, f"{len(costs)} items for {target.data_size} data ranks"
    shares = balanced_shares(costs, target.data_size)
    parts = [{number: own[number] for number in share if number in own} for share in shares]
    held: dict[int, T] = {}
    for arrived in source.exchange_over_data([parts[data_rank] for _, data_rank in told]):
        held |= arrived
    numbers = shares[target.data_rank]
    origin = range(first, first + len(items))
    return Moved([held[number] for number in numbers], numbers, origin, source, target)


def rebalance(items: Sequence[T], cost: Callable[[T], float], parallel: Parallel) -> list[T]:
    """Return this data rank's share of all data ranks' items, in the order of ranks and items.

    How many items a share has differs from rank to rank. Only items that change their rank are
    sent, each to its new rank alone. On one data rank nothing happens.
    """
    if parallel.data_size == 1:
        return list(items)
    return share_out(items, cost, parallel, parallel).items


def take_turns(
    items: Sequence[T], numbers: Sequence[int], num_parts: int, parallel: Parallel
) -> list[list[T]]:
    """Return which of this data rank's items belong to each part.

    In the order of the numbers of all data ranks, items take turns. So the parts are the same on
    any number of data ranks.

    numbers: one for each item, different from all others.
    """
    order = sorted(chain.from_iterable(parallel.gather_over_data(list(numbers))))
    part_of = {number: place % num_parts for place, number in enumerate(order)}
    return [
        [item for item, number in zip(items, numbers, strict=True) if part_of[number] == part]
        for part in range(num_parts)
    ]
