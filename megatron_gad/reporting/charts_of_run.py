"""Which charts a run has numbers for."""

from collections.abc import Iterable

from megatron_gad.config.run import find_section
from megatron_gad.reporting.charts import CHARTS, WITHOUT_CURVE, Chart, Line, known_keys
from megatron_gad.reporting.run_record import RunRecord, finite_values

# Names in drawing.PALETTE, in the order in which curves of one kind take them.
COLORS = ("student", "discriminator", "teacher", "third", "fifth", "fourth")
MEMORY = "memory/"


def charts_of(run: RunRecord) -> dict[str, tuple[Chart, ...]]:
    """Return the groups of charts that have numbers in a run, plus one chart per unknown key."""
    groups = {
        group: tuple(chart for chart in charts if shown_keys(chart, run))
        for group, charts in CHARTS.items()
    }
    memory = _memory_chart(run)
    if memory.lines:
        groups["Machinery"] = (*groups["Machinery"], memory)
    known = {*known_keys(), *WITHOUT_CURVE}
    keys = sorted({key for record in run.records for key in record if "/" in key} - known)
    keys = [key for key in keys if not key.startswith(MEMORY)]
    others = (Chart(key, (Line(key, key, "student"),)) for key in keys)
    groups["Other metrics"] = tuple(chart for chart in others if shown_keys(chart, run))
    return {group: charts for group, charts in groups.items() if charts}


def _memory_chart(run: RunRecord) -> Chart:
    """Return a chart of the phases that need most; a run has a key for each that it has."""
    keys = {key for record in run.records for key in record if key.startswith(MEMORY)}
    most = {key: max(values) for key in keys if (values := finite_values(run.records, key))}
    largest = sorted(most, key=lambda key: (-most[key], key))[: len(COLORS)]
    lines = (
        Line(key, key.removeprefix(MEMORY).removesuffix("_gib").replace("_", " "), color)
        for key, color in zip(largest, COLORS, strict=False)
    )
    return Chart("Memory, in the phases that need most", tuple(lines), unit="GiB")


def shown_keys(chart: Chart, run: RunRecord) -> list[str]:
    """Return the keys of a chart that have numbers in the stages it shows."""
    return [line.key for line in chart.lines if line_stages(chart, (line,), run)]


def line_stages(chart: Chart, lines: Iterable[Line], run: RunRecord) -> list[int]:
    """Return the indices of the run's spans in which any of the lines has numbers."""
    return [
        index
        for index, span in enumerate(run.spans)
        if is_of(chart, span.stage)
        if any(finite_values(span.records, line.key) for line in lines)
    ]


def is_of(chart: Chart, stage: str) -> bool:
    """Return whether a chart shows stages of this name, if they have numbers."""
    section = find_section(stage)
    loss = None if section is None else section.student_loss
    return chart.student_loss in (None, loss)
