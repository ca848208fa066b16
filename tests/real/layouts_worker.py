"""Holds a step of the real model at TP3 and PP2 against the oracle; started by test_smollm2.py."""

from dataclasses import replace
from pathlib import Path

from torch.distributed import destroy_process_group, init_process_group

from tests.oracle.case import Case
from tests.oracle.compare import compare
from tests.oracle.product import start

# Nine heads and three key/value heads divide by 3, thirty layers by 2.
LAYOUTS = {
    3: {"tensor-model-parallel-size": 3, "sequence-parallel": True},
    2: {"pipeline-model-parallel-size": 2},
}
SEQKD = Case(
    {
        "stages": ("seqkd",),
        "seqkd.steps": 1,
        "seqkd.batch-size": 4,
        "seqkd.lr": 1e-5,
        "data.max-response-tokens": 32,
        "lr-warmup-steps": 0,
    }
)


def main(num_ranks: int, assets: Path, save: Path) -> None:
    """Take the step on every rank, each beside an oracle of its own."""
    init_process_group("gloo")
    case = replace(SEQKD, changed=SEQKD.changed | LAYOUTS[num_ranks])
    place = start(case.options(assets, save), world_size=num_ranks)
    compare(f"{num_ranks} ranks", case, assets, save, place)
    destroy_process_group()
