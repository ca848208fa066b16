"""Megatron needs process groups even on a single rank; these tests share one world of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.tiny import make_hf_folder


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    """A world of one."""
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 folder of 97 tokens with an output layer of its own."""
    return make_hf_folder(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def qwen2_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 folder whose output layer is the embedding."""
    return make_hf_folder(tmp_path_factory.mktemp("qwen2_tied"), tie=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3 folder."""
    return make_hf_folder(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE folder, two of four experts for a token."""
    return make_hf_folder(tmp_path_factory.mktemp("qwen3_moe"), "qwen3_moe")
