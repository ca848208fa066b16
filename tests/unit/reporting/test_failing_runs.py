"""Runs that are made to fail: the rules see it, do what they are told to, and say why."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.__main__ import main
from megatron_gad.errors import STOPPED
from tests.ranks import statuses_of_ranks

pytestmark = pytest.mark.slow
Played = tuple[int | None, list[dict[str, Any]], str]
SMALL = ["--adversarial.prompts-per-step", "1", "--adversarial.group-size", "2"]
SMALL += ["--adversarial.extra-discriminator-steps", "0"]


def run_command(words: list[str]) -> int:
    """Run the command in this process."""
    sys.argv = ["megatron_gad", *words]
    return main()


def game(assets: Path, save: Path, steps: int, *flags: str) -> Played:
    """Play the game from a student with random weights; return status, metrics and log."""
    words = ["examples/tiny/run.toml", "--no-tensorboard", "--stages", "adversarial"]
    words += ["--adversarial.steps", str(steps), "--save", str(save), *SMALL]
    words += ["--student.path", str(assets / "student"), *flags]
    words += ["--data.eval-path", str(assets / "eval.jsonl")]
    if "--data.path" not in flags:
        words += ["--data.path", str(assets / "train.jsonl")]
    log = save.with_suffix(".log")
    (status,) = statuses_of_ranks(run_command, 1, words, log=log, timeout_s=600)
    lines = (save / "metrics.jsonl").read_text().splitlines()
    return status, [json.loads(line) for line in lines], log.read_text()


def short_teacher(assets: Path, folder: Path) -> Path:
    """Write rows whose teacher says two words: whoever says more is found out by his length."""
    rows = [json.loads(line) for line in (assets / "train.jsonl").read_text().splitlines()]
    file = folder / "short.jsonl"
    lines = [json.dumps({**row, "teacher_response": "facing north."}) + "\n" for row in rows]
    file.write_text("".join(lines))
    return file


def test_a_discriminator_that_has_won_is_paused(assets: Path, tmp_path: Path) -> None:
    # The texts of the student run to the cap without an end token; the teacher says two words.
    flags = ["--data.path", str(short_teacher(assets, tmp_path))]
    flags += ["--adversarial.discriminator-lr", "3e-3", "--adversarial.student-lr", "1e-9"]
    flags += ["--health.pause-discriminator", "strong_discriminator"]
    status, steps, log = game(assets, tmp_path / "run", 43, *flags)
    assert status == 0, log
    assert [rule for rule in ("truncated", "length_ratio") if f"({rule})" not in log] == []
    assert "(strong_discriminator)" in log
    assert "Therefore the discriminator is paused until this is over" in log
    learned = ["discriminator/grad_norm" in step for step in steps]
    assert learned == [True] * 40 + [False] * 3
    # It scores on, so that the rule can end; and the student learns on.
    assert all("discriminator/accuracy" in step and "student/loss" in step for step in steps)
    page = (tmp_path / "run/report.html").read_text()
    assert "Therefore the discriminator is paused until this is over (health)." in page


def test_a_student_without_variety_is_not_trained(assets: Path, tmp_path: Path) -> None:
    flags = ["--rollout.temperature", "1e-4", "--evaluation.interval", "20"]
    flags += ["--health.skip-student", "zero_advantages"]
    status, steps, log = game(assets, tmp_path / "run", 22, *flags)
    assert status == 0, log
    assert "(zero_advantages)" in log
    assert "(non_finite)" not in log  # without a spread the probes have no unit, and no number
    assert "Therefore the student is not trained until this is over" in log
    assert "(repetition)" in log  # the likeliest text of random weights goes round in circles
    assert ["student/loss" in step for step in steps] == [True] * 20 + [False] * 2
    assert all("discriminator/grad_norm" in step for step in steps)


def test_a_discriminator_that_never_learns_stops_the_run(assets: Path, tmp_path: Path) -> None:
    flags = ["--adversarial.discriminator-interval", "0", "--data.max-response-tokens", "4"]
    flags += ["--health.stop", "frozen_discriminator", "--samples-interval", "0"]
    status, steps, log = game(assets, tmp_path / "run", 170, *flags)
    assert status == STOPPED, log
    assert len(steps) == 160  # at the first look after 150 steps
    assert "as health.stop says (frozen_discriminator)" in log
    assert "discriminator_interval = 1" in log
