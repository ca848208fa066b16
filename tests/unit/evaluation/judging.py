"""A judge at a real endpoint on this machine, which says what a test wants."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_gad.engines.asking.endpoint import Patience, Target
from megatron_gad.engines.asking.pool import Limits
from megatron_gad.evaluation.judge.calls import Judge
from megatron_gad.evaluation.record_file import RecordFile
from tests.hostile_teacher import HostileTeacher, Reply, completion, hostile_teacher, ok

MODEL = "strict-judge"


@contextmanager
def judge_server(say: Callable[[str, int], str]) -> Iterator[HostileTeacher]:
    """Run an endpoint; say: prompt, and which time it comes from 1 -> the judge's text."""

    def answer(body: dict[str, Any], attempt: int) -> Reply:
        return ok(completion(say(body["messages"][-1]["content"], attempt)))

    with hostile_teacher(answer) as server:
        yield server


@contextmanager
def open_judge(path: Path, base_url: str, max_cost: float = math.inf) -> Iterator[Judge]:
    """Give a judge whose answers are kept in a file; a token costs a millionth."""
    target = Target(base_url, MODEL, prompt_price=1.0, completion_price=2.0)
    patience = Patience(retries=1, first_wait_s=0.01, timeout_s=20)
    with RecordFile(path) as kept:
        limits = Limits(concurrency=4, max_cost=max_cost, grace_s=20)
        yield Judge(kept, target, patience, limits, show_progress=False)


def part(prompt: str, name: str) -> str:
    """Return what stands between two tags of a packaged prompt."""
    return prompt.split(f"<{name}>\n", 1)[1].split(f"\n</{name}>", 1)[0]
