"""Many questions in flight at once, each answer on the disk before the next question."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from megatron_gad.data.teacher.endpoint import Answer, Endpoint, EndpointRefused, RowRefused
from megatron_gad.data.teacher.prompt_file import TeacherPrompt
from megatron_gad.data.teacher.response_file import ResponseFile

logger = logging.getLogger(__name__)

GRACE_S = 10.0


@dataclass
class Tally:
    """Counts while questions are in flight.

    reasons: id -> why a row has no response.
    num_empty: how many of the reasons are answers without text.
    num_truncated: answers that hit the endpoint's length cap.
    num_failed_in_a_row: rows without a response since the last one with.
    stopped: why no more questions are asked; empty while they are.
    """

    reasons: dict[str | int, str] = field(default_factory=dict)
    num_empty: int = 0
    num_truncated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_failed_in_a_row: int = 0
    stopped: str = ""


class Collection:
    """Asks prompts and stores the answers; ``tally`` says what happened."""

    def __init__(
        self, endpoint: Endpoint, file: ResponseFile, progress: tqdm, stop_after_failures: int
    ) -> None:
        """stop_after_failures: rows without a response, one after another, that end it; 0: none."""
        self.tally = Tally()
        self._endpoint = endpoint
        self._file = file
        self._progress = progress
        self._stop_after_failures = stop_after_failures
        self._pending: list[dict[str, Any]] = []
        self._writing = asyncio.Lock()

    async def run(self, prompts: Sequence[TeacherPrompt], concurrency: int) -> None:
        """Ask all prompts, or as many as until the endpoint turns out to be of no use."""
        waiting = iter(prompts)
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(concurrency)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            # Answers in flight are paid for: what arrives soon is kept.
            await asyncio.wait(workers, timeout=GRACE_S)
        finally:
            for worker in workers:
                worker.cancel()
        for result in await asyncio.gather(*workers, return_exceptions=True):
            is_expected = isinstance(result, EndpointRefused | asyncio.CancelledError)
            if isinstance(result, BaseException) and not is_expected:
                raise result

    async def _work(self, waiting: Iterator[TeacherPrompt]) -> None:
        """Take prompts until none is left."""
        for prompt in waiting:
            if self.tally.stopped:
                return
            try:
                answer = await self._endpoint.ask(prompt.messages)
            except RowRefused as refusal:
                self._miss(prompt, str(refusal))
            except EndpointRefused as refusal:
                self._stop(str(refusal))
            else:
                await self._take(prompt, answer)
            self._show()

    async def _take(self, prompt: TeacherPrompt, answer: Answer) -> None:
        self.tally.prompt_tokens += answer.prompt_tokens
        self.tally.completion_tokens += answer.completion_tokens
        if not answer.text.strip():
            self.tally.num_empty += 1
            self._miss(prompt, f"empty response, finish_reason {answer.finish_reason}")
            return
        self.tally.num_failed_in_a_row = 0
        self.tally.num_truncated += answer.finish_reason == "length"
        await self._store(
            {
                "id": prompt.id,
                "content": prompt.messages,
                "teacher_response": answer.text,
                "finish_reason": answer.finish_reason,
                "model": self._endpoint.model,
            }
        )

    async def _store(self, row: dict[str, Any]) -> None:
        """Return when the row is on the disk; rows that arrive meanwhile share one write."""
        self._pending.append(row)
        async with self._writing:
            rows, self._pending = self._pending, []
            if rows:
                await asyncio.to_thread(self._file.append, rows)

    def _miss(self, prompt: TeacherPrompt, reason: str) -> None:
        logger.warning("row %s: %s", prompt.id, reason)
        self.tally.reasons[prompt.id] = reason
        self.tally.num_failed_in_a_row += 1
        if self.tally.num_failed_in_a_row == self._stop_after_failures:
            self._stop(f"{self._stop_after_failures} rows in a row have no response; {reason}")

    def _stop(self, reason: str) -> None:
        self.tally.stopped = self.tally.stopped or reason
        raise EndpointRefused(reason)

    def _show(self) -> None:
        self._progress.set_postfix(
            failed=len(self.tally.reasons),
            retries=self._endpoint.retries.total(),
            refresh=False,
        )
        self._progress.update()
