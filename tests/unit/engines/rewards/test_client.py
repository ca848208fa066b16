"""Rewards in processes of their own: what they answer, and what becomes of those that fail."""

import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from megatron_gad.config.rewards import RewardConfig
from megatron_gad.engines.rewards.client import Answered, Rewards

ROWS = [{"row": row, "length": 10 * row} for row in range(1, 4)]


def _ask(*configs: RewardConfig, times: int = 1) -> dict[str, Answered]:
    rewards = Rewards(configs)
    try:
        return [rewards.ask(ROWS) for _ in range(times)][-1]
    finally:
        rewards.close()


def _given(name: str, **changed: Any) -> RewardConfig:
    return RewardConfig(name=name, function=f"tests.unit.engines.rewards.given:{name}", **changed)


def test_functions_answer_for_all_rows_with_their_arguments() -> None:
    twice = RewardConfig("twice", "tests.unit.engines.rewards.given:lengths", {"factor": 2})
    score = RewardConfig("discriminator")
    answers = _ask(_given("lengths"), score, twice, times=2)
    assert answers == {
        "lengths": Answered([10.0, 20.0, 30.0], ["", "", ""]),
        "twice": Answered([20.0, 40.0, 60.0], ["", "", ""]),
    }


def test_a_row_that_fails_is_told_with_its_traceback_and_the_others_count() -> None:
    answer = _ask(_given("fails_for_row_two"))["fails_for_row_two"]
    assert (answer.values[0], answer.values[2]) == (-1.0, 1.0)
    assert math.isnan(answer.values[1])
    assert [bool(error) for error in answer.errors] == [False, True, False]
    assert "ZeroDivisionError" in answer.errors[1]
    assert "given.py" in answer.errors[1]


def test_what_is_no_number_is_a_failure_of_its_row() -> None:
    assert _ask(_given("not_numbers"))["not_numbers"].errors == [
        "returned nan, no number",
        "returned 'x', no number",
        "returned None, no number",
    ]


def test_too_few_numbers_are_a_failure() -> None:
    errors = _ask(_given("too_few"))["too_few"].errors
    assert ["returned 0 numbers for 1 rows" in error for error in errors] == [True] * 3


def test_a_function_that_takes_too_long_fails_and_the_others_count() -> None:
    start = time.monotonic()
    answers = _ask(_given("sleeps", timeout_s=3.0), _given("lengths"), times=2)
    assert time.monotonic() - start < 30
    assert answers["sleeps"].errors == ["it took too long (timeout_s = 3)"] * 3
    assert answers["lengths"].values == [10.0, 20.0, 30.0]


def test_a_process_that_ends_is_started_again() -> None:
    answers = _ask(_given("ends_its_process"), times=2)
    expected = "its process ended; its output says why (timeout_s = 60)"
    assert answers["ends_its_process"].errors == [expected] * 3


def test_a_function_that_does_not_load_fails_with_its_traceback() -> None:
    answers = _ask(RewardConfig("a", "tests.unit.engines.rewards.given:missing"))
    assert "AttributeError" in answers["a"].errors[0]


@pytest.fixture
def url() -> Iterator[str]:
    """A server that fails once, and then rewards the length."""
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(len(said["rows"]))
            is_first = len(asked) == 1
            rewards = [said["arguments"]["factor"] * row["length"] for row in said["rows"]]
            self.send_response(503 if is_first else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"rewards": rewards}).encode())

        def log_message(self, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/rewards"
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_again_until_it_answers(url: str) -> None:
    answers = _ask(RewardConfig("served", url, {"factor": 0.5}))
    assert answers["served"] == Answered([5.0, 10.0, 15.0], ["", "", ""])
