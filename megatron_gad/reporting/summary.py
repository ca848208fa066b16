"""The top of the page: stages in time, the configuration in a line each, last numbers, results."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from megatron_gad.evaluation.calibration import BINS
from megatron_gad.reporting.formatting import format_duration, format_number
from megatron_gad.reporting.run_record import RunRecord, finite_values, is_finite_number
from megatron_gad.runtime.metrics import BEST, BEST_FOLDER

NUM_AVERAGED = 10
# Columns of the results with one of these in their name go from 0 to 1 and show as per cent.
SHARE_WORDS = ("accuracy", "greedy", "share")

# (table, key, name on the page) of config.toml; "" is the top level.
FACTS = (
    ("student", "path", "Student"),
    ("discriminator", "path", "Discriminator from"),
    ("data", "path", "Data"),
    ("", "seed", "Seed"),
    ("parallel", "tensor_model_parallel_size", "Tensor parallel"),
    ("parallel", "pipeline_model_parallel_size", "Pipeline parallel"),
    ("compute", "bf16", "bfloat16"),
    ("rollout", "engine", "Engine"),
    ("rollout", "temperature", "Temperature"),
    ("adversarial", "prompts_per_step", "Prompts a step"),
    ("adversarial", "group_size", "Rollouts a prompt"),
    ("gad", "discriminator_loss", "Discriminator loss"),
    ("gad", "advantage", "Advantage"),
    ("gad", "kl_coef", "KL coefficient"),
)
# (key, name, unit) of the numbers at the end of the run.
FINAL_NUMBERS = (
    ("reward/mean", "Reward", ""),
    ("discriminator/accuracy", "Discriminator accuracy", "%"),
    ("discriminator/loss", "Discriminator loss", ""),
    ("student/eval_loss", "Held-out loss", "nats a token"),
    ("student/kl", "KL to the reference", "nats a token"),
    ("student/entropy", "Entropy", "nats a token"),
    ("response/length_mean", "Response length", "tokens"),
    ("teacher/length_mean", "Teacher's length", "tokens"),
    ("response/truncated_share", "Cut at the cap", "%"),
    ("time/step_s", "Time of a step", "seconds"),
    ("swap/bytes", "Weight swap", "bytes"),
)


@dataclass(frozen=True)
class StageBar:
    """A stage on the timeline. share: of the run's time, 0 to 1; number: which colour."""

    stage: str
    steps: str
    duration: str
    share: float
    number: int


@dataclass(frozen=True)
class Fact:
    """A name with a value, both as text; unit may be empty."""

    name: str
    value: str
    unit: str = ""


@dataclass(frozen=True)
class ResultCell:
    """One number of the results table. share: length of its bar, None for no bar."""

    text: str
    share: float | None


