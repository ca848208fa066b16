"""Runs whose learning is made to fail, and one that is healthy: the rules see which is which."""

from pathlib import Path

import pytest

from megatron_gad.errors import STOPPED
from megatron_gad.reporting.health import RULES, assess
from megatron_gad.reporting.run_record import read_run
from tests.unit.reporting.failing_runs import assert_told, game, short_teacher

pytestmark = pytest.mark.slow
ALL_STAGES = ("--stages", "seqkd", "warmup", "adversarial")
STANDS_STILL = ("--adversarial.student-lr", "1e-9")


def test_a_healthy_run_warns_of_nothing(assets: Path, tmp_path: Path) -> None:
    flags = [*ALL_STAGES, "--seqkd.steps", "60", "--warmup.steps", "60"]
    flags += ["--warmup.discriminator-lr", "3e-3", "--adversarial.discriminator-lr", "1e-4"]
    flags += ["--adversarial.student-lr", "1e-4", "--adversarial.prompts-per-step", "4"]
    flags += ["--adversarial.group-size", "4"]
    status, _, log = game(assets, tmp_path / "run", 40, *flags)
    assert status == 0, log
    assert "health:" not in log
    # Every rule had its number, but for those of an evaluation, which is too small to be told by
    # here, and that of a discriminator that never learns.
    findings = assess(read_run(tmp_path / "run"))
    unseen = {rule.name for rule in RULES} - {finding.name for finding in findings}
    assert unseen == {"frozen_discriminator", "held_out_accuracy", "form_probe", "repetition"}
    assert [finding.name for finding in findings if finding.level == "act"] == []


def test_a_student_whose_rate_is_far_too_high_leaves_its_reference(
    assets: Path, tmp_path: Path
) -> None:
    # It says the teacher's two words, so that there is no gradient until the rate has risen.
    flags = ["--data.path", str(short_teacher(assets, tmp_path)), "--stages", "seqkd"]
    flags += ["adversarial", "--seqkd.steps", "60", "--adversarial.group-size", "4"]
    flags += ["--adversarial.student-lr", "3e-2", "--lr-warmup-steps", "40"]
    flags += ["--gad.kl-coef", "1", "--gad.kl-estimator", "k2"]
    status, _, log = game(assets, tmp_path / "run", 40, *flags)
    assert status == 0, log
    assert_told(tmp_path / "run", log, "kl", "Raise gad.kl_coef or lower adversarial.student_lr")
    assert_told(tmp_path / "run", log, "grad_norm_growth", "Lower adversarial.student_lr.")


def test_a_discriminator_whose_rate_is_far_too_high_drives_scores_apart(
    assets: Path, tmp_path: Path
) -> None:
    flags = ["--data.path", str(short_teacher(assets, tmp_path)), *STANDS_STILL]
    flags += ["--adversarial.discriminator-lr", "1e-1", "--discriminator.score", "sum"]
    flags += ["--health.ignore", "truncated", "--health.stop", "truncated"]
    status, _, log = game(assets, tmp_path / "run", 20, *flags)
    assert status == 0, log
    remedy = "Lower adversarial.discriminator_lr"
    assert_told(tmp_path / "run", log, "discriminator_margin", remedy)
    # What is ignored does not act, and is told on the page alone.
    assert "(truncated)" not in log
    levels = {finding.name: finding.level for finding in assess(read_run(tmp_path / "run"))}
    assert levels["truncated"] == "act"


def test_a_discriminator_that_stands_still_is_overtaken(assets: Path, tmp_path: Path) -> None:
    # It has learned that the teacher says two words, which the student then does more and more.
    flags = ["--data.path", str(short_teacher(assets, tmp_path)), "--stages", "warmup"]
    flags += ["adversarial", "--warmup.steps", "40", "--warmup.discriminator-lr", "3e-3"]
    flags += ["--warmup.no-train-student", "--warmup.prompts-per-step", "4"]
    flags += ["--adversarial.discriminator-interval", "0", "--adversarial.group-size", "4"]
    flags += ["--adversarial.student-lr", "1e-2", "--lr-warmup-steps", "40", "--gad.kl-coef", "0"]
    status, _, log = game(assets, tmp_path / "run", 40, *flags)
    assert status == 0, log
    assert_told(tmp_path / "run", log, "discriminator_loss_growth", "extra_discriminator_steps")
    assert "(warmup_loss)" not in log


def test_a_warm_up_that_taught_nothing_is_seen_in_the_game(assets: Path, tmp_path: Path) -> None:
    flags = ["--stages", "warmup", "adversarial", "--warmup.steps", "3", *STANDS_STILL]
    flags += ["--warmup.discriminator-lr", "1e-9", "--discriminator.head-std", "0.01"]
    status, _, log = game(assets, tmp_path / "run", 20, *flags)
    assert status == 0, log
    assert_told(tmp_path / "run", log, "warmup_loss", "gate on it with warmup.stop_below")
    # The student has random weights: what it says is hardly ever what its tokenizer would make.
    assert_told(tmp_path / "run", log, "retokenized", "Usual with a weak student")


def test_a_discriminator_that_breaks_stops_the_run(assets: Path, tmp_path: Path) -> None:
    flags = ["--adversarial.discriminator-lr", "1e30", "--watchdog.max-skipped-steps", "0"]
    flags += ["--health.stop", "non_finite"]
    status, steps, log = game(assets, tmp_path / "run", 40, *flags)
    assert (status, len(steps)) == (STOPPED, 20), log
    remedy = "lower the learning rate of the model that shows it first"
    assert_told(tmp_path / "run", log, "non_finite", remedy, "the run is stopped")
    message = log[log.index("megatron_gad: the run is stopped") :]
    assert "as health.stop says (non_finite): Numbers that are nan or infinite" in message
    assert "healthy is none" in message
    assert remedy in message
    assert "There is no checkpoint yet; the same command" in message
