"""Charts as SVG that follows the page's light or dark colours, with the numbers for its pointer."""

import re
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from megatron_gad.reporting.charts import Chart, Line
from megatron_gad.reporting.charts_of_run import line_stages
from megatron_gad.reporting.formatting import format_number
from megatron_gad.reporting.run_record import RunRecord
from megatron_gad.reporting.series import Segment, StageAxis, build_axis, build_segment, smoothed

# Matplotlib writes these stand-ins; the page has a CSS variable for each, light and dark.
PALETTE = {
    "student": "#010203",
    "discriminator": "#010204",
    "teacher": "#010205",
    "third": "#010206",
    "fourth": "#010207",
    "fifth": "#01020d",
    "ink": "#010208",
    "grid": "#010209",
    "stage0": "#01020a",
    "stage1": "#01020b",
    "stage2": "#01020c",
}
WIDTH, HEIGHT = 5.4, 3.1  # inches of 72 points; the page scales it
LEFT, RIGHT, BOTTOM, TOP = 0.115, 0.985, 0.10, 0.915
FITTING = 6  # characters of a label of the usual size to the left of the axes
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class DrawnLine:
    """One entry of a chart's legend: label, colour name, last value as text."""

    label: str
    color: str
    last: str


@dataclass(frozen=True)
class DrawnChart:
    """A chart as the page shows it.

    svg: inline SVG without colours of its own.
    pointer: what the page needs to show numbers under the pointer, as JSON values: "left" and
        "right" edge of the axes as shares of the width, "lines": label, color and points
        [share of the axes, step, value].
    """

    title: str
    unit: str
    legend: tuple[DrawnLine, ...]
    svg: str
    pointer: dict[str, Any]


def draw_chart(chart: Chart, run: RunRecord) -> DrawnChart:
    """Draw a chart; at least one of its lines has numbers (see charts.charts_of)."""
    lines = [line for line in chart.lines if line_stages(chart, (line,), run)]
    shown = line_stages(chart, lines, run)
    axis = build_axis(tuple(run.spans[index] for index in shown))
    curves = [(line, _segments(axis, line)) for line in lines]
    with mpl.rc_context({**STYLE, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))
        if chart.is_stacked:
            _draw_stack(axes, axis, curves)
        else:
            _draw_curves(axes, curves)
        _dress(axes, chart)
        _dress_stages(axes, axis, shown)
        svg = _themed_svg(figure, chart.title)
    legend = tuple(
        DrawnLine(line.label, line.color, format_number(segments[-1].values[-1], chart.unit))
        for line, segments in curves
    )
    return DrawnChart(chart.title, chart.unit, legend, svg, _pointer(chart, curves))


def _segments(axis: StageAxis, line: Line) -> list[Segment]:
    segments = (build_segment(axis, i, line.key, line.spread) for i in range(len(axis.spans)))
    return [segment for segment in segments if segment is not None]


def _draw_curves(axes: Axes, curves: list[tuple[Line, list[Segment]]]) -> None:
    for line, segments in curves:
        for segment in segments:
            _draw_segment(axes, segment, PALETTE[line.color])


def _draw_segment(axes: Axes, segment: Segment, color: str) -> None:
    x, values = segment.positions, segment.values
    if len(segment.spreads):
        low, high = values - segment.spreads, values + segment.spreads
        axes.fill_between(x, smoothed(low), smoothed(high), color=color, alpha=0.16, linewidth=0)
    main = smoothed(values)
    if main is not values:
        axes.plot(x, values, color=color, linewidth=0.7, alpha=0.35)
    marker = "o" if len(x) <= 12 else ""
    axes.plot(x, main, color=color, linewidth=1.9, marker=marker, markersize=3.5)


def _draw_stack(axes: Axes, axis: StageAxis, curves: list[tuple[Line, list[Segment]]]) -> None:
    """Fill areas on top of each other; in a stage where a curve has no number it is zero."""
    for left, right in pairwise(axis.edges):
        stacked = [
            (PALETTE[line.color], segment)
            for line, segments in curves
            for segment in segments
            if left <= segment.positions[0] <= right
        ]
        x = max((segment.positions for _, segment in stacked), key=len)
        below = np.zeros_like(x)
        for color, segment in stacked:
            above = below + np.interp(x, segment.positions, smoothed(segment.values))
            axes.fill_between(x, below, above, color=color, alpha=0.8, linewidth=0)
            below = above


