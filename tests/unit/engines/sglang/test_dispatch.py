"""What happens to requests when something fails that no server is known to do."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import pytest

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.client import ServerFailed
from megatron_gad.engines.sglang.dispatch import Dispatch
from megatron_gad.engines.sglang.requests import read_answer
from megatron_gad.types import Rollout

ROLLOUT = Rollout((1,), (-0.5,), "length", 0)


class Server:
    """Stands in for a replica; hangs, or fails and comes back, where it is told to."""

    def __init__(self, hangs: bool = False, back: threading.Event | None = None) -> None:
        """back: it fails, and is back when this is set."""
        self.hangs = hangs
        self.back = back
        self.aborted: list[str] = []
        self.generation = self.num_failures = 0
        self.lock = threading.Lock()

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.hangs:
            time.sleep(60)
        if self.back is not None and not self.back.is_set():
            raise ServerFailed("gone")
        return {}

    def recover(self, error: ServerFailed, load: Any, request_ids: list[str]) -> None:
        assert self.back is not None
        self.back.wait()

    def is_alive(self, health_timeout_s: float) -> bool:
        return True

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


def dispatch(servers: list[Server], read: Any) -> list[Rollout]:
    requests = [{"rid": str(number)} for number in range(24)]
    made = Dispatch(cast(Any, servers), requests, read, load=lambda replica: None, max_failures=3)
    return made.run(places=12, health_interval_s=60, health_timeout_s=60)


def test_an_error_that_nobody_expects_is_raised_and_hangs_nothing() -> None:
    def read(answer: Any) -> Rollout:
        raise ZeroDivisionError("unheard of")

    with pytest.raises(ZeroDivisionError, match="unheard of"):
        dispatch([Server()], read)


def test_places_on_a_hung_server_are_waited_for_together(monkeypatch) -> None:
    monkeypatch.setattr("megatron_gad.engines.sglang.dispatch.JOIN_TIMEOUT_S", 0.5)
    calls = []

    def read(answer: Any) -> Rollout:
        calls.append(answer)
        if len(calls) > 3:
            raise ZeroDivisionError
        return ROLLOUT

    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        dispatch([Server(), Server(hangs=True)], read)
    # Twelve places one after the other would be six seconds.
    assert time.monotonic() - start < 5


def test_answers_are_there_while_a_server_is_still_brought_back() -> None:
    back = threading.Event()
    failing = Server(back=back)

    def read(answer: Any) -> Rollout:
        while not failing.lock.locked():
            time.sleep(0.01)
        return ROLLOUT

    assert dispatch([failing, Server()], read) == [ROLLOUT] * 24
    assert failing.lock.locked()
    back.set()
    with failing.lock:
        assert failing.generation == 1


def test_an_interrupted_sampling_ends_and_stops_its_requests() -> None:
    server, working, aborted = Server(), threading.Barrier(13), threading.Event()

    def generate(body: dict[str, Any]) -> dict[str, Any]:
        working.wait(timeout=30)
        aborted.wait(timeout=30)
        raise ServerFailed("its finish reason is 'abort'")

    server.generate = generate  # type: ignore[method-assign]
    requests = [{"rid": str(number)} for number in range(24)]
    sampling = Dispatch(
        cast(Any, [server]), requests, lambda _: ROLLOUT, load=lambda _: None, max_failures=3
    )
    with ThreadPoolExecutor() as pool:
        running = pool.submit(sampling.run, places=12, health_interval_s=60, health_timeout_s=60)
        working.wait(timeout=30)
        sampling.interrupt("closed")
        assert {*server.aborted} == {str(number) for number in range(12)}
        aborted.set()
        with pytest.raises(RuntimeError, match="closed"):
            running.result(timeout=30)


def test_requests_go_to_the_server_with_the_fewest() -> None:
    servers = [Server(), Server(), Server()]
    all_taken = threading.Barrier(24)
    taken: Counter[Server] = Counter()
    lock = threading.Lock()

    def generate(server: Server, body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            taken[server] += 1
        all_taken.wait(timeout=30)
        return {}

    for server in servers:
        server.generate = partial(generate, server)  # type: ignore[method-assign]
    dispatch(servers, read=lambda answer: ROLLOUT)
    assert [taken[server] for server in servers] == [8, 8, 8]


def test_a_request_that_fails_on_and_on_ends_the_sampling() -> None:
    asked: list[str] = []

    def generate(body: dict[str, Any]) -> dict[str, Any]:
        if body["rid"].startswith("7"):
            asked.append(body["rid"])
            raise ServerFailed("too long for me")
        return {}

    back = threading.Event()
    back.set()
    server = Server(back=back)
    server.generate = generate  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="one request failed 5 times, last with: too long"):
        dispatch([server], read=lambda answer: ROLLOUT)
    # Each time under another id.
    assert asked == ["7", "7_1", "7_2", "7_3", "7_4"]


def test_a_number_without_end_is_a_broken_answer() -> None:
    meta = {
        "output_token_logprobs": [[-0.5, 1]],
        "finish_reason": {"type": "length"},
        "weight_version": "0",
    }
    whole = {"output_ids": [1], "meta_info": meta}
    sampling = SamplingConfig(max_new_tokens=1)
    assert read_answer(whole, sampling, version=0) == ROLLOUT
    with pytest.raises(ServerFailed, match="broken answer"):
        read_answer({**whole, "output_ids": [float("inf")]}, sampling, version=0)


def test_what_the_servers_did_is_counted() -> None:
    def generate(body: dict[str, Any]) -> dict[str, Any]:
        return {"meta_info": {"cached_tokens": 2}}

    server = Server()
    server.generate = generate  # type: ignore[method-assign]
    requests = [{"rid": str(number), "input_ids": [5, 6, 7]} for number in range(10)]
    made = Dispatch(
        cast(Any, [server]), requests, lambda _: ROLLOUT, load=lambda _: None, max_failures=3
    )
    made.run(places=4, health_interval_s=60, health_timeout_s=60)
    work = made.work()
    assert (work.tokens, work.prompt_tokens, work.cached_tokens) == (10, 30, 20)
    # No more than four at a time, and those behind them waited.
    assert 0 < work.running < 4 * work.seconds
    assert 0 < work.waiting < 10 * work.seconds
    assert work.moments == work.seconds
