"""Models and engine take turns: who is on the device at the moments that matter."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from megatron_gad.config.run import RunConfig
from megatron_gad.config.run_control import ScheduleConfig, WatchdogConfig
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.of_run import plan_residency
from megatron_gad.planning.turns import TURNS
from megatron_gad.resume import save
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.runtime.turns import Turns
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.stage import Stage
from megatron_gad.training import parallel
from megatron_gad.training.offload import DeviceBytes

Start = Callable[[ScheduleConfig], tuple[Run, Stage]]

AWAY = DeviceBytes(0, 0, 0)
EVERYBODY = ("student", "discriminator", "engine")


@pytest.fixture(scope="module")
def configured(configure, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The adversarial stage of the tiny example."""
    return configure(tmp_path_factory.mktemp("out"), "--stages", "adversarial")


@pytest.fixture
def start(configured: RunConfig, place: parallel.Parallel) -> Start:
    """Return a function that begins the stage and takes a step, so that there are moments."""

    def build(schedule: ScheduleConfig) -> tuple[Run, Stage]:
        run = open_run(dataclasses.replace(configured, schedule=schedule), place)
        stage = begin_stage(run)
        stage.step(run)
        run.turn.take_metrics()
        return run, stage

    return build


def on_device(run: Run) -> tuple[DeviceBytes, DeviceBytes, int]:
    """Bytes of student, discriminator and engine."""
    models = (run.student, run.discriminator)
    student, discriminator = (model.memory.device_bytes() for model in models)
    return student, discriminator, run.sampler.device_bytes()


def watch(run: Run, stage: Stage) -> list[tuple[str, tuple[DeviceBytes, DeviceBytes, int]]]:
    """Take a step, and note who is there whenever the engine or a model begins to work."""
    seen = []

    def note(moment: str) -> None:
        now = (moment, on_device(run))
        if now not in seen[-1:]:
            seen.append(now)

    engine: Any = run.sampler.engine
    load, generate = engine.load_weights, engine.generate
    engine.load_weights = lambda *inputs: (note("swap"), load(*inputs))[1]
    engine.generate = lambda *inputs: (note("sample"), generate(*inputs))[1]
    for name, trainer in (("student", run.student), ("discriminator", run.discriminator)):
        trainer.modules_to_read()[0].register_forward_pre_hook(lambda *_, name=name: note(name))
    stage.step(run)
    return seen


def test_everybody_takes_turns(start: Start) -> None:
    run, stage = start(ScheduleConfig(leaves=EVERYBODY))
    run.student.wake()
    run.discriminator.wake()
    student, discriminator, _ = on_device(run)
    shown = DeviceBytes(student.weights, 0, 0)
    # In float32 the engine holds what the student does.
    engine = student.weights
    assert watch(run, stage) == [
        ("swap", (shown, AWAY, 0)),
        ("sample", (shown, AWAY, engine)),
        ("student", (shown, AWAY, engine)),  # compared with the engine
        ("discriminator", (AWAY, discriminator, 0)),
        ("student", (shown, AWAY, 0)),  # lent the reference's weights
        ("student", (student, AWAY, 0)),
    ]
    run.turn.take_metrics()
    stage.step(run)
    found = run.turn.take_metrics()
    assert found["memory/discriminator_gib"] == discriminator.total / GIB
    assert found["memory/student_gib"] == student.total / GIB
    assert found["memory/rollout_gib"] == (student.weights + engine) / GIB
    # Each out and in once, and the reference's weights in.
    moved = student.weights
    moved += 2 * sum(each.weights + each.optimizer for each in (student, discriminator))
    assert found["moves/bytes"] == moved


