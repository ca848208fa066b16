"""Megatron needs process groups even on a single rank; these tests share one world of one."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed


@pytest.fixture(scope="module", autouse=True)
def single_rank() -> Iterator[None]:
    """Start a world of one, and end it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
