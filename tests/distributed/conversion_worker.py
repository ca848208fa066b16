"""Converts several times on the same four ranks; started by test_conversion.py."""

import torch.distributed as dist
import tyro

from megatron_gad.training import parallel
from tests.distributed.workers import drop_groups
from tools.convert_checkpoint import Arguments, convert


def main(commands: list[list[str]]) -> None:
    """Run them one after the other."""
    dist.init_process_group("gloo")
    for argv in commands:
        arguments = tyro.cli(Arguments, args=argv)
        drop_groups()
        place = parallel.initialize(arguments.layout(), seed=0)
        status = convert(arguments, place)
        assert status == 0, f"exit status {status} of {' '.join(argv)}"
    dist.destroy_process_group()
