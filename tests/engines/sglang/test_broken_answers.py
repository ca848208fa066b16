"""A server at a URL that answers wrongly, not at all, or is not there: ``make test-sglang``.

A real server cannot be made to do so. A proxy in front of it can.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.engine import SGLangEngine
from tests.engines.sglang.faulty_proxy import Fault, FaultyProxy
from tests.engines.sglang.servers import (
    BOUND,
    CONFIG,
    MARKS,
    STOP,
    harm_scheduler,
    largest_gap,
    make_prompts,
    processes_of,
    rollouts_of,
    weights_of,
)

pytestmark = MARKS
FAULTS: dict[int, Fault] = {
    5: "500",
    20: "garbage",
    40: "truncated",
    60: "cut",
    80: "port",
    110: "hang",
}
CONFIG_AT_URL = replace(
    CONFIG,
    max_running_requests=4,
    health_timeout_s=10,
    server_args={},
)


@contextmanager
def behind(proxy: FaultyProxy, folder: Path, **settings: Any) -> Iterator[SGLangEngine]:
    """Reach the server through a proxy, and let go of both in the end."""
    config = replace(CONFIG_AT_URL, urls=(proxy.url,), **settings)
    try:
        by_url = SGLangEngine(config, folder, "cpu", torch.float32)
        try:
            yield by_url
        finally:
            by_url.close()
    finally:
        proxy.close()


def test_every_request_has_one_answer_whatever_happens_on_the_way(engine, folders):
    proxy = FaultyProxy(engine.replicas[0].name, FAULTS)
    with behind(proxy, folders["new"]) as by_url:
        by_url.load_weights(weights_of(folders["new"]), version=80)
        sampling = SamplingConfig(num_samples=15, max_new_tokens=8)
        groups = by_url.generate(make_prompts(10), sampling)
        assert proxy.happened == list(FAULTS.values())
        assert [len(group.rollouts) for group in groups] == [15] * 10
        assert {len(rollout.ids) for rollout in rollouts_of(groups)} == {8}
        assert {rollout.weights_version for rollout in rollouts_of(groups)} == {80}
        assert largest_gap(folders["new"], groups, 1.0) < BOUND
        assert len(proxy.answered) == 150
        assert set(proxy.answered.values()) == {1}


def test_a_request_that_is_never_answered_is_sent_again_after_its_time(engine, folders):
    proxy = FaultyProxy(engine.replicas[0].name, {3: "silent"})
    with behind(proxy, folders["new"], request_timeout_s=10) as by_url:
        by_url.load_weights(weights_of(folders["new"]), version=82)
        groups = by_url.generate(make_prompts(4), SamplingConfig(num_samples=4, max_new_tokens=8))
        assert proxy.happened == ["silent"]
        assert [len(group.rollouts) for group in groups] == [4] * 4
        assert len(proxy.answered) == 16
        assert set(proxy.answered.values()) == {1}


@pytest.mark.parametrize(
    ("path", "fault", "transport"),
    [
        ("/init_weights_update_group", "hang", "broadcast"),
        ("/update_weights_from_distributed", "hang", "broadcast"),
        ("/update_weights_from_distributed", "500", "broadcast"),
        ("/update_weights_from_disk", "cut", "disk"),
        ("/flush_cache", "port", "disk"),
        ("/weights_checker", "hang", "disk"),
        ("/weights_checker", "garbage", "disk"),
    ],
)
def test_a_server_that_fails_in_a_swap_is_given_the_weights_again(
    engine, folders, path, fault, transport
):
    engine.load_weights(weights_of(folders["old"]), version=83)
    proxy = FaultyProxy(engine.replicas[0].name, {1: fault}, path)
    with behind(proxy, folders["new"], weight_transport=transport, request_timeout_s=5) as by_url:
        by_url.load_weights(weights_of(folders["new"]), version=84)
        assert proxy.happened == [fault]
        by_url.verify()
        groups = by_url.generate(make_prompts(2), SamplingConfig(num_samples=2, max_new_tokens=8))
        assert {rollout.weights_version for rollout in rollouts_of(groups)} == {84}
        assert largest_gap(folders["new"], groups, 1.0) < BOUND


def test_checksums_are_compared_on_the_first_and_every_second_swap(engine, folders):
    proxy = FaultyProxy(engine.replicas[0].name, {}, path="/weights_checker")
    with behind(proxy, folders["new"], verify_interval=2) as by_url:
        counts = []
        for version in range(85, 90):
            by_url.load_weights(weights_of(folders["new"]), version)
            counts.append(proxy.num_calls)
        assert counts == [1, 1, 2, 2, 3]


def test_an_engine_that_is_closed_while_it_samples_stops_its_requests(engine, folders):
    proxy = FaultyProxy(engine.replicas[0].name, {}, path="/abort_request")
    settings: dict[str, Any] = {"max_running_requests": 16}
    with behind(proxy, folders["new"], **settings) as by_url, ThreadPoolExecutor() as pool:
        by_url.load_weights(weights_of(folders["new"]), version=91)
        sampling = SamplingConfig(num_samples=500, max_new_tokens=50, stop_ids=STOP)
        sampled = pool.submit(by_url.generate, make_prompts(4), sampling)
        while not proxy.answered and not sampled.done():
            time.sleep(0.01)
        # Stopped amid requests of many lengths, it finds them ended when it goes on.
        harm_scheduler(processes_of(engine), signal.SIGSTOP)
        closing = pool.submit(by_url.close)
        while proxy.num_calls < 8 and not closing.done():
            time.sleep(0.01)
        harm_scheduler(processes_of(engine), signal.SIGCONT)
        closing.result()
        with pytest.raises(RuntimeError, match="closed while it sampled"):
            sampled.result()
        assert proxy.num_calls
        assert 0 in proxy.answered.values()  # asked, and ended by the server without a whole answer
        # The server works for others.
        engine.load_weights(weights_of(folders["old"]), version=92)
        engine.generate(make_prompts(1), SamplingConfig(max_new_tokens=4))


def test_a_server_that_fails_for_ever_ends_the_run_with_its_address(engine, folders):
    proxy = FaultyProxy(engine.replicas[0].name, {}, always="500")
    with behind(proxy, folders["new"]) as by_url:
        by_url.load_weights(weights_of(folders["new"]), version=81)
        with pytest.raises(
            RuntimeError, match=rf"{proxy.url} failed 4 times in a row, last with: .*answers 500"
        ):
            by_url.generate(make_prompts(4), SamplingConfig(num_samples=2, max_new_tokens=8))
        assert set(proxy.happened) == {"500"}
