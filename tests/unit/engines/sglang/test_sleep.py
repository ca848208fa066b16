"""When the engine asks its server to sleep and to wake, seen by a server at a URL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.launch import SGLangConfig
from tests.recording_server import RecordingServer, recording_server
from tests.tiny import make_hf_folder

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
FLUSHED = ("POST", "/flush_cache", {})
RELEASED = ("POST", RELEASE, {"tags": ["weights", "kv_cache", "cuda_graph"]})


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    """Run a server that has no weights yet."""
    with recording_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a model."""
    return make_hf_folder(tmp_path / "model")


@pytest.fixture
def engine(server: RecordingServer, folder: Path, tmp_path: Path) -> Iterator[SGLangEngine]:
    """Use the server, with weights in files."""
    config = SGLangConfig(urls=(server.url,), weight_folder=str(tmp_path / "weights"))
    made = SGLangEngine(config, folder, "cpu", torch.float32)
    server.calls.clear()
    yield made
    made.close()


def load(engine: SGLangEngine, folder: Path) -> None:
    """Swap the folder's weights in."""
    engine.load_weights(iter(load_file(folder / "model.safetensors").items()), version=1)


def test_a_server_sleeps_before_its_first_weights_and_wakes_with_them(
    engine: SGLangEngine, server: RecordingServer, folder: Path
) -> None:
    engine.sleep()
    engine.sleep()
    assert server.calls == [FLUSHED, RELEASED]
    server.calls.clear()
    load(engine, folder)
    resumed = [body["tags"] for _, path, body in server.calls if path == RESUME]
    assert resumed == [["weights"], ["kv_cache", "cuda_graph"]]
    order = [RESUME, "/update_weights_from_disk", RESUME, "/flush_cache"]
    assert server.paths[:4] == order


def test_a_server_sleeps_once_after_every_swap(
    engine: SGLangEngine, server: RecordingServer, folder: Path
) -> None:
    for _ in range(2):
        load(engine, folder)
        engine.sleep()
        engine.sleep()
    assert server.paths.count(RELEASE) == 2
    # The first swap found it awake.
    assert server.paths.count(RESUME) == 2


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_does_not_fall_asleep_is_asked_once(
    engine: SGLangEngine, server: RecordingServer, status: int
) -> None:
    server.answers[RELEASE] = (status, {})
    engine.sleep()
    engine.sleep()
    assert server.paths == ["/flush_cache", RELEASE]
