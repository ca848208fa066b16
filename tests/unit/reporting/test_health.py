"""Each rule fires on the number that it is about, says what to do, and is silent otherwise."""

import json
import math
from typing import get_args

import pytest

from megatron_gad.config.health import HealthRule
from megatron_gad.reporting.health import RULES, Finding, assess
from megatron_gad.reporting.run_record import read_run
from tests.unit.reporting.synthetic_run import write_metrics, write_run


def findings_of(folder, stage: str, rows: list[dict[str, float]]) -> dict[str, Finding]:
    return {f.title: f for f in assess(read_run(write_metrics(folder, stage, rows)))}


def constant(key: str, value: float, num_steps: int = 30) -> list[dict[str, float]]:
    return [{key: value}] * num_steps


def rising(key: str, start: float, end: float) -> list[dict[str, float]]:
    return constant(key, start, 25) + constant(key, end, 25)


def test_a_healthy_run_is_healthy_by_every_rule(tmp_path):
    findings = assess(read_run(write_run(tmp_path / "run", steps=(60, 100, 60))))
    assert [f.title for f in findings if f.level != "healthy"] == []
    # Not of a frozen discriminator, nor of an evaluation.
    assert len(findings) == len(RULES) - 4
    assert all(finding.advice == "" for finding in findings)


@pytest.mark.parametrize(
    ("title", "stage", "rows", "level", "value"),
    [
        ("too strong", "adversarial", constant("discriminator/accuracy", 0.97), "act", "97.0 %"),
        ("too strong", "adversarial", constant("discriminator/accuracy", 0.92), "watch", "92.0 %"),
        ("too weak", "adversarial", constant("discriminator/accuracy", 0.45), "act", "45.0 %"),
        ("too weak", "adversarial", constant("discriminator/accuracy", 0.65), "healthy", "65.0 %"),
        ("margin", "adversarial", constant("discriminator/margin", 11.0), "act", "11"),
        ("margin", "adversarial", constant("discriminator/margin", -0.5), "watch", "-0.5"),
        (
            "Discriminator loss, end against",
            "adversarial",
            rising("discriminator/loss", 0.5, 0.65),
            "watch",
            "1.3 x",
        ),
        ("advantages are all", "adversarial", constant("advantage/zero_share", 0.7), "act", "70.0"),
        ("KL", "adversarial", constant("student/kl", 0.75), "watch", "0.75 nats a token"),
        ("Entropy", "adversarial", rising("student/entropy", 2.0, 0.2), "act", "0.1 x"),
        ("Entropy", "adversarial", rising("student/entropy", 1.0, 5.0), "act", "5 x"),
        ("cut at the", "warmup", constant("response/truncated_share", 0.2), "watch", "20.0 %"),
        ("other tokens", "adversarial", constant("response/retokenized_share", 0.3), "act", "30.0"),
        ("gradient norm", "adversarial", rising("student/grad_norm", 0.5, 2.0), "watch", "4 x"),
        ("line break", "warmup", constant("probe/space", -1.2, 3), "act", "1.2 group std"),
        ("line break", "warmup", constant("probe/newline", 0.1, 3), "healthy", "0.1 group std"),
        ("repeat", "adversarial", constant("evaluation/repetition", 0.2, 3), "watch", "20.0 %"),
        ("nan", "adversarial", constant("student/loss", math.nan, 3), "act", "3"),
        ("nan", "adversarial", constant("student/loss", 0.1, 3), "healthy", "0"),
    ],
)
def test_a_rule_judges_its_number(tmp_path, title, stage, rows, level, value):
    findings = findings_of(tmp_path, stage, rows)
    (finding,) = (f for name, f in findings.items() if title in name)
    assert finding.level == level
    assert finding.value.startswith(value)
    assert bool(finding.advice) == (level != "healthy")


