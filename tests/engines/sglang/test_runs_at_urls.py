"""Runs whose SGLang server somebody else started: ``make test-sglang``."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.data.order import PromptOrder
from megatron_gad.engines.sglang.launch import (
    server_arguments,
    server_environment,
    start_server,
    write_model_folder,
)
from megatron_gad.engines.sglang.server import ServerProcess
from megatron_gad.environment import SERVER_KEY
from megatron_gad.models.families import load_hf_config
from tests.e2e import tiny_run
from tests.engines.sglang.runs import BOUND, COMMON
from tests.engines.sglang.servers import MARKS, SERVER_PYTHON

pytestmark = MARKS

KEY = "the servers' key"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the tiny student's shape, with random weights, that is not the run's own."""
    folder = tmp_path_factory.mktemp("server")
    hf_config = load_hf_config(tiny_run.assets() / "student")
    model = write_model_folder(hf_config, folder / "model")
    config = SGLangConfig(
        python=str(SERVER_PYTHON),
        server_args={"max_total_tokens": 16384, "api_key": KEY},
    )
    cpu = torch.device("cpu")
    arguments = server_arguments(config, cpu, torch.float32, number=0)
    environment = server_environment(config, os.environ, cpu)
    process = start_server(config, model, arguments, environment, folder / "server.log")
    try:
        process.wait_until_healthy(600)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SERVER_KEY, KEY)
            yield process
    finally:
        process.stop()


def test_a_server_at_a_url_takes_the_weights_of_every_step_from_the_disk(
    server: ServerProcess, tmp_path: Path
) -> None:
    flags = ("--sglang.urls", server.url, "--sglang.weight-transport", "disk")
    records = tiny_run.run(tmp_path / "run", *COMMON, *flags, "--adversarial.steps", "3")
    assert [record["engine/weights_lag"] for record in records] == [0.0] * 3
    assert max(record["engine/logprob_gap_max"] for record in records) < BOUND
    assert all(record["swap/bytes"] > 0 for record in records)
    assert server.is_alive


def test_overlap_stops_and_goes_on_without_losing_a_prompt_and_swaps_by_broadcast(
    server: ServerProcess, tmp_path: Path
) -> None:
    save = tmp_path / "run"
    flags = ("--sglang.urls", server.url, "--sglang.weight-transport", "broadcast")
    flags += ("--adversarial.overlap", "--adversarial.steps")
    process = tiny_run.start(save, *COMMON, *flags, "1000")
    tiny_run.wait_for_steps(process, save, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 0, tiny_run.log_of(save).read_text()[-4000:]
    saved = len(tiny_run.metrics(save))
    assert saved >= 3
    records = tiny_run.run(save, *COMMON, *flags, str(saved + 3))
    assert [record["step"] for record in records] == list(range(1, saved + 4))
    assert [record["engine/weights_lag"] for record in records] == [0.0] + [1.0] * (saved + 2)
    # Every swap is followed by a comparison with the new weights, on a probe.
    assert max(record.get("engine/logprob_gap_max", 0.0) for record in records) < BOUND
    order = PromptOrder(num_rows=64, seed=1234)
    for step in range(1, saved + 4):
        lines = (save / f"rollouts/step_{step:07d}_0.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt_index"] for line in lines] == order.take(4)
    assert server.is_alive
