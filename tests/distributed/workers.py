"""What the workers of the distributed tests share."""

import gc
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch.distributed import barrier, destroy_process_group, distributed_c10d, get_rank


def drop_groups() -> None:
    """Make room for the process groups of another layout; every rank calls it before the first.

    Every gloo group keeps a thread that polls: those of all layouts together would starve the rest.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # what was imported holds no group, and is most of what there is to look at
    barrier()
    parallel_state.destroy_model_parallel()
    _take_models_apart()
    gc.collect()
    for group in list(distributed_c10d._world.pg_map):
        if group is not distributed_c10d.GroupMember.WORLD:
            destroy_process_group(group)


def _take_models_apart() -> None:
    """Let go of the groups that models hold, which outlive their trainers.

    A router keeps its last graph, whose nodes hold the model, and the collector cannot see that.
    """
    for found in gc.get_objects():
        if issubclass(type(found), MegatronModule):
            found.__dict__.clear()


def save(path: Path, value: Any) -> None:
    """Write what every rank knows, once."""
    if get_rank() == 0:
        torch.save(value, path)
