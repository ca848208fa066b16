"""Trains on shares of very different size; started on two data ranks.

Arguments: the folder with the Hugging Face folders, into which the results go.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import destroy_process_group

from megatron_gad.training.options import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize
from megatron_gad.training.rebalance import rebalance
from tests.distributed.batching_cases import CASES, Case, make_groups, train, train_on_groups
from tests.tiny_training import rows_of


def train_unevenly(case: Case, folder: Path, place: Parallel) -> Any:
    """The first rank has one unit of rows, the second all others."""
    batch = case.batch()
    rows = slice(0, case.unit) if place.data_rank == 0 else slice(case.unit, None)
    trained = train(case, folder, place, rows_of(batch, rows))
    return place.gather_over_data(trained)


def main() -> None:
    """Run everything."""
    torch.distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    place = initialize(ParallelConfig(), seed=0)
    results = {name: train_unevenly(case, folder, place) for name, case in CASES.items()}
    results["shares"] = place.gather_over_data(
        rebalance([[9, 1], [8], [7, 4, 2]][:: 1 - 2 * place.data_rank], sum, place)
    )
    own = make_groups()[:1] if place.data_rank == 0 else make_groups()[1:]
    results["shared groups"] = place.gather_over_data(train_on_groups(folder, place, own))
    if place.is_writer:
        torch.save(results, folder / "batching.pt")
    destroy_process_group()


if __name__ == "__main__":
    main()
