"""Every key of a run is on the page, in the stages where it means what the chart says."""

import re
from pathlib import Path

import pytest

from megatron_gad.reporting.charts import WITHOUT_CURVE, known_keys
from megatron_gad.reporting.charts_of_run import charts_of
from megatron_gad.reporting.drawing import draw_chart
from megatron_gad.reporting.run_record import read_run
from megatron_gad.runtime.metrics import LOG_LINE_KEYS
from tests.unit.reporting.synthetic_run import write_metrics, write_run

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def chart_of(folder, title: str):
    run = read_run(folder)
    charts = [chart for group in charts_of(run).values() for chart in group]
    return draw_chart(next(chart for chart in charts if chart.title == title), run)


def path_points(svg: str, color: str) -> list[list[tuple[float, float]]]:
    """Return the points of every line of a colour, as drawn; y grows downwards."""
    pattern = rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--{color}\)'
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
        for path in re.findall(pattern, svg)
    ]


def test_documented_keys_are_exactly_those_the_page_knows():
    documented = set(re.findall(r"^\| `([a-z]+/[a-z_0-9]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert documented == {*known_keys(), *WITHOUT_CURVE} - {"time/other_s"}
    assert set(LOG_LINE_KEYS) <= documented


def test_a_key_that_the_page_does_not_know_gets_a_chart(tmp_path):
    folder = write_metrics(tmp_path, "adversarial", [{"eval/accuracy": 0.25}])
    groups = charts_of(read_run(folder))
    assert list(groups) == ["Other metrics"]
    chart = chart_of(folder, "eval/accuracy")
    assert chart.pointer["lines"][0]["points"] == [[0.5, 1, "0.25"]]


def test_the_phases_that_need_most_memory_share_a_chart(tmp_path):
    phases = "abcdefgh"
    row = {f"memory/save_{name}_gib": float(size) for size, name in enumerate(phases)}
    folder = write_metrics(tmp_path, "warmup", [row, {"memory/late_gib": 9.0}])
    assert list(charts_of(read_run(folder))) == ["Machinery"]
    lines = chart_of(folder, "Memory, in the phases that need most").pointer["lines"]
    assert [each["label"] for each in lines] == ["late", *(f"save {name}" for name in "hgfed")]


def test_a_label_that_is_long_is_small_enough_to_be_whole(tmp_path):
    for name, values in (("short", (1.0, 2.0)), ("long", (0.00272, 0.00296))):
        folder = write_metrics(tmp_path / name, "warmup", [{"a/b": value} for value in values])
        svg = chart_of(folder, "a/b").svg
        size = r"font-size: ([0-9.]+)px; [^>]*text-anchor: end"
        sizes = re.findall(rf'<text style="{size}[^>]*x="([0-9.]+)"[^>]*>([^<]+)<', svg)
        assert sizes
        # A digit is about 0.6 of the size wide.
        assert all(0.6 * float(size) * len(text) <= float(x) for size, x, text in sizes)


def test_cross_entropy_and_policy_loss_are_kept_apart(tmp_path):
    folder = write_run(tmp_path / "run", steps=(6, 3, 4))
    run = read_run(folder)
    curves = {
        title: [point[1] for point in chart_of(folder, title).pointer["lines"][0]["points"]]
        for title in (
            "Student: cross-entropy on what it fits",
            "Student: policy loss in the game",
        )
    }
    assert list(curves.values()) == [[1, 2, 3, 4, 5, 6], [10, 11, 12, 13]]
    assert run.spans[2].first_step == 10


def test_a_chart_holds_the_numbers_of_the_run(tmp_path):
    rows = [{"discriminator/accuracy": value} for value in (0.5, 0.625, 0.75)]
    chart = chart_of(write_metrics(tmp_path, "adversarial", rows), "Discriminator: accuracy")
    (line,) = chart.pointer["lines"]
    assert line["points"] == [
        [0.16667, 1, "50.0 %"],
        [0.5, 2, "62.5 %"],
        [0.83333, 3, "75.0 %"],
    ]
    assert (chart.legend[0].color, chart.legend[0].last) == ("discriminator", "75.0 %")


def test_a_curve_is_drawn_to_scale(tmp_path):
    rows = [{"student/kl": value} for value in (0.0, 1.0, 4.0)]
    chart = chart_of(write_metrics(tmp_path, "adversarial", rows), "KL to the reference")
    ((first, second, third),) = path_points(chart.svg, "student")
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.02)
    assert (first[1] - third[1]) / (first[1] - second[1]) == pytest.approx(4.0, abs=0.01)


def test_a_drawing_leaves_all_colours_to_the_page(tmp_path):
    folder = write_run(tmp_path / "run", steps=(6, 3, 4))
    run = read_run(folder)
    for group in charts_of(run).values():
        for chart in group:
            svg = draw_chart(chart, run).svg
            assert "#0102" not in svg
            assert "var(--ink)" in svg
            assert "http" not in svg.replace("http://www.w3.org", "")


def test_stages_are_named_in_every_chart(tmp_path):
    chart = chart_of(write_run(tmp_path / "run", steps=(6, 3, 4)), "Gradient norms")
    for stage, color in (("seqkd", 0), ("warmup", 1), ("adversarial", 2)):
        assert f">{stage}</text>" in chart.svg
        assert f"var(--stage{color})" in chart.svg


@pytest.mark.parametrize(
    ("stage", "title"),
    [
        ("seqkd", "Student: cross-entropy on what it fits"),
        ("warmup", "Student: cross-entropy on what it fits"),
        ("best_of_n", "Student: cross-entropy on what it fits"),
        ("preference", "Student: loss of pairs"),
        ("white_box", "Student: divergence from the teacher"),
        ("adversarial", "Student: policy loss in the game"),
    ],
)
def test_a_students_loss_is_drawn_as_what_it_is(tmp_path, stage, title):
    run = read_run(write_metrics(tmp_path, stage, [{"student/loss": 1.0}] * 3))
    assert [chart.title for chart in charts_of(run)["Learning"]] == [title]


def test_a_logarithmic_chart_of_zeros_is_drawn(tmp_path):
    folder = write_metrics(tmp_path, "adversarial", [{"student/lr": 0.0}] * 3)
    assert chart_of(folder, "Learning rates").legend[0].last == "0"


@pytest.mark.filterwarnings("error")
def test_a_logarithmic_chart_of_a_constant_is_drawn_without_a_warning(tmp_path):
    folder = write_metrics(tmp_path, "adversarial", [{"student/lr": 0.01}] * 160)
    svg = chart_of(folder, "Learning rates").svg
    assert len({y for line in path_points(svg, "student") for _, y in line}) == 1


def test_times_stack_up_to_the_step(tmp_path):
    row = {"time/rollout_s": 3.0, "time/student_s": 1.0, "time/step_s": 6.0}
    chart = chart_of(write_metrics(tmp_path, "adversarial", [row]), "Where a step's time goes")
    assert [(line.label, line.last) for line in chart.legend] == [
        ("rollout", "3"),
        ("student", "1"),
        ("other", "2"),
    ]
