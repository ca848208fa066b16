"""Real SGLang servers that fail, by being killed, stopped or cut off: ``make test-sglang``."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from threading import Timer

import pytest
import torch
from torch import Tensor

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.server import ServerStartError
from megatron_gad.engines.sglang.site import ServerSite
from megatron_gad.types import Prompt
from tests.engines.sglang.servers import (
    BOUND,
    CONFIG,
    MARKS,
    harm_scheduler,
    largest_gap,
    make_prompts,
    processes_of,
    rollouts_of,
    weights_of,
)
from tests.processes import wait_until_gone

pytestmark = MARKS


def test_a_server_that_hangs_is_restarted_with_the_weights_and_its_requests_sent_again(
    engine, folders, caplog
):
    engine.load_weights(weights_of(folders["new"]), version=60)
    processes = processes_of(engine)
    server = engine.replicas[0].process
    sampling = SamplingConfig(num_samples=40, max_new_tokens=40)
    prompts = [Prompt(n, (), "", (5, 6 + n), ()) for n in range(12)]
    harmer = Timer(1.0, harm_scheduler, (processes, signal.SIGSTOP))
    harmer.start()
    groups = engine.generate(prompts, sampling)
    harmer.join()
    assert engine.replicas[0].process is not server
    # Noticed by asking how it is, before any request has taken too long.
    assert caplog.text.count("SGLang server failed (1)") == 1
    assert "timed out" not in caplog.text
    assert [len(group.rollouts) for group in groups] == [40] * 12
    assert {len(rollout.ids) for rollout in rollouts_of(groups)} == {40}
    assert {rollout.weights_version for rollout in rollouts_of(groups)} == {60}
    assert largest_gap(folders["new"], groups, 1.0) < BOUND
    assert wait_until_gone(processes) == []


def test_a_server_that_dies_between_two_buckets_is_restarted_and_given_all(engine, folders):
    processes = processes_of(engine)
    server = engine.replicas[0].process

    def weights() -> Iterator[tuple[str, Tensor]]:
        for number, named in enumerate(weights_of(folders["new"])):
            if number == 8:
                harm_scheduler(processes, signal.SIGKILL)
            yield named

    engine.load_weights(weights(), version=62)
    assert engine.replicas[0].process is not server
    groups = engine.generate(make_prompts(2), SamplingConfig(num_samples=2, max_new_tokens=8))
    assert {rollout.weights_version for rollout in rollouts_of(groups)} == {62}
    assert largest_gap(folders["new"], groups, 1.0) < BOUND
    assert wait_until_gone(processes) == []


def test_a_server_that_failed_once_too_often_ends_the_run_with_its_last_words(
    engine, folders, monkeypatch
):
    engine.load_weights(weights_of(folders["old"]), version=65)
    replica = engine.replicas[0]
    monkeypatch.setattr(replica, "_limits", replace(replica._limits, max_failures=0))
    harmer = Timer(1.0, harm_scheduler, (processes_of(engine), signal.SIGKILL))
    harmer.start()
    sampling = SamplingConfig(num_samples=40, max_new_tokens=40)
    with pytest.raises(RuntimeError, match=r"failed 1 times in a row[\s\S]*last lines of .*\.log"):
        engine.generate(make_prompts(12), sampling)
    harmer.join()
    monkeypatch.undo()
    engine.load_weights(weights_of(folders["old"]), version=66)
    engine.generate(make_prompts(1), SamplingConfig(max_new_tokens=4))
    assert replica.num_failures == 0


def test_a_server_that_cannot_start_says_why(folders, tmp_path):
    config = replace(CONFIG, server_args={"attention_backend": "no-such-thing"})
    with pytest.raises(ServerStartError, match="no-such-thing"):
        SGLangEngine(config, folders["old"], "cpu", torch.float32, ServerSite(folder=tmp_path))
