"""What needs a GPU is marked, and skipped with the reason where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.tiny import make_hf_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    """A world of one, on the GPU."""
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 folder whose widths FP8 matrix products take."""
    return make_hf_folder(
        tmp_path_factory.mktemp("qwen2"),
        vocab_size=512,
        tie=True,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
    )
