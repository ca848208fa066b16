"""Prompts in, a teacher's responses out: concurrent, retried, resumable by row, costed."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from megatron_gad.data.teacher.collection import Collection
from megatron_gad.data.teacher.config import CollectConfig, spread
from megatron_gad.data.teacher.prompt_file import BadPrompt, read_prompts
from megatron_gad.data.teacher.response_file import ResponseFile
from megatron_gad.data.teacher.wanted import RowKey, WantedRow, plan_rows
from megatron_gad.engines.asking.endpoint import Endpoint, Target
from megatron_gad.engines.asking.pool import Pool, Question, Tally
from megatron_gad.files import replace_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectReport:
    """What happened to every row that was wanted, and what this call cost.

    num_rows = num_recovered + num_collected + num_failed + num_empty + num_bad_prompts
    + num_not_asked.
    num_recovered: rows that an earlier run had collected.
    num_empty: answers without text; like failed rows they are listed and not kept.
    num_bad_prompts: prompts that cannot be asked, which are listed as well; each counts as a row.
    num_truncated: collected rows whose text hit the endpoint's length cap.
    retries: kind of failure -> count.
    cost: in the currency of the prices; 0 without prices.
    stopped: why the collection gave up early; empty if it did not.
    """

    num_rows: int
    num_recovered: int
    num_collected: int
    num_failed: int
    num_empty: int
    num_bad_prompts: int
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
        """Whether every wanted row has a response."""
        return self.num_rows == self.num_recovered + self.num_collected


def collect(
    prompts_path: str | Path,
    out_path: str | Path,
    config: CollectConfig,
    api_keys: Sequence[str] = ("",),
) -> CollectReport:
    """Ask the teachers every prompt that out_path does not hold yet.

    Rows of out_path have the columns of ``collection.py``, and are in the order of the prompts once
    the call has returned. Rows without an answer are listed with their reason in
    ``<out_path>.failed.jsonl``, which exists only if there are any; calling again asks them again,
    after all others.

    api_keys: one for all teachers, or one for each.

    Raises:
        ValueError: the configuration, the prompts or an existing out_path cannot be used.
        OSError: a file cannot be read or written; what was collected stays in out_path.
    """
    config.check()
    out = Path(out_path)
    failed_path = out.with_name(out.name + ".failed.jsonl")
    prompts, bad_prompts = read_prompts(Path(prompts_path), config.prompt_column)
    targets = config.targets(api_keys)
    _warn_of_cost(config, targets)
    models = [target.model for target in targets]
    weights = spread(config.weights, len(targets))
    wanted = plan_rows(prompts, config.num_answers, models, weights, config.seed)
    start = time.perf_counter()
    with ResponseFile(out, wanted) as file:
        if file.has_dropped_tail:
            logger.warning("%s: removed a half-written last line", out)
        spent = _spent(wanted, file, targets)
        collection = Collection(file)
        # What failed before comes last, so that it cannot keep the rest from being asked.
        failed_before = _read_failed(failed_path)
        missing = [row for row in wanted if row.key not in file.rows]
        missing.sort(key=lambda row: row.key in failed_before)
        tally, retries = asyncio.run(_ask(missing, collection, targets, config, spent))
        file.put_in_order()
    _write_reasons(failed_path, bad_prompts, tally.reasons)
    num_without = len(tally.reasons)
    return CollectReport(
        num_rows=len(wanted) + len(bad_prompts),
        num_recovered=file.num_recovered,
        num_collected=len(file.rows) - file.num_recovered,
        num_failed=num_without - collection.num_empty,
        num_empty=collection.num_empty,
        num_bad_prompts=len(bad_prompts),
        num_not_asked=len(wanted) - len(file.rows) - num_without,
        num_truncated=collection.num_truncated,
        retries=dict(retries),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        cost=tally.cost - sum(spent),
        seconds=time.perf_counter() - start,
        stopped=tally.stopped,
    )


def _warn_of_cost(config: CollectConfig, targets: Sequence[Target]) -> None:
    if config.max_cost is not None and any(target.most_cost(()) is None for target in targets):
        logger.warning(
            "nothing caps the tokens of an answer, so those in flight may go beyond max_cost = %g; "
            "set max_tokens",
            config.max_cost,
        )


def _spent(
    wanted: Sequence[WantedRow], file: ResponseFile, targets: Sequence[Target]
) -> list[float]:
    """Return what each row in the file has cost."""
    return [
        targets[row.teacher].cost(stored.prompt_tokens, stored.completion_tokens)
        for row in wanted
        if (stored := file.rows.get(row.key))
    ]


async def _ask(
    missing: Sequence[WantedRow],
    collection: Collection,
    targets: Sequence[Target],
    config: CollectConfig,
    spent: Sequence[float],
) -> tuple[Tally[RowKey], Counter[str]]:
    """Ask for every missing row; return the counts and the retries."""
    bar = tqdm(
        total=len(missing),
        desc="teacher",
        unit="row",
        mininterval=0.5,
        disable=not config.show_progress,
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(bar)
        endpoints = [Endpoint(target, config.patience) for target in targets]
        for endpoint in endpoints:
            stack.push_async_callback(endpoint.close)

        def retries() -> Counter[str]:
            return sum((endpoint.retries for endpoint in endpoints), Counter[str]())

        def show() -> None:
            failed = len(pool.tally.reasons)
            bar.set_postfix_str(f"failed={failed}, retries={retries().total()}", refresh=False)
            bar.update()

        pool = Pool(config.limits, collection.keep, show, sum(spent), max(spent, default=None))
        await pool.run(Question(row.key, row.messages, endpoints[row.teacher]) for row in missing)
        return pool.tally, retries()


def _read_failed(path: Path) -> set[RowKey]:
    """Return the rows that the last run listed; lines that are none are left out."""
    failed: set[RowKey] = set()
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            failed.add(RowKey(row["id"], row["answer"]))
    return failed


def _write_reasons(
    path: Path, bad_prompts: Sequence[BadPrompt], reasons: dict[RowKey, str]
) -> None:
    """Write down what has no response; without any there is no file."""
    rows = [{"id": prompt.id, "answer": 1, "reason": prompt.reason} for prompt in bad_prompts]
    rows += [{**key._asdict(), "reason": reason} for key, reason in reasons.items()]
    if rows:
        replace_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])
    else:
        path.unlink(missing_ok=True)