def _dress(axes: Axes, chart: Chart) -> None:
    """Add guides, vertical ticks and limits."""
    # A logarithmic axis without one positive number has no limits.
    is_log = chart.is_log and axes.dataLim.y1 > 0
    if is_log:
        if np.isclose(axes.dataLim.y0, axes.dataLim.y1, atol=0):  # smoothing rounds a constant
            axes.set_ylim(axes.dataLim.y1 / 2, axes.dataLim.y1 * 2)
        axes.set_yscale("log")
    if chart.is_stacked or (chart.unit == "%" and not chart.guides):
        axes.set_ylim(bottom=0)
    for value, label in chart.guides:
        # Far from every curve a guide would only squeeze them.
        low, high = axes.get_ylim()
        if low - (high - low) <= value <= high + (high - low):
            axes.axhline(value, color=PALETTE["ink"], linewidth=0.8, linestyle=(0, (4, 3)))
            # Below a guide at the top, where the names of the stages are.
            side = "top" if value > low + 0.85 * (high - low) else "bottom"
            axes.text(0.01, value, label, color=PALETTE["ink"], fontsize=8.5, va=side)
    axes.yaxis.set_major_locator(_log_ticks(*axes.get_ylim()) if is_log else MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_label(value, chart.unit)))
    longest = max((len(_tick_label(each, chart.unit)) for each in axes.get_yticks()), default=0)
    axes.tick_params(axis="y", labelsize=STYLE["font.size"] * min(1.0, FITTING / max(longest, 1)))
    axes.grid(axis="y", color=PALETTE["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color=PALETTE["grid"], labelcolor=PALETTE["ink"], pad=4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["grid"])


def _log_ticks(low: float, high: float) -> LogLocator:
    is_narrow = high < 100 * low
    return LogLocator(subs=(1, 2, 5) if is_narrow else (1,), numticks=6)


def _dress_stages(axes: Axes, axis: StageAxis, numbers: list[int]) -> None:
    """Shade and name the stages, in the colours of the timeline, and write steps below."""
    axes.set_xlim(0, 1)
    for index, (span, number) in enumerate(zip(axis.spans, numbers, strict=True)):
        left, right = axis.edges[index : index + 2]
        color = PALETTE[f"stage{number % 3}"]
        axes.axvspan(left, right, color=color, alpha=0.38, linewidth=0, zorder=0)
        axes.text(
            (left + right) / 2,
            1.015,
            span.stage,
            color=PALETTE["ink"],
            fontsize=9.5,
            ha="center",
            va="bottom",
            transform=axes.get_xaxis_transform(),
        )
    ticks = axis.ticks()
    axes.xaxis.set_major_locator(FixedLocator([position for position, _ in ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda _, i: str(ticks[i or 0][1])))


def _tick_label(value: float, unit: str) -> str:
    if unit == "%":
        return f"{round(100 * value, 6):g} %"
    return format_number(value) if abs(value) >= 10_000 else f"{value:g}"


def _themed_svg(figure: Figure, title: str) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' d="[^"]*"', _rounded_path, svg)
    for name, color in PALETTE.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def _rounded_path(path: re.Match[str]) -> str:
    """A hundredth of a point is finer than any screen, and a third of the page's size."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path.group())


def _pointer(chart: Chart, curves: list[tuple[Line, list[Segment]]]) -> dict[str, Any]:
    lines = [
        {
            "label": line.label,
            "color": line.color,
            "points": [
                [round(float(x), 5), int(step), format_number(float(value), chart.unit)]
                for segment in segments
                for x, step, value in zip(
                    segment.positions, segment.steps, segment.values, strict=True
                )
            ],
        }
        for line, segments in curves
    ]
    return {"left": LEFT, "right": RIGHT, "lines": lines}