def test_who_stays_keeps_all_but_the_gradients(
    start: Start,
) -> None:
    run, stage = start(ScheduleConfig(leaves=()))
    run.student.wake()
    run.discriminator.wake()
    student, discriminator, engine = on_device(run)
    idle = [dataclasses.replace(each, gradients=0) for each in (student, discriminator)]
    assert watch(run, stage) == [
        ("swap", (idle[0], idle[1], engine)),
        ("sample", (idle[0], idle[1], engine)),
        ("student", (idle[0], idle[1], engine)),
        ("discriminator", (idle[0], discriminator, engine)),
        ("student", (idle[0], idle[1], engine)),
        ("student", (student, idle[1], engine)),
    ]
    run.turn.take_metrics()
    stage.step(run)
    # The reference's weights in; the student's own out before that, and in after it.
    assert run.turn.take_metrics()["moves/bytes"] == 3 * student.weights


def test_bytes_decide_who_leaves(configured: RunConfig) -> None:
    """Of a run in which each row of a group has its prompt for itself."""
    compute = dataclasses.replace(configured.compute, share_prompts=False)
    configured = dataclasses.replace(configured, compute=compute)

    def leaves(gib: float | None) -> frozenset[str]:
        schedule = ScheduleConfig(device_memory_gib=gib)
        config = dataclasses.replace(configured, schedule=schedule)
        return plan_residency(config, 1).memory.leaves

    everybody = plan_residency(
        dataclasses.replace(configured, schedule=ScheduleConfig(leaves=())), 1
    ).memory
    needed = max(phase.total for phase in everybody.phases) / GIB
    assert leaves(None) == leaves(needed * 1.001) == frozenset()
    # The fullest phase is the discriminator's. The engine costs seconds to wake, the student none.
    assert max(everybody.phases, key=lambda phase: phase.total).phase == "discriminator"
    assert leaves(needed * 0.999) == {"student"}
    alone = everybody.phases[2].by_role
    assert leaves((alone["discriminator"] + alone["activations"]) / GIB) == {"student", "engine"}


def test_what_fits_in_no_way_is_said(configured: RunConfig) -> None:
    schedule = ScheduleConfig(device_memory_gib=0.0005)
    residency = plan_residency(dataclasses.replace(configured, schedule=schedule), 1)
    assert residency.memory.missing > 0


def test_timers_add_up_the_turns_of_a_step(
    place: parallel.Parallel, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns((), Sampler(None, cast(Any, None), place), place)
    # Two readings for the moves before each turn, and two for the turn.
    clock = iter([0.0, 0.0, 10.0, 11.5, 12.0, 12.5, 20.0, 20.25, 30.0, 30.0, 30.0, 34.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for name in ("rollout", "rollout", "swap"):
        with turns(name):
            pass
    seconds = {key: value for key, value in turns.take_metrics().items() if "time/" in key}
    assert seconds == {"time/moves_s": 0.5, "time/rollout_s": 1.75, "time/swap_s": 4.0}
    assert not [key for key in turns.take_metrics() if "time/" in key]


def test_a_turn_that_fails_is_timed(place: parallel.Parallel) -> None:
    turns = Turns((), Sampler(None, cast(Any, None), place), place)
    with pytest.raises(KeyError), turns("student"):
        raise KeyError("lost")
    assert "time/student_s" in turns.take_metrics()


def test_every_turn_has_a_deadline_that_can_be_set() -> None:
    keys = {field.name for field in dataclasses.fields(WatchdogConfig)}
    assert {turn.deadline for turn in TURNS.values()} < keys


def test_a_save_brings_one_model_at_a_time_and_no_gradients(
    start: Start,
) -> None:
    run, stage = start(ScheduleConfig(leaves=EVERYBODY))
    run.student.wake()
    run.discriminator.wake()
    student, discriminator, _ = on_device(run)
    save(run, stage)
    found = run.turn.take_metrics()
    saved_student = student.weights + student.optimizer
    assert found["memory/save_student_gib"] == saved_student / GIB
    saved_discriminator = discriminator.weights + discriminator.optimizer
    assert found["memory/save_discriminator_gib"] == saved_discriminator / GIB
