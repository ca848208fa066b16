"""Asking the judge: each call once, kept by its content, and replayed without a network."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from megatron_gad.engines.asking.endpoint import Endpoint, Patience, Target
from megatron_gad.engines.asking.pool import Limits, Pool, Question
from megatron_gad.engines.asking.reply import Answer
from megatron_gad.evaluation.record_file import RecordFile, content_key

logger = logging.getLogger(__name__)

Verdict = TypeVar("Verdict")
ATTEMPTS = 2  # a verdict that cannot be read is asked for once more


@dataclass
class Spent:
    """What an evaluation's verdicts cost, whenever they were given.

    num_calls: calls whose answers are used. num_replayed: those of them that were kept before.
    num_unreadable: verdicts that could not be read in two attempts, and count as none.
    num_unanswered: calls without an answer, for which ``reasons`` says why.
    cost: in the currency of the prices.
    stopped: why the asking ended early; empty if it did not.
    """

    num_calls: int = 0
    num_replayed: int = 0
    num_unreadable: int = 0
    num_unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    stopped: str = ""
    reasons: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Verdicts(Generic[Verdict]):
    """given: name of a call -> verdict. missing: calls without one."""

    given: Mapping[str, Verdict]
    missing: Sequence[str]


class Judge:
    """A model that is asked; ``spent`` adds up over all that it is asked."""

    def __init__(
        self,
        kept: RecordFile,
        target: Target,
        patience: Patience,
        limits: Limits,
        show_progress: bool = True,
    ) -> None:
        """Ask nothing yet; kept: answers of this and earlier runs."""
        self.spent = Spent()
        self._kept = kept
        self._target = target
        self._patience = patience
        self._limits = limits
        self._show_progress = show_progress
        self._counted: set[str] = set()
        self._largest: float | None = None  # cost of one call

    @property
    def model(self) -> str:
        """The name of the judge."""
        return self._target.model

    def ask(
        self, prompts: Mapping[str, str], read: Callable[[str], Verdict | None], what: str
    ) -> Verdicts[Verdict]:
        """Return the verdict on every prompt that has one.

        prompts: name of a call -> what the judge reads; equal prompts are one call.
        read: makes a verdict of the judge's text; None if there is none in it.
        what: the progress bar's name.
        """
        given: dict[str, Verdict] = {}
        waiting = list(prompts)
        for attempt in range(1, ATTEMPTS + 1):
            keys = {name: self._key(prompts[name], attempt) for name in waiting}
            self._count_replayed(keys.values())
            missing = {key: prompts[name] for name, key in keys.items() if not self._holds(key)}
            if missing and not self.spent.stopped:
                asyncio.run(self._ask(missing, f"{what}, again" if attempt > 1 else what))
            answered = [name for name in waiting if self._holds(keys[name])]
            self.spent.num_unanswered += len(waiting) - len(answered)
            for name in answered:
                verdict = read(self._kept.records[keys[name]]["text"])
                if verdict is not None:
                    given[name] = verdict
            waiting = [name for name in answered if name not in given]
        self.spent.num_unreadable += len(waiting)
        return Verdicts(given, [name for name in prompts if name not in given])

    def _key(self, prompt: str, attempt: int) -> str:
        # Whatever changes the answer, and nothing else: not the URL, nor when it was asked.
        target = self._target
        return content_key([target.model, dict(target.options), prompt, attempt])

    def _holds(self, key: str) -> bool:
        return key in self._kept.records

    def _count_replayed(self, keys: Any) -> None:
        for key in {*keys} - self._counted:
            if self._holds(key):
                self._count(key)
                self.spent.num_replayed += 1

    def _count(self, key: str) -> None:
        record = self._kept.records[key]
        prompt, completion = record["prompt_tokens"], record["completion_tokens"]
        self._counted.add(key)
        self.spent.num_calls += 1
        self.spent.prompt_tokens += prompt or 0
        self.spent.completion_tokens += completion or 0
        cost = self._target.cost(prompt, completion)
        self.spent.cost += cost
        self._largest = max(self._largest or 0.0, cost)

    async def _ask(self, missing: Mapping[str, str], what: str) -> None:
        """Put the prompts to the judge; missing: key -> prompt."""
        endpoint = Endpoint(self._target, self._patience)
        writing = asyncio.Lock()
        with tqdm(total=len(missing), desc=what, disable=not self._show_progress) as bar:

            async def keep(question: Question[str], answer: Answer) -> str:
                async with writing:
                    await asyncio.to_thread(self._kept.append, [_record(question.key, answer)])
                self._count(question.key)
                return ""

            def show() -> None:
                bar.update()

            pool = Pool(self._limits, keep, show, self.spent.cost, self._largest)
            try:
                await pool.run(
                    Question(key, [{"role": "user", "content": prompt}], endpoint)
                    for key, prompt in missing.items()
                )
            finally:
                await endpoint.close()
        self.spent.stopped = pool.tally.stopped
        self.spent.reasons += [*pool.tally.reasons.values()]


def _record(key: str, answer: Answer) -> dict[str, Any]:
    return {
        "key": key,
        "text": answer.text,
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
