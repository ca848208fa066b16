"""When the engine asks its server to sleep and to wake, seen by what the server stands for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.site import ServerSite
from tests.recording_server import RecordingServer, recording_server
from tests.tiny import make_hf_folder

# Takes the place of an interpreter that has SGLang: passes on what it is asked to another server.
FORWARDER = f"""#!{sys.executable} -I
import socket, sys, threading
def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
while True:
    ours = listener.accept()[0]
    theirs = socket.create_connection(("127.0.0.1", PORT))
    for pair in ((ours, theirs), (theirs, ours)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
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
    """Start it, with weights in files."""
    python = tmp_path / "python"
    python.write_text(FORWARDER.replace("PORT", server.url.rpartition(":")[2]))
    python.chmod(0o755)
    config = SGLangConfig(python=str(python), weight_transport="disk")
    made = SGLangEngine(config, folder, "cpu", torch.float32, ServerSite(folder=tmp_path))
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


class Once(dict):
    """Answers of which each is given once."""

    def get(self, key, default=None):
        """Give an answer away."""
        return self.pop(key, default)


@pytest.fixture
def elsewhere(server: RecordingServer, folder: Path, tmp_path: Path) -> Iterator[SGLangEngine]:
    """Use the server at its URL."""
    config = SGLangConfig((server.url,), weight_transport="disk")
    made = SGLangEngine(config, folder, "cpu", torch.float32, ServerSite(folder=tmp_path))
    server.calls.clear()
    yield made
    made.close()


def test_a_server_at_a_url_stays_awake_and_needs_weights_again(
    elsewhere: SGLangEngine, server: RecordingServer, folder: Path
) -> None:
    load(elsewhere, folder)
    elsewhere.sleep()
    assert not {RELEASE, RESUME} & set(server.paths)
    with pytest.raises(RuntimeError, match="the engine has no weights"):
        elsewhere.generate([], SamplingConfig())


def test_a_server_that_fails_at_every_swap_ends_the_run_though_it_samples(
    elsewhere: SGLangEngine, server: RecordingServer, folder: Path
) -> None:
    """Each failure ends well, as the server takes the weights the second time."""

    def load_badly() -> None:
        server.answers = Once({"/update_weights_from_disk": (500, {})})
        load(elsewhere, folder)
        elsewhere.replicas[0].num_failures = 0  # as after a finished request

    for _ in range(2):
        for _ in range(3):
            load_badly()
        server.answers = {}
        load(elsewhere, folder)
    for _ in range(3):
        load_badly()
    with pytest.raises(
        RuntimeError, match=r"failed at 4 swaps of weights in a row, last with: .*500"
    ):
        load_badly()