def test_every_rule_has_bounds_from_which_on_it_may_do_something():
    bounds = [bound for rule in RULES for pair in (rule.low, rule.high) for bound in pair or ()]
    assert len(bounds) >= 2 * len(RULES)
    assert all(map(math.isfinite, bounds))


def test_only_the_end_of_the_game_is_judged(tmp_path):
    rows = constant("discriminator/accuracy", 0.99, 30) + constant("discriminator/accuracy", 0.7)
    findings = findings_of(tmp_path, "adversarial", rows)
    assert findings["Discriminator too strong: its accuracy in the game"].value == "70.0 %"


def test_the_warm_up_is_no_game(tmp_path):
    findings = findings_of(tmp_path, "warmup", constant("discriminator/accuracy", 0.99))
    assert "Discriminator too strong: its accuracy in the game" not in findings


@pytest.mark.parametrize(("loss", "level"), [(0.68, "act"), (0.63, "watch"), (0.45, "healthy")])
def test_the_warm_up_is_judged_once_the_game_begins(tmp_path, loss, level):
    lines = [{"step": n, "stage": "warmup", "discriminator/loss": loss} for n in (1, 2)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [f for f in assess(read_run(tmp_path)) if f.name == "warmup_loss"] == []
    with file.open("a") as more:
        more.write('{"step": 3, "stage": "adversarial", "discriminator/loss": 0.2}\n')
    (finding,) = (f for f in assess(read_run(tmp_path)) if f.name == "warmup_loss")
    assert (finding.level, finding.value) == (level, f"{loss:g}")


def test_length_drift_is_against_the_teacher_on_the_same_steps(tmp_path):
    row = {"response/length_mean": 90.0, "teacher/length_mean": 40.0}
    finding = findings_of(tmp_path, "adversarial", [row] * 5)[
        "Response length against the teacher's"
    ]
    assert (finding.level, finding.value) == ("act", "2.25 x")
    assert "length-controlled" in finding.advice


def test_the_bound_of_the_engine_gap_depends_on_precision(tmp_path):
    rows = [{"engine/logprob_gap_max": gap} for gap in (1e-5, 2e-3, 1e-5)]
    title = "Engine against trainer, largest gap"
    finding = findings_of(tmp_path, "adversarial", rows)[title]
    assert (finding.level, finding.value) == ("watch", "2 x the bound")
    (tmp_path / "config.toml").write_text("[compute]\nbf16 = true\n")
    (finding,) = (f for f in assess(read_run(tmp_path)) if f.title == title)
    assert (finding.level, finding.value) == ("healthy", "0.001 x the bound")


@pytest.mark.parametrize(("num_steps", "level"), [(40, "healthy"), (100, "watch"), (200, "act")])
def test_a_frozen_discriminator_gets_old(tmp_path, num_steps, level):
    (tmp_path / "config.toml").write_text("[adversarial]\ndiscriminator_interval = 0\n")
    findings = findings_of(tmp_path, "adversarial", constant("reward/mean", 0.0, num_steps))
    assert findings["Steps against a frozen discriminator"].level == level


def test_the_worst_comes_first(tmp_path):
    row = {"student/kl": 0.7, "discriminator/accuracy": 0.99, "advantage/zero_share": 0.1}
    run = read_run(write_metrics(tmp_path, "adversarial", [row] * 5))
    levels = [finding.level for finding in assess(run)]
    assert levels == ["act", "watch", "healthy", "healthy", "healthy"]


def test_a_discriminator_that_knows_its_rows_by_heart(tmp_path):
    row = {"discriminator/accuracy": 0.9, "evaluation/discriminator_accuracy": 0.6}
    findings = findings_of(tmp_path, "adversarial", [row] * 5)
    title = "Discriminator accuracy, training above held-out rows"
    assert (findings[title].level, findings[title].value) == ("act", "30.0 %")


def test_every_rule_has_the_name_that_a_configuration_knows():
    assert [rule.name for rule in RULES] == list(get_args(HealthRule))
