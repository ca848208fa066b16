"""The rules of health, applied to a run as it stands or step by step as it went."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from megatron_gad.config.health import HealthConfig, HealthRule
from megatron_gad.reporting.health_numbers import NUM_RECENT, HealthNumbers
from megatron_gad.reporting.health_rule import Finding, Level
from megatron_gad.reporting.health_rules import RULES
from megatron_gad.reporting.run_record import RunRecord

WORST_FIRST: tuple[Level, ...] = ("act", "watch", "healthy")
# What a rule that says "act" does, and how that is told.
ACTIONS = {
    "stop": "the run is stopped",
    "pause_discriminator": "the discriminator is paused until this is over",
    "skip_student": "the student is not trained until this is over",
}


def assess(run: RunRecord) -> list[Finding]:
    """Apply every rule that the run has numbers for; the worst come first."""
    numbers = HealthNumbers(run.config)
    for record in run.records:
        numbers.add(record)
    return judge(numbers)


def judge(numbers: HealthNumbers) -> list[Finding]:
    """Apply every rule that there are numbers for; the worst come first."""
    findings = [rule.judge(numbers) for rule in RULES]
    return sorted((f for f in findings if f is not None), key=lambda f: WORST_FIRST.index(f.level))


def configured(run_config: Mapping[str, Any]) -> HealthConfig:
    """Return the section ``[health]`` of a run's tables, as far as it can be read."""
    section = run_config.get("health")
    found = section if isinstance(section, dict) else {}
    names = [each.name for each in fields(HealthConfig)]
    lists = {name: tuple(found[name]) for name in names if isinstance(found.get(name), list)}
    return HealthConfig(**lists)


def actions_of(name: HealthRule, config: HealthConfig) -> list[str]:
    """Return what a rule does when it says "act", as keys of ``ACTIONS``; empty: it warns."""
    if name in config.ignore:
        return []
    return [action for action in ACTIONS if name in getattr(config, action)]


@dataclass(frozen=True)
class Look:
    """What the rules said after a step.

    findings: those that say "act" and are not ignored.
    begun, over: those that did not say so at the look before, and those that no longer do.
    """

    step: int
    findings: tuple[Finding, ...]
    begun: tuple[Finding, ...]
    over: tuple[Finding, ...]


class HealthHistory:
    """Follows a run and looks at it after every ``NUM_RECENT`` steps of a stage.

    It depends on the steps alone, so that a run that was resumed is judged like one that was not.
    """

    def __init__(self, config: HealthConfig, run_config: Mapping[str, Any]) -> None:
        """run_config: the tables of the run's configuration."""
        self.newest: Look | None = None
        self._config = config
        self._numbers = HealthNumbers(run_config)

    def add(self, record: Mapping[str, Any]) -> Look | None:
        """Take the next step; return what the rules say, if it is time to look."""
        self._numbers.add(record)
        if self._numbers.step_in_stage % NUM_RECENT:
            return None
        found = {
            finding.name: finding
            for finding in judge(self._numbers)
            if finding.level == "act" and finding.name not in self._config.ignore
        }
        before = {each.name: each for each in self.newest.findings} if self.newest else {}
        self.newest = Look(
            step=record["step"],
            findings=tuple(found.values()),
            begun=tuple(each for name, each in found.items() if name not in before),
            over=tuple(each for name, each in before.items() if name not in found),
        )
        return self.newest


@dataclass(frozen=True)
class Episode:
    """Steps in which a rule said "act". last: None if it does so at the end of the run.

    actions: keys of ``ACTIONS`` that it took.
    """

    finding: Finding
    first: int
    last: int | None
    actions: tuple[str, ...]


def episodes(
    records: Iterable[Mapping[str, Any]], config: HealthConfig, run_config: Mapping[str, Any]
) -> list[Episode]:
    """Return when which rules said "act" in a run, in the order in which they began."""
    history = HealthHistory(config, run_config)
    found: list[Episode] = []
    for look in filter(None, map(history.add, records)):
        over = {each.name for each in look.over}
        found = [
            Episode(each.finding, each.first, look.step, each.actions)
            if each.last is None and each.finding.name in over
            else each
            for each in found
        ]
        found += [
            Episode(each, look.step, None, tuple(actions_of(each.name, config)))
            for each in look.begun
        ]
    return found
