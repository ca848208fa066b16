"""The numbers that the rules of health look at, of a run of any length in little memory."""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from megatron_gad.reporting.run_record import is_finite_number

# A rule looks at the end of a stage, and over enough steps that noise averages out.
NUM_RECENT = 20


def _last_few() -> dict[str, deque[float]]:
    return defaultdict(lambda: deque(maxlen=NUM_RECENT))


@dataclass
class _Span:
    """What is kept of consecutive steps of one stage; the lists are of finite numbers alone.

    first, last: key -> its first and its last ``NUM_RECENT`` numbers. counts: how many it has.
    """

    stage: str
    num_steps: int = 0
    first: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, deque[float]] = field(default_factory=_last_few)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class HealthNumbers:
    """Takes a run's steps one by one, as ``metrics.jsonl`` has them.

    config: the tables of the run's configuration.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.num_values = 0
        self.num_non_finite = 0
        self._spans: list[_Span] = []
        self._largest: dict[str, float] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take the next step."""
        stage = str(record.get("stage", ""))
        if not self._spans or self._spans[-1].stage != stage:
            self._spans.append(_Span(stage))
        span = self._spans[-1]
        span.num_steps += 1
        for key, value in record.items():
            if isinstance(value, float):
                self.num_values += 1
                self.num_non_finite += not math.isfinite(value)
            if not is_finite_number(value):
                continue
            span.counts[key] += 1
            span.last[key].append(value)
            if len(span.first[key]) < NUM_RECENT:
                span.first[key].append(value)
            self._largest[key] = max(value, self._largest.get(key, value))

    @property
    def step_in_stage(self) -> int:
        """Steps of the stage that the run is in."""
        return self._spans[-1].num_steps if self._spans else 0

    def num_steps(self, stages: tuple[str, ...]) -> int:
        """Return how many steps these stages have had."""
        return sum(span.num_steps for span in self._spans if span.stage in stages)

    def recent(self, key: str, stages: tuple[str, ...]) -> float | None:
        """Return the mean over the last steps with a number of the last of these stages."""
        span = self._last_span(key, stages)
        return fmean(span.last[key]) if span else None

    def newest(self, key: str, stages: tuple[str, ...]) -> float | None:
        """Return the last number of the last of these stages that has one."""
        span = self._last_span(key, stages)
        return span.last[key][-1] if span else None

    def largest(self, key: str) -> float | None:
        """Return the largest number of the run."""
        return self._largest.get(key)

    def growth(self, key: str, stages: tuple[str, ...]) -> float | None:
        """Return the end of the last of these stages as a multiple of its beginning."""
        span = self._last_span(key, stages)
        count = min(NUM_RECENT, span.counts[key] // 2) if span else 0
        if span is None or count == 0 or fmean(span.first[key][:count]) <= 0:
            return None
        return fmean([*span.last[key]][-count:]) / fmean(span.first[key][:count])

    def _last_span(self, key: str, stages: tuple[str, ...]) -> _Span | None:
        for span in reversed(self._spans):
            if span.stage in stages and span.counts.get(key):
                return span
        return None
