"""Prompts in, a teacher's responses out: concurrent, retried, resumable by row, costed."""

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_gad.data.teacher.collection import Collection, Tally
from megatron_gad.data.teacher.endpoint import Endpoint, RetryConfig, open_client
from megatron_gad.data.teacher.prompt_file import TeacherPrompt, read_prompts
from megatron_gad.data.teacher.response_file import ResponseFile
from megatron_gad.files import replace_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectConfig:
    """Whom to ask, and how.

    Attributes:
        base_url: of the endpoint, with its version: https://api.openai.com/v1.
        model: name of the teacher at the endpoint; kept in every row.
        concurrency: questions in flight.
        temperature: of the sampling; without it the endpoint decides.
        max_tokens: cap of a response; without it the endpoint decides.
        max_tokens_field: what the endpoint calls the cap; OpenAI's newer models want
            max_completion_tokens.
        retries: further attempts after a rate limit, a server error, a timeout or a lost
            connection.
        first_wait_s: wait before the first retry; doubles with each, up to a minute.
        timeout_s: for one attempt.
        stop_after_failures: give up when this many rows, one after another, have no response;
            0: never.
        prompt_column: column with the messages, or with a string that is one user message.
        prompt_price: per million tokens, for the cost in the summary.
        completion_price: per million tokens, for the cost in the summary.
        show_progress: a progress bar on stderr.
    """

    base_url: str
    model: str
    concurrency: int = 16
    temperature: float | None = None
    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    retries: int = 8
    first_wait_s: float = 0.5
    timeout_s: float = 120.0
    stop_after_failures: int = 50
    prompt_column: str = "content"
    prompt_price: float = 0.0
    completion_price: float = 0.0
    show_progress: bool = True

    def check(self) -> None:
        """Raise ValueError naming every field that cannot be used."""
        at_least = {
            "concurrency": 1, "retries": 0, "first_wait_s": 0, "stop_after_failures": 0,
            "prompt_price": 0, "completion_price": 0,
        }  # fmt: skip
        wrong = [
            f"{name} = {getattr(self, name)}: use {least} or more"
            for name, least in at_least.items()
            if getattr(self, name) < least
        ]
        if self.timeout_s <= 0:
            wrong.append(f"timeout_s = {self.timeout_s}: use more than 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            wrong.append(f"max_tokens = {self.max_tokens}: use 1 or more, or leave it out")
        if not self.base_url.startswith(("http://", "https://")):
            wrong.append(f"base_url = {self.base_url!r}: use a URL like https://host/v1")
        if not self.model:
            wrong.append("model is empty: use a name that the endpoint serves")
        if wrong:
            raise ValueError("; ".join(wrong))

    def request_options(self) -> dict[str, Any]:
        """Return the optional fields of each request."""
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.max_tokens is not None:
            options[self.max_tokens_field] = self.max_tokens
        return options


@dataclass(frozen=True)
class CollectReport:
    """What happened to every prompt, and what this call cost.

    num_prompts = num_recovered + num_collected + num_failed + num_empty + num_not_asked.
    num_recovered: rows that an earlier run had collected.
    num_empty: answers without text; like failed rows they are listed and not kept.
    num_truncated: collected rows whose text hit the endpoint's length cap.
    retries: reason -> count.
    cost: in the currency of the prices; 0 without prices.
    stopped: why the collection gave up early; empty if it did not.
    """

    num_prompts: int
    num_recovered: int
    num_collected: int
    num_failed: int
    num_empty: int
    num_not_asked: int
    num_truncated: int
    retries: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float
    stopped: str

    @property
    def is_complete(self) -> bool:
        """Whether every prompt has a response."""
        return self.num_prompts == self.num_recovered + self.num_collected


def collect(
    prompts_path: str | Path, out_path: str | Path, config: CollectConfig, api_key: str = ""
) -> CollectReport:
    """Ask the teacher every prompt that out_path does not hold yet.

    Rows of out_path are {"id", "content", "teacher_response", "finish_reason", "model"}, in the
    order of the prompts once the call has returned. Rows without an answer are listed with their
    reason in ``<out_path>.failed.jsonl``, which exists only if there are any; calling again asks
    them again.

    Raises:
        ValueError: the configuration, the prompts or an existing out_path cannot be used.
    """
    config.check()
    out = Path(out_path)
    prompts = read_prompts(Path(prompts_path), config.prompt_column)
    start = time.perf_counter()
    with ResponseFile(out, prompts, config.model) as file:
        if file.has_dropped_tail:
            logger.warning("%s: removed a half-written last line", out)
        tally, retries = asyncio.run(_ask_missing(prompts, file, config, api_key))
        file.put_in_order()
    _write_reasons(out.with_name(out.name + ".failed.jsonl"), tally.reasons)
    num_without = len(tally.reasons)
    return CollectReport(
        num_prompts=len(prompts),
        num_recovered=file.num_recovered,
        num_collected=len(file.places) - file.num_recovered,
        num_failed=num_without - tally.num_empty,
        num_empty=tally.num_empty,
        num_not_asked=len(prompts) - len(file.places) - num_without,
        num_truncated=tally.num_truncated,
        retries=retries,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        cost=_cost(tally, config),
        seconds=time.perf_counter() - start,
        stopped=tally.stopped,
    )


async def _ask_missing(
    prompts: list[TeacherPrompt], file: ResponseFile, config: CollectConfig, api_key: str
) -> tuple[Tally, dict[str, int]]:
    """Ask every prompt that the file does not hold; return the counts and the retries."""
    missing = [prompt for prompt in prompts if prompt.id not in file.places]
    bar = tqdm(
        total=len(prompts),
        initial=len(prompts) - len(missing),
        desc="teacher",
        unit="row",
        mininterval=0.5,
        disable=not config.show_progress,
    )
    client = open_client(config.base_url, api_key, config.timeout_s)
    patience = RetryConfig(config.retries, config.first_wait_s)
    endpoint = Endpoint(client, config.model, config.request_options(), patience)
    with bar as progress:
        async with client:
            collection = Collection(endpoint, file, progress, config.stop_after_failures)
            await collection.run(missing, config.concurrency)
    return collection.tally, dict(endpoint.retries)


def _write_reasons(path: Path, reasons: dict[str | int, str]) -> None:
    """Write down the rows without a response; without any there is no file."""
    if not reasons:
        path.unlink(missing_ok=True)
        return
    lines = [
        json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False)
        for row_id, reason in reasons.items()
    ]
    replace_lines(path, lines)


def _cost(tally: Tally, config: CollectConfig) -> float:
    """Return what the answered questions cost, in the currency of the prices."""
    return (
        tally.prompt_tokens * config.prompt_price
        + tally.completion_tokens * config.completion_price
    ) / 1e6
