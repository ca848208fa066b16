"""One self-contained page about a run: open it in any browser, offline, and send it to anyone."""

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from megatron_gad.files import replace_text
from megatron_gad.reporting.charts_of_run import charts_of
from megatron_gad.reporting.drawing import DrawnChart, draw_chart
from megatron_gad.reporting.formatting import format_duration
from megatron_gad.reporting.health import ACTIONS, assess, configured, episodes
from megatron_gad.reporting.run_record import RunRecord, finite_values, read_run
from megatron_gad.reporting.samples import SampledStep, choose_samples
from megatron_gad.reporting.summary import (
    best_student,
    calibration,
    config_facts,
    final_numbers,
    result_seconds,
    results_table,
    timeline,
)
from megatron_gad.reporting.verdicts import read_verdicts

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def build_report(run_folder: Path | str) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Works on running, interrupted and finished runs; whatever a run lacks is left out.

    Raises:
        ValueError: the folder is no run.
    """
    path = Path(run_folder) / REPORT_FILE
    # A lone surrogate cannot be encoded; as a character reference it shows as a replacement mark.
    replace_text(path, render_report(Path(run_folder)), errors="xmlcharrefreplace")
    return path


def render_report(run_folder: Path) -> str:
    """Return the page of a run.

    Raises:
        ValueError: the folder is no run.
    """
    run = read_run(run_folder)
    groups = {
        group: [draw_chart(chart, run) for chart in charts]
        for group, charts in charts_of(run).items()
    }
    return _render_run(run, groups)


def render(template: str, groups: dict[str, list[DrawnChart]], **parts: Any) -> str:
    """Return a page with its own style, script and drawings in it.

    groups: title -> charts. parts: what else the template shows.
    """
    # autoescape covers all text of the run; only our own files and drawings are Markup.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [chart for charts in groups.values() for chart in charts]
    return environment.get_template(template).render(
        style=_own_file("page.css"),
        script=_own_file("page.js"),
        groups=groups,
        svg={chart.title: Markup(chart.svg) for chart in drawn},
        pointers={chart.title: chart.pointer for chart in drawn},
        **parts,
    )


def _render_run(run: RunRecord, groups: dict[str, list[DrawnChart]]) -> str:
    findings = assess(run)
    health = configured(run.config)
    notes, samples = list(run.notes), choose_samples(run)
    verdicts = read_verdicts(run.folder, notes)
    times = finite_values(run.records, "time")
    return render(
        "page.html.jinja",
        groups,
        run=run,
        num_steps=len(run.records),
        last_written=datetime.fromtimestamp(times[-1]).strftime("%Y-%m-%d %H:%M") if times else "",
        duration=format_duration(sum(span.seconds for span in run.spans)),
        timeline=timeline(run),
        facts=config_facts(run),
        numbers=final_numbers(run),
        notes=notes,
        best=best_student(run.results),
        calibration=calibration(run),
        results=results_table(run.results),
        verdicts=verdicts,
        seconds=result_seconds(run.results),
        findings=findings,
        episodes=episodes(run.records, health, run.config),
        actions=ACTIONS,
        num_findings={
            level: sum(finding.level == level for finding in findings)
            for level in ("act", "watch", "healthy")
        },
        samples=samples,
        score_of_tokens=_score_of_tokens(run, samples),
    )


def _score_of_tokens(run: RunRecord, samples: list[SampledStep]) -> str:
    """Return whether a score is the sum or the mean of its tokens; "" if none are shown."""
    if not any(prompt.scale for sampled in samples for prompt in sampled.prompts):
        return ""
    section = run.config.get("discriminator")
    is_mean = isinstance(section, dict) and section.get("score") == "mean"
    return "mean" if is_mean else "sum"


def _own_file(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
