"""A run that watches its own health warns once of a rule, and does what it is told to do."""

import logging
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.config.health import HealthConfig
from megatron_gad.errors import RunStoppedError
from megatron_gad.reporting.health_watch import HealthWatch
from megatron_gad.runtime.run import Restraint
from megatron_gad.training.parallel import Parallel
from tests.unit.reporting.synthetic_run import write_metrics

COLLAPSED = {"advantage/zero_share": 0.9, "student/kl": 3.0}
HEALTHY = {"advantage/zero_share": 0.1, "student/kl": 0.1}
STRONG, EVEN = {"discriminator/accuracy": 0.99}, {"discriminator/accuracy": 0.7}
GAME = "adversarial"
FREE, PAUSED, SKIPPED = Restraint(), Restraint(True, False), Restraint(False, True)


def watch(folder: Path, place: Parallel, **keys: tuple[str, ...]) -> HealthWatch:
    """Watch a run that has not taken a step."""
    (folder / "config.toml").touch()
    return HealthWatch(folder, HealthConfig(**keys), place)  # pyright: ignore[reportArgumentType]


def live(
    health: HealthWatch, rows: list[dict[str, Any]], first: int = 1, stage: str = GAME
) -> list[Restraint]:
    """Take steps; return what is held back in the step after each."""
    held: list[Restraint] = []
    restraint = FREE
    for step, row in enumerate(rows, start=first):
        record = {"step": step, "stage": stage, **row}
        restraint = health.look(record, step) or restraint
        held.append(restraint)
    return held


def test_it_warns_once_until_the_rule_is_silent_again(
    tmp_path: Path, place: Parallel, caplog: pytest.LogCaptureFixture
) -> None:
    health = watch(tmp_path, place)
    live(health, [COLLAPSED] * 19)
    assert caplog.messages == []  # the mean is over 20 steps
    live(health, [COLLAPSED] * 21, first=20)
    assert caplog.messages == [
        "health: Groups whose advantages are all zero (zero_advantages): 90.0 %; healthy is below "
        "30 %. These groups teach nothing. Raise rollout.temperature or the group size, or take "
        "harder prompts.",
        "health: KL to the reference, end of the game (kl): 3 nats a token; healthy is below 0.5. "
        "The student has moved far from where the stage began. Raise gad.kl_coef or lower "
        "adversarial.student_lr, unless the samples are plainly better.",
    ]
    with caplog.at_level(logging.INFO):
        live(health, [HEALTHY] * 20, first=41)
    assert caplog.messages[2:] == [
        "health: Groups whose advantages are all zero (zero_advantages) is over",
        "health: KL to the reference, end of the game (kl) is over",
    ]
    live(health, [COLLAPSED] * 20, first=61)
    assert len(caplog.messages) == 6


def test_what_is_ignored_does_not_warn(
    tmp_path: Path, place: Parallel, caplog: pytest.LogCaptureFixture
) -> None:
    rules = ("kl", "zero_advantages")
    health = watch(tmp_path, place, ignore=rules, stop=("kl",), skip_student=rules)
    assert {*live(health, [COLLAPSED] * 20)} == {FREE}
    assert caplog.messages == []


def test_a_rule_that_may_stop_the_run_does_with_evidence_and_remedy(
    tmp_path: Path, place: Parallel
) -> None:
    health = watch(tmp_path, place, stop=("kl",))
    with pytest.raises(RunStoppedError) as stopped:
        live(health, [COLLAPSED] * 20)
    message = str(stopped.value)
    assert message.startswith("the run is stopped, as health.stop says (kl): KL to the reference")
    assert "Raise gad.kl_coef" in message
    assert "zero_advantages" not in message
    assert "There is no checkpoint yet; the same command" in message


def test_a_watched_run_that_is_healthy_goes_on(tmp_path: Path, place: Parallel) -> None:
    health = watch(tmp_path, place, stop=("kl", "zero_advantages"))
    assert {*live(health, [HEALTHY] * 20)} == {FREE}


@pytest.mark.parametrize(
    ("action", "restraint", "told"),
    [
        ("pause_discriminator", PAUSED, "the discriminator is paused until this is over"),
        ("skip_student", SKIPPED, "the student is not trained until this is over"),
    ],
)
def test_a_model_is_held_back_while_its_rule_acts(
    tmp_path: Path,
    place: Parallel,
    caplog: pytest.LogCaptureFixture,
    action: str,
    restraint: Restraint,
    told: str,
) -> None:
    health = watch(tmp_path, place, **{action: ("strong_discriminator",)})
    held = live(health, [STRONG] * 25 + [EVEN] * 35)
    # The mean over steps 21 to 40 is .77, so the look at step 40 lets it go.
    assert held == [FREE] * 19 + [restraint] * 20 + [FREE] * 21
    assert caplog.messages[0].endswith(f"Therefore {told} (health).")
    assert "strong_discriminator): 99.0 %" in caplog.messages[0]


@pytest.mark.parametrize("num_before", [19, 20, 33, 39, 40])
def test_a_resumed_run_is_held_back_like_one_that_was_not_interrupted(
    tmp_path: Path, place: Parallel, caplog: pytest.LogCaptureFixture, num_before: int
) -> None:
    rows = [STRONG] * 22 + [EVEN] * 38
    keys = {"pause_discriminator": ("strong_discriminator",)}
    whole = live(watch(tmp_path, place, **keys), rows)
    caplog.clear()
    write_metrics(tmp_path, GAME, rows[:num_before])
    resumed = watch(tmp_path, place, **keys)
    assert caplog.messages == []  # it has warned already
    restraint = resumed.restraint(num_before)
    assert restraint == whole[num_before - 1]
    later = live(resumed, rows[num_before:], first=num_before + 1)
    until_look = 20 - num_before % 20 - 1
    assert later[until_look:] == whole[num_before + until_look :]


def test_a_stage_begins_without_what_the_one_before_held_back(
    tmp_path: Path, place: Parallel
) -> None:
    health = watch(tmp_path, place, pause_discriminator=("length_ratio",))
    long = {"response/length_mean": 90.0, "teacher/length_mean": 30.0}
    assert live(health, [long] * 20, stage="warmup")[-1] == PAUSED
    assert health.restraint(0) == FREE