@dataclass(frozen=True)
class ResultsTable:
    """Arms against fields. rows: (arm, one cell per column)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ResultCell, ...]], ...]


@dataclass(frozen=True)
class Calibration:
    """Wins of a discriminator on held-out pairs.

    rows: score difference, share of the pairs, expected accuracy, accuracy; as text.
    """

    step: int
    rows: tuple[tuple[str, ...], ...]


def timeline(run: RunRecord) -> list[StageBar]:
    """Return the stages with their steps and times."""
    total = sum(span.seconds for span in run.spans)
    return [
        StageBar(
            stage=span.stage,
            steps=f"steps {span.first_step} to {span.last_step}",
            duration=format_duration(span.seconds),
            share=span.seconds / total if total > 0 else 1 / len(run.spans),
            number=number,
        )
        for number, span in enumerate(run.spans)
    ]


def config_facts(run: RunRecord) -> list[Fact]:
    """Return what identifies the run; defaults that the file leaves out are not shown."""
    facts = []
    for table, key, name in FACTS:
        section = run.config.get(table, {}) if table else run.config
        value = section.get(key) if isinstance(section, dict) else None
        if value not in (None, "", False):
            facts.append(Fact(name, "yes" if value is True else str(value)))
    return facts


def final_numbers(run: RunRecord) -> list[Fact]:
    """Return means over the last steps of the last stage that has the number, and run totals."""
    stages = tuple({span.stage for span in run.spans})
    facts = []
    for key, name, unit in FINAL_NUMBERS:
        span = run.last_span(stages, key)
        if span is not None:
            value = fmean(finite_values(span.records, key)[-NUM_AVERAGED:])
            facts.append(Fact(name, format_number(value, unit), "" if unit == "%" else unit))
    tokens = sum(finite_values(run.records, "tokens/trained"))
    if tokens:
        facts.append(Fact("Tokens trained on", format_number(tokens)))
    return facts


def results_table(results: dict[str, Any]) -> ResultsTable | None:
    """Turn ``results.json`` into a table; None where no arm has a number.

    Arms are the objects at the top, columns their numeric fields in the order of appearance. A
    nested object gives "outer inner" columns, two numbers in a list an interval. The fields X_low
    and X_high stand behind X.
    """
    others = ("seconds", BEST)
    arms = {arm: _flat_fields(fields) for arm, fields in results.items() if arm not in others}
    arms = {arm: fields for arm, fields in arms.items() if fields}
    every = dict.fromkeys(column for fields in arms.values() for column in fields)
    bounds = {end for column in every for end in _bounds(column) if {*_bounds(column)} <= {*every}}
    columns = tuple(column for column in every if column not in bounds)
    if not columns:
        return None
    rows = tuple(
        (
            arm.replace("_", " "),
            tuple(_cell(column, fields) for column in columns),
        )
        for arm, fields in arms.items()
    )
    return ResultsTable(tuple(column.replace("_", " ") for column in columns), rows)


def best_student(results: dict[str, Any]) -> str:
    """Return which student the run kept as its best, by what rule; empty if none."""
    best = results.get(BEST)
    if not isinstance(best, dict) or not {"step", "stage", "rule"} <= best.keys():
        return ""
    numbers = ", ".join(
        f"{key.split('/')[1].replace('_', ' ')} {format_number(value)}"
        for key, value in best.items()
        if key.startswith("evaluation/") and is_finite_number(value)
    )
    return f"{BEST_FOLDER} is of step {best['step']} ({best['stage']}), {best['rule']}: {numbers}"


def calibration(run: RunRecord) -> Calibration | None:
    """Return expected and observed wins of the newest evaluation of a discriminator, if any."""
    keys = [f"calibration/pairs_{name}" for name in BINS]
    measured = (record for record in reversed(run.records) if any(key in record for key in keys))
    record = next(measured, None)
    if record is None:
        return None
    rows: list[tuple[str, ...]] = []
    for name in BINS:
        kinds = ("pairs", "expected", "observed")
        values = [record.get(f"calibration/{kind}_{name}") for kind in kinds]
        numbers = [format_number(value, "%") for value in values if is_finite_number(value)]
        if len(numbers) == len(kinds):
            rows.append((name.replace("_", " "), *numbers))
    return Calibration(record["step"], tuple(rows)) if rows else None


def result_seconds(results: dict[str, Any]) -> list[Fact]:
    """Return the entries of ``results.json``'s "seconds" as durations."""
    seconds = results.get("seconds", {})
    if not isinstance(seconds, dict):
        return []
    return [
        Fact(str(name).replace("_", " "), format_duration(value))
        for name, value in seconds.items()
        if is_finite_number(value)
    ]


def _flat_fields(fields: Any) -> dict[str, Any]:
    if not isinstance(fields, dict):
        return {}
    flat = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= {f"{name} {inner}": number for inner, number in _flat_fields(value).items()}
        elif isinstance(value, list) and len(value) == 2 and all(map(is_finite_number, value)):
            flat[str(name)] = tuple(value)
        elif is_finite_number(value):
            flat[str(name)] = value
    return flat


def _is_share(column: str) -> bool:
    return any(word in column for word in SHARE_WORDS)


def _bounds(column: str) -> tuple[str, str]:
    return f"{column}_low", f"{column}_high"


def _cell(column: str, fields: dict[str, Any]) -> ResultCell:
    value, is_share = fields.get(column), _is_share(column)
    unit = "%" if is_share else ""
    if value is None:
        return ResultCell("", None)
    if isinstance(value, tuple):
        return ResultCell(" to ".join(format_number(end, unit) for end in value), None)
    text = format_number(value, unit)
    if all(is_finite_number(fields.get(end)) for end in _bounds(column)):
        low, high = (format_number(fields[end], unit) for end in _bounds(column))
        text = f"{text} ({low} to {high})"
    return ResultCell(text, min(max(value, 0.0), 1.0) if is_share else None)
