"""What a run folder holds, read back: also of a run that was cut short."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import tomli

from megatron_gad.files import read_records
from megatron_gad.planning.turns import TIMERS
from megatron_gad.runtime.metrics import METRICS_FILE, RESULTS_FILE, SAMPLES_FOLDER, samples_step

CONFIG_FILE = "config.toml"
# Sums and scales of larger ones overflow.
LARGEST_DRAWN = 1e100
PHASE_KEYS = tuple(f"time/{timer}_s" for timer in TIMERS)


@dataclass(frozen=True)
class StageSpan:
    """Consecutive steps of one stage.

    records: lines of ``metrics.jsonl``, in the order of their steps; never empty.
    """

    stage: str
    records: tuple[dict[str, Any], ...]

    @property
    def first_step(self) -> int:
        """The first step that was recorded."""
        return self.records[0]["step"]

    @property
    def last_step(self) -> int:
        """The last step that was recorded."""
        return self.records[-1]["step"]

    @property
    def seconds(self) -> float:
        """Time spent in steps; where steps were not timed, between the first and the last line."""
        if any("time/step_s" in record for record in self.records):
            return sum(finite_values(self.records, "time/step_s"))
        times = finite_values(self.records, "time")
        return times[-1] - times[0] if times else 0.0


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it; whatever is missing is empty.

    spans: the stages in order.
    sample_files: step -> file of samples.
    config: tables of ``config.toml``; config_text: the file itself.
    results: ``results.json``: arm -> field -> value.
    notes: what could not be read, in words.
    """

    folder: Path
    spans: tuple[StageSpan, ...]
    sample_files: dict[int, Path]
    config: dict[str, Any]
    config_text: str
    results: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def records(self) -> tuple[dict[str, Any], ...]:
        """All steps in order."""
        return tuple(record for span in self.spans for record in span.records)

    def last_span(self, stages: tuple[str, ...], key: str) -> StageSpan | None:
        """Return the last span of one of these stages that has numbers under the key."""
        for span in reversed(self.spans):
            if span.stage in stages and finite_values(span.records, key):
                return span
        return None

    def stage_of(self, step: int) -> str:
        """Return the stage that a step belongs to, "" where it was not recorded."""
        for span in self.spans:
            if span.first_step <= step <= span.last_step:
                return span.stage
        return ""


def finite_values(records: Iterable[dict[str, Any]], key: str) -> list[float]:
    """Return the numbers under a key, without gaps, nan and infinities."""
    values = (record.get(key) for record in records)
    return [value for value in values if is_finite_number(value)]


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from JSON is a number that can be averaged and drawn."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -LARGEST_DRAWN <= value <= LARGEST_DRAWN


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ValueError: the folder holds neither metrics nor a configuration, so it is no run.
    """
    metrics, config = folder / METRICS_FILE, folder / CONFIG_FILE
    if not metrics.is_file() and not config.is_file():
        what = "holds neither" if folder.is_dir() else "is no folder, so it cannot hold"
        raise ValueError(
            f"{folder} {what} {METRICS_FILE} nor {CONFIG_FILE}; "
            "pass the run directory, the one that --save named"
        )
    notes: list[str] = []
    config_text = config.read_text("utf-8", "replace") if config.is_file() else ""
    return RunRecord(
        folder=folder,
        spans=_read_spans(metrics, notes),
        sample_files=_sample_files(folder / SAMPLES_FOLDER),
        config=_parse_config(config_text, notes),
        config_text=config_text,
        results=_read_results(folder / RESULTS_FILE, notes),
        notes=tuple(notes),
    )


def _read_spans(path: Path, notes: list[str]) -> tuple[StageSpan, ...]:
    if not path.is_file():
        return ()
    records, num_unreadable = read_records(path)
    if num_unreadable:
        notes.append(f"{num_unreadable} unreadable line(s) of {METRICS_FILE} were skipped.")
    # A step that stands twice was repeated after a restart: the later line is the run's own.
    by_step = {record["step"]: _with_other_time(record) for record in records}
    spans: list[tuple[str, list[dict[str, Any]]]] = []
    for step in sorted(by_step):
        stage = str(by_step[step].get("stage", ""))
        if not spans or spans[-1][0] != stage:
            spans.append((stage, []))
        spans[-1][1].append(by_step[step])
    return tuple(StageSpan(stage, tuple(records)) for stage, records in spans)


def _with_other_time(record: dict[str, Any]) -> dict[str, Any]:
    """Add what is left of a step's time when its phases are taken off."""
    step_seconds = record.get("time/step_s")
    if not is_finite_number(step_seconds):
        return record
    phases = sum(sum(finite_values([record], key)) for key in PHASE_KEYS)
    return {**record, "time/other_s": max(0.0, step_seconds - phases)}


def _sample_files(folder: Path) -> dict[int, Path]:
    steps = {samples_step(path): path for path in folder.glob("step_*.jsonl")}
    return {step: steps[step] for step in sorted(steps) if step >= 0}


def _parse_config(text: str, notes: list[str]) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        notes.append(f"{CONFIG_FILE} is not valid TOML: {error}")
        return {}


def _read_results(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        notes.append(f"{RESULTS_FILE} is not valid JSON: {error}")
        return {}
    if not isinstance(results, dict):
        notes.append(f"{RESULTS_FILE} holds no object of arms, so no table is shown.")
        return {}
    return results
