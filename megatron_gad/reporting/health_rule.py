"""What a rule of health is, and what it finds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_gad.config.health import HealthRule
from megatron_gad.reporting.formatting import format_number
from megatron_gad.reporting.health_numbers import HealthNumbers

Level = Literal["act", "watch", "healthy"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule.

    name: of the rule, as [health] has it.
    value, healthy: as shown to a reader; advice: what to do, empty where the value is healthy.
    """

    name: HealthRule
    title: str
    level: Level
    value: str
    healthy: str
    advice: str

    @property
    def evidence(self) -> str:
        """What was seen, by which rule, and what to do."""
        seen = f"{self.title} ({self.name}): {self.value}; healthy is {self.healthy}."
        return f"{seen} {self.advice}".strip()


@dataclass(frozen=True)
class Rule:
    """A number of a run and the range in which it is healthy.

    name: as [health] has it.
    measure: the number, None where the run does not have it.
    unit: written behind the number; "%" shows a share as per cent.
    low, high: (watch, act) bounds below and above; None where that side is always healthy.
    too_low, too_high: what to do beyond them.
    """

    name: HealthRule
    title: str
    measure: Callable[[HealthNumbers], float | None]
    unit: str
    healthy: str
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    too_low: str = ""
    too_high: str = ""

    def judge(self, numbers: HealthNumbers) -> Finding | None:
        """Apply the rule; None where the run has no such number."""
        value = self.measure(numbers)
        if value is None:
            return None
        level, advice = self._level(value)
        shown = format_number(value, self.unit)
        if self.unit != "%":
            shown = f"{shown} {self.unit}".strip()
        return Finding(self.name, self.title, level, shown, self.healthy, advice)

    def _level(self, value: float) -> tuple[Level, str]:
        if self.low is not None and value < self.low[0]:
            return ("act" if value < self.low[1] else "watch"), self.too_low
        if self.high is not None and value > self.high[0]:
            return ("act" if value > self.high[1] else "watch"), self.too_high
        return "healthy", ""
