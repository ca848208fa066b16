"""The processes that compute the rewards, asked for a step's responses at once."""

import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_gad.config.rewards import RewardConfig

START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 5.0
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answered:
    """What a reward said of a batch of responses.

    values: one number a response; nan where it failed.
    errors: what went wrong there; empty where nothing did.
    """

    values: list[float]
    errors: list[str]


class RewardError(Exception):
    """A reward's process that cannot start, ends, or takes too long."""


class RewardWorker:
    """One reward in a process of its own, which is started when first asked."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def start(self) -> None:
        """Start the process, unless it runs. Raises RewardError if the function does not load."""
        if self._process is not None:
            return
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megatron_gad.engines.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        args = (self._process.stdout, self._lines)
        threading.Thread(target=_pass_on, args=args, daemon=True).start()
        own = self.config
        self._send({"function": own.function, "arguments": own.arguments,
                    "timeout_s": own.timeout_s})  # fmt: skip
        error = self._receive(time.monotonic() + START_TIMEOUT_S)["error"]
        if error:
            self.close()
            raise RewardError(error)

    def ask(self, rows: Rows) -> None:
        """Put a question; ``take`` has the answer."""
        self.start()
        self._send(list(rows))

    def take(self, count: int, deadline: float) -> Answered:
        """Wait for the answer to the question that was put.

        count: of its rows. deadline: on the monotonic clock.
        """
        said = self._receive(deadline)
        values = [math.nan if value is None else value for value in said["values"]]
        assert len(values) == count, (len(values), count)
        return Answered(values, said["errors"])

    def close(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.close()

    def _send(self, said: Any) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            self._kill()
            raise RewardError("its process ended; its output says why") from error

    def _receive(self, deadline: float) -> Any:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            self._kill()
            raise RewardError("it took too long") from error
        if not line:
            self._kill()
            raise RewardError("its process ended; its output says why")
        return json.loads(line)


class Rewards:
    """All rewards of a run but the discriminator's score."""

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        self._workers = [RewardWorker(each) for each in configs if each.function]

    def ask(self, rows: Rows) -> dict[str, Answered]:
        """Return what every reward says of the responses, by name.

        They work at the same time, each for as long as it may. One that fails as a whole, or takes
        too long, fails for every response.
        """
        failed: dict[str, str] = {}
        for worker in self._workers:
            try:
                worker.ask(rows)
            except RewardError as error:
                failed[worker.config.name] = str(error)
        start = time.monotonic()
        return {
            worker.config.name: self._take(worker, failed.get(worker.config.name), len(rows), start)
            for worker in self._workers
        }

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()

    def _take(
        self, worker: RewardWorker, failure: str | None, count: int, start: float
    ) -> Answered:
        if failure is None:
            try:
                return worker.take(count, start + worker.config.timeout_s)
            except RewardError as error:
                failure = f"{error} (timeout_s = {worker.config.timeout_s:g})"
        return Answered([math.nan] * count, [failure] * count)


def _pass_on(lines: Any, into: "queue.Queue[str]") -> None:
    """Hand on every line, and an empty one at the end."""
    for line in lines:
        into.put(line)
    into.put("")
