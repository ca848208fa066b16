"""One page about several runs: curves over each other, last numbers, different settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from megatron_gad.evaluation.intervals import (
    CONFIDENCE,
    Interval,
    seeds_interval,
    seeds_mean_interval,
)
from megatron_gad.files import replace_text
from megatron_gad.reporting.charts import Chart, Line
from megatron_gad.reporting.charts_of_run import COLORS, charts_of, is_of
from megatron_gad.reporting.drawing import draw_chart
from megatron_gad.reporting.formatting import format_number
from megatron_gad.reporting.page import render
from megatron_gad.reporting.run_record import RunRecord, StageSpan, finite_values, read_run

COMPARISON_FILE = "comparison.html"
NOT_COMPARED = ("Machinery",)
NUM_AVERAGED = 20
# Neighbouring steps are alike, so their noise is that between means of neighbours.
NUM_BLOCKS = 5


@dataclass(frozen=True)
class Difference:
    """A difference from the first run, as text; differs: it is more than noise."""

    text: str
    differs: bool


@dataclass(frozen=True)
class FinalRow:
    """One number at the end of every run. means, differences: empty text if there is none."""

    name: str
    means: tuple[str, ...]
    differences: tuple[Difference, ...]


def build_comparison(run_folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page that compares runs and return its path.

    out: the file; by default ``comparison.html`` in the first run directory.

    Raises:
        ValueError: a folder is no run, is named twice, or there are more than can be told apart.
    """
    if len(run_folders) > len(COLORS):
        raise ValueError(f"{len(run_folders)} runs; compare at most {len(COLORS)} at a time")
    if len({folder.resolve() for folder in run_folders}) < len(run_folders):
        raise ValueError("a run directory is named twice; name different ones")
    runs = [read_run(folder) for folder in run_folders]
    names = _names(runs)
    charts = _charts(runs, names)
    merged = merge(runs)
    groups = {
        group: [draw_chart(chart, merged) for chart in found] for group, found in charts.items()
    }
    text = render(
        "comparison.html.jinja",
        groups,
        names=names,
        folders=[str(run.folder) for run in runs],
        colors=COLORS,
        notes=[
            f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes
        ],
        num_averaged=NUM_AVERAGED,
        finals=final_rows(runs, charts),
        settings=different_settings(runs),
    )
    path = out or run_folders[0] / COMPARISON_FILE
    replace_text(path, text, errors="xmlcharrefreplace")
    return path


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the folders' own names, with those of their parents if two are the same."""
    names = [run.name for run in runs]
    if len({*names}) < len(names):
        names = ["/".join(run.folder.resolve().parts[-2:]) for run in runs]
    return names if len({*names}) == len(names) else [str(run.folder) for run in runs]


def merge(runs: Sequence[RunRecord]) -> RunRecord:
    """Return all runs as one, whose stages are as long as the longest.

    "KEY@N" is a number of run N (from 0). The first step of a stage is its first in every run.
    """
    lengths: dict[tuple[str, int], int] = {}
    parts: list[dict[tuple[str, int], StageSpan]] = []
    for run in runs:
        own: dict[tuple[str, int], StageSpan] = {}
        for span in run.spans:
            place = (span.stage, sum(stage == span.stage for stage, _ in own))
            own[place] = span
            lengths[place] = max(len(span.records), lengths.get(place, 0))
        parts.append(own)
    spans, step = [], 0
    for place, length in lengths.items():
        records: list[dict[str, Any]] = [{"step": step + n + 1} for n in range(length)]
        for number, own in enumerate(parts):
            steps = own[place].records if place in own else ()
            for target, source in zip(records, steps, strict=False):
                target |= {f"{key}@{number}": value for key, value in source.items() if "/" in key}
        spans.append(StageSpan(place[0], tuple(records)))
        step += length
    first = runs[0]
    return replace(first, spans=tuple(spans), sample_files={}, results={})


def _charts(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, list[Chart]]:
    """Return a chart for every curve of the page about one run that some run has."""
    found: dict[str, dict[str, Chart]] = {}
    for run in runs:
        for group, charts in charts_of(run).items():
            for chart in charts if group not in NOT_COMPARED else ():
                for line in chart.lines:
                    if finite_values(run.records, line.key):
                        one = _chart(chart, line, names)
                        found.setdefault(group, {})[one.title] = one
    return {group: list(charts.values()) for group, charts in found.items()}


def _chart(chart: Chart, line: Line, names: Sequence[str]) -> Chart:
    lines = tuple(
        Line(f"{line.key}@{number}", name, COLORS[number]) for number, name in enumerate(names)
    )
    title = chart.title if len(chart.lines) == 1 else f"{chart.title}: {line.label}"
    return replace(chart, title=title, lines=lines, is_stacked=False)


def final_rows(runs: Sequence[RunRecord], charts: dict[str, list[Chart]]) -> list[FinalRow]:
    """Return the last numbers of every chart with their intervals, and differences."""
    rows = []
    for chart in (each for found in charts.values() for each in found):
        key = chart.lines[0].key.rpartition("@")[0]
        blocks = [_last_blocks(run, key, chart) for run in runs]
        means = tuple(_mean_text(each, chart.unit) for each in blocks)
        rows.append(
            FinalRow(
                chart.title + (f", {chart.unit}" if chart.unit not in ("", "%") else ""),
                means,
                tuple(_difference(each, blocks[0], chart.unit) for each in blocks[1:]),
            )
        )
    return rows


def _last_blocks(run: RunRecord, key: str, chart: Chart) -> list[float]:
    """Return means of neighbours among the last numbers; one mean of few, none of none."""
    span = run.last_span(tuple({x.stage for x in run.spans if is_of(chart, x.stage)}), key)
    values = finite_values(span.records, key)[-NUM_AVERAGED:] if span else []
    num_blocks = min(NUM_BLOCKS, max(1, len(values) // 2))
    return [float(part.mean()) for part in np.array_split(values, num_blocks) if len(part)]


def _mean_text(blocks: Sequence[float], unit: str) -> str:
    if len(blocks) < 2:
        return format_number(blocks[0], unit) if blocks else ""
    is_share = unit == "%" and min(blocks) >= 0.0 and max(blocks) <= 1.0
    return _text(seeds_interval(blocks) if is_share else seeds_mean_interval(blocks), unit)


def _difference(blocks: Sequence[float], baseline: Sequence[float], unit: str) -> Difference:
    """Return the difference of two means with Welch's interval."""
    if not blocks or not baseline:
        return Difference("", differs=False)
    mean = float(np.mean(blocks) - np.mean(baseline))
    if min(len(blocks), len(baseline)) < 2 or np.ptp(blocks) == np.ptp(baseline) == 0:
        return Difference(format_number(mean, unit), differs=False)
    found = stats.ttest_ind(blocks, baseline, equal_var=False).confidence_interval(CONFIDENCE)
    interval = Interval(mean, float(found.low), float(found.high), len(blocks))
    return Difference(_text(interval, unit), differs=not interval.is_within_noise)


def _text(interval: Interval, unit: str) -> str:
    mean, low, high = (
        format_number(end, unit) for end in (interval.mean, interval.low, interval.high)
    )
    return mean if low == high or math.isnan(interval.low) else f"{mean} ({low} to {high})"


def different_settings(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[str, ...]]]:
    """Return (key, value in every run) of settings that differ; "" where a run leaves one out."""
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for each in flat for key in each})
    rows = [(key, tuple(each.get(key, "") for each in flat)) for key in keys]
    return [(key, values) for key, values in rows if len({*values}) > 1]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: str(value)}
    return found
