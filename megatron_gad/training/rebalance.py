"""Moves whole groups or rows between data ranks, so that all have as much to compute."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from megatron_gad.training.exchange import share_out
from megatron_gad.training.parallel import Parallel

T = TypeVar("T")


def rebalance(items: Sequence[T], cost: Callable[[T], float], parallel: Parallel) -> list[T]:
    """Return this data rank's share of all data ranks' items, in the order of ranks and items.

    How many items a share has differs from rank to rank. Only items that change their rank are
    sent, each to its new rank alone. On one data rank nothing happens.
    """
    if parallel.data_size == 1:
        return list(items)
    return share_out(items, cost, parallel, parallel).items
