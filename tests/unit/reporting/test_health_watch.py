"""A run that watches its own health warns once of a rule, and stops where it is told to."""

from pathlib import Path

import pytest

from megatron_gad.config.health import HealthConfig
from megatron_gad.errors import RunStoppedError
from megatron_gad.reporting.health_watch import HealthWatch
from megatron_gad.training.parallel import Parallel
from tests.unit.reporting.synthetic_run import write_metrics

COLLAPSED = [{"advantage/zero_share": 0.9, "student/kl": 3.0}] * 20


def watch(folder: Path, place: Parallel, **keys: tuple[str, ...]) -> HealthWatch:
    return HealthWatch(folder, HealthConfig(**keys), place)  # pyright: ignore[reportArgumentType]


def test_it_warns_once_until_the_rule_is_silent_again(
    tmp_path: Path, place: Parallel, caplog: pytest.LogCaptureFixture
) -> None:
    health = watch(write_metrics(tmp_path, "adversarial", COLLAPSED), place)
    health.look(19)
    assert caplog.messages == []  # the mean is over 20 steps
    health.look(20)
    health.look(40)
    assert caplog.messages == [
        "health: Groups whose advantages are all zero (zero_advantages): 90.0 %; healthy is below "
        "30 %. These groups teach nothing. Raise rollout.temperature or the group size, or take "
        "harder prompts.",
        "health: KL to the reference, end of the game (kl): 3 nats a token; healthy is below 0.5. "
        "The student has moved far from where the stage began. Raise gad.kl_coef or lower "
        "adversarial.student_lr, unless the samples are plainly better.",
    ]
    write_metrics(tmp_path, "adversarial", [{"student/kl": 0.1}] * 20)
    health.look(60)
    write_metrics(tmp_path, "adversarial", COLLAPSED)
    health.look(80)
    assert len(caplog.messages) == 4


def test_what_is_ignored_does_not_warn(
    tmp_path: Path, place: Parallel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_metrics(tmp_path, "adversarial", COLLAPSED)
    watch(folder, place, ignore=("kl", "zero_advantages"), stop=("kl",)).look(20)
    assert caplog.messages == []


def test_a_rule_that_may_stop_the_run_does_with_evidence_and_remedy(
    tmp_path: Path, place: Parallel
) -> None:
    health = watch(write_metrics(tmp_path, "adversarial", COLLAPSED), place, stop=("kl",))
    with pytest.raises(RunStoppedError) as stopped:
        health.look(20)
    message = str(stopped.value)
    assert message.startswith("the run is stopped, as health.stop says (kl): KL to the reference")
    assert "Raise gad.kl_coef" in message
    assert "zero_advantages" not in message
    assert "There is no checkpoint yet; the same command" in message


def test_a_watched_run_that_is_healthy_goes_on(tmp_path: Path, place: Parallel) -> None:
    folder = write_metrics(tmp_path, "adversarial", [{"student/kl": 0.1}] * 20)
    watch(folder, place, stop=("kl", "zero_advantages")).look(20)
