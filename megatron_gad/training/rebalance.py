"""Moves whole groups or rows between data ranks, so that all have as much to compute."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from megatron_gad.data.balance import balanced_shares
from megatron_gad.training.parallel import Parallel

T = TypeVar("T")


def rebalance(items: Sequence[T], cost: Callable[[T], float], parallel: Parallel) -> list[T]:
    """Return this data rank's share of all data ranks' items, in the order of ranks and items.

    How many items a share has differs from rank to rank. Only items that change their rank are
    sent. On one data rank nothing happens.
    """
    if parallel.data_size == 1:
        return list(items)
    costs = parallel.gather_over_data([cost(item) for item in items])
    first = sum(len(each) for each in costs[: parallel.data_rank])
    own = dict(enumerate(items, start=first))
    shares = balanced_shares([each for rank in costs for each in rank], parallel.data_size)
    mine = shares[parallel.data_rank]
    leaving = {number: item for number, item in own.items() if number not in mine}
    held = own
    for arriving in parallel.gather_over_data(leaving):
        held = held | arriving
    return [held[number] for number in mine]
