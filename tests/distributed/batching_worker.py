"""Trains on shares of very different size; started on two data ranks.

``main`` takes the folder with the Hugging Face folders, into which the results go.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed import destroy_process_group

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.exchange import rebalance
from megatron_gad.training.parallel import Parallel, initialize
from tests.distributed.batching_cases import CASES, Case, make_groups, train, train_on_groups
from tests.tiny_training import rows_of


def train_unevenly(case: Case, folder: Path, place: Parallel) -> Any:
    """The first rank has one unit of rows, the second all others."""
    batch = case.batch()
    rows = slice(0, case.unit) if place.data_rank == 0 else slice(case.unit, None)
    trained = train(case, folder, place, rows_of(batch, rows))
    return place.gather_over_data(trained)


class Noted:
    """An item that notes when it is pickled."""

    sent: ClassVar[list[int]] = []

    def __init__(self, cost: int) -> None:
        self.cost = cost

    def __reduce__(self) -> tuple[type["Noted"], tuple[int]]:
        self.sent.append(self.cost)
        return Noted, (self.cost,)


def sent_and_held(place: Parallel) -> tuple[list[int], list[int]]:
    """Return the costs of the items that left this data rank, and of those in its new share."""
    costs = [9, 5, 4] if place.data_rank == 0 else [1, 2, 6]
    held = rebalance([Noted(cost) for cost in costs], lambda item: item.cost, place)
    return Noted.sent, [item.cost for item in held]


def main(folder: Path) -> None:
    """Run everything."""
    torch.distributed.init_process_group("gloo")
    place = initialize(ParallelConfig(), seed=0)
    results = {name: train_unevenly(case, folder, place) for name, case in CASES.items()}
    results["shares"] = place.gather_over_data(
        rebalance([[9, 1], [8], [7, 4, 2]][:: 1 - 2 * place.data_rank], sum, place)
    )
    results["sent and held"] = place.gather_over_data(sent_and_held(place))
    own = make_groups()[:1] if place.data_rank == 0 else make_groups()[1:]
    results["shared groups"] = place.gather_over_data(train_on_groups(folder, place, own))
    if place.is_writer:
        torch.save(results, folder / "batching.pt")
    destroy_process_group()
