"""One server for all test files of this folder: starting one takes as long as the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.site import ServerSite
from tests.engines.sglang.servers import CONFIG, VOCAB_SIZE, processes_of
from tests.processes import wait_until_gone
from tests.tiny import make_hf_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two models of one shape."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: make_hf_folder(root / name, "qwen2", VOCAB_SIZE, seed=seed)
        for seed, name in enumerate(("old", "new"))
    }


@pytest.fixture(scope="session")
def engine(folders, tmp_path_factory) -> Iterator[SGLangEngine]:
    """An engine with a server of its own; a test that needs weights loads them."""
    site = ServerSite(folder=tmp_path_factory.mktemp("logs"))
    engine = SGLangEngine(CONFIG, folders["old"], "cpu", torch.float32, site)
    yield engine
    processes = processes_of(engine)
    assert len(processes) >= 4  # keeper, server, scheduler, detokenizer
    engine.close()
    assert wait_until_gone(processes) == []
