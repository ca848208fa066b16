"""Many questions in flight at once, until all are answered, or no more should be asked."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NoReturn, TypeVar

from megatron_gad.engines.asking.budget import Budget, Spent
from megatron_gad.engines.asking.endpoint import Endpoint, Messages
from megatron_gad.engines.asking.failure import Failure, Remedy
from megatron_gad.engines.asking.reply import Answer

logger = logging.getLogger(__name__)

Key = TypeVar("Key")


@dataclass(frozen=True)
class Question(Generic[Key]):
    """A conversation, whom it is put to, and a key that names it to the caller."""

    key: Key
    messages: Messages
    endpoint: Endpoint


@dataclass(frozen=True)
class Limits:
    """How many questions are in flight, and when no more are asked.

    stop_after_failures: number of questions without an answer, one after another; 0: never.
    max_cost: cost that ends the asking, in the currency of the prices. A question waits while it
        and those in flight might reach it, as far as ``Target.most_cost`` and the answers so far
        tell: without a cap of its tokens, one answer can cost more than any before.
    grace_s: the longest wait for answers in flight once no more are asked.
    most_s: the longest that all questions of one asking take; what is in flight then is lost.
    """

    concurrency: int = 16
    stop_after_failures: int = 50
    max_cost: float = math.inf
    grace_s: float = 120.0
    most_s: float = math.inf


@dataclass
class Tally(Generic[Key]):
    """Counts while questions are in flight.

    reasons: key -> why a question has no answer.
    cost: in the currency of the prices; refused and lost answers that name no tokens are not in it.
    num_failed_in_a_row: questions without an answer since the last one with.
    stopped: why no more questions are asked; empty while they are.
    """

    reasons: dict[Key, str] = field(default_factory=dict[Key, str])
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    num_failed_in_a_row: int = 0
    stopped: str = ""


class _Stopped(Exception):
    """Ends a worker, and tells the others."""


class Pool(Generic[Key]):
    """Asks questions and hands the answers on; ``tally`` says what happened."""

    def __init__(
        self,
        limits: Limits,
        keep: Callable[[Question[Key], Answer], Awaitable[str]],
        after_each: Callable[[], None],
        spent: float = 0.0,
        largest: float | None = None,
    ) -> None:
        """Ask nothing yet.

        keep: takes an answer; returns why it is of no use, empty if it is. An OSError of it ends
            the asking at once.
        after_each: called when a question has its answer or its reason.
        spent: cost of earlier answers, which count towards ``Limits.max_cost``.
        largest: cost of the most expensive of them, if it is known.
        """
        self.tally: Tally[Key] = Tally(cost=spent)
        self._limits = limits
        self._keep = keep
        self._after_each = after_each
        self._budget = Budget(limits.max_cost, spent, largest)

    async def run(self, questions: Iterable[Question[Key]]) -> None:
        """Ask all questions, or as many as the limits and the endpoints allow.

        Raises:
            OSError: an answer could not be kept.
        """
        waiting = iter(questions)
        most_s, grace_s, begin = self._limits.most_s, self._limits.grace_s, time.monotonic()
        workers = [
            asyncio.create_task(self._work(waiting)) for _ in range(self._limits.concurrency)
        ]
        try:
            done, _ = await asyncio.wait(
                workers,
                timeout=most_s if math.isfinite(most_s) else None,
                return_when=asyncio.FIRST_EXCEPTION,
            )
            errors = [task.exception() for task in done]
            if len(done) < len(workers) and not any(errors):
                self.tally.stopped = f"not all were answered in {most_s:g} s"
            elif all(isinstance(error, _Stopped | None) for error in errors):
                # Answers in flight are paid for: what arrives soon is kept.
                rest_s = max(0.0, begin + most_s - time.monotonic())
                await asyncio.wait(workers, timeout=min(grace_s, rest_s))
        except asyncio.CancelledError:
            self.tally.stopped = "interrupted"
            raise
        finally:
            await _end(workers)
        # All are looked at, since asyncio reports an error that nobody looks at.
        errors = [worker.exception() for worker in workers if not worker.cancelled()]
        for error in errors:
            if error is not None and not isinstance(error, _Stopped):
                raise error

    async def _work(self, waiting: Iterator[Question[Key]]) -> None:
        """Take questions until none is left."""
        self._watch_the_cost()
        for question in waiting:
            try:
                await self._put(question)
            except Failure as failure:
                if failure.remedy is Remedy.NONE:
                    self._stop(str(failure))
                self._miss(question.key, str(failure))
            finally:
                self._after_each()
            if self.tally.stopped:
                return

    async def _put(self, question: Question[Key]) -> None:
        """Put a question to its endpoint and hand the answer on."""
        target = question.endpoint.target
        most = target.most_cost(question.messages)
        try:
            async with self._budget.reserving(most, lambda: bool(self.tally.stopped)):
                answer = await question.endpoint.ask(question.messages)
                self.tally.prompt_tokens += answer.prompt_tokens or 0
                self.tally.completion_tokens += answer.completion_tokens or 0
                self._budget.spend(target.cost(answer.prompt_tokens, answer.completion_tokens))
                self.tally.cost = self._budget.cost
        except Spent as spent:
            self._stop(f"cost {self.tally.cost:.4f}, and one more answer may cost {spent}: more "
                       f"than max_cost = {self._limits.max_cost:g}")  # fmt: skip
        problem = await self._keep(question, answer)
        if problem:
            self._miss(question.key, problem)
        else:
            self.tally.num_failed_in_a_row = 0
        if math.isfinite(self._limits.max_cost):
            if answer.prompt_tokens is None or answer.completion_tokens is None:
                self._stop("the endpoint does not say how many tokens it took, so max_cost = "
                           f"{self._limits.max_cost:g} cannot be kept")  # fmt: skip
            self._watch_the_cost()

    def _miss(self, key: Key, reason: str) -> None:
        logger.warning("%s: %s", key, reason)
        self.tally.reasons[key] = reason
        self.tally.num_failed_in_a_row += 1
        if self.tally.num_failed_in_a_row == self._limits.stop_after_failures:
            number = self._limits.stop_after_failures
            self._stop(f"{number} questions in a row have no answer; {reason}")

    def _watch_the_cost(self) -> None:
        if self.tally.cost >= self._limits.max_cost:
            self._stop(f"cost {self.tally.cost:.4f} has reached max_cost = "
                       f"{self._limits.max_cost:g}")  # fmt: skip

    def _stop(self, reason: str) -> NoReturn:
        self.tally.stopped = self.tally.stopped or reason
        raise _Stopped


async def _end(workers: Sequence[asyncio.Task[None]]) -> None:
    """Return when no worker works: wait_for may swallow a cancellation before Python 3.12."""
    while any(not worker.done() for worker in workers):
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers, timeout=1.0)
