"""A checkpoint that lacks a part of a tensor is not written."""

from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_gad.training.checkpoint import _write
from megatron_gad.training.parallel import Parallel


def test_a_part_that_nobody_writes_is_refused(place: Parallel, tmp_path: Path) -> None:
    """Of three parts of a tensor one is missing, which no other rank has, either."""
    parts = {
        str(number): ShardedTensor.from_rank_offsets("weight", torch.zeros(2), (0, number, 3))
        for number in (0, 2)
    }
    with pytest.raises(CheckpointingException, match="Invalid access pattern"):
        _write(parts, tmp_path)
    assert not list(tmp_path.glob("*.distcp"))
