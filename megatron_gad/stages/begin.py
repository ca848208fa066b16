"""Open a run, and enter its stages: at their beginning, or where a checkpoint left them."""

import contextlib
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_gad import stages
from megatron_gad.checks.inputs import ReadRows, read_codecs
from megatron_gad.config.run import RunConfig
from megatron_gad.data.codecs import Codecs
from megatron_gad.engines.rewards.client import Rewards
from megatron_gad.runtime.metrics import MetricsWriter
from megatron_gad.runtime.parts import (
    build_sampler,
    build_student,
    build_turns,
    check_finite,
    check_models,
    check_served_teacher,
)
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.run_data import NOTHING, RunData
from megatron_gad.runtime.run_folder import RunFolderLock, ask_first_rank, check_is_shared
from megatron_gad.runtime.turns import Watch, no_watch
from megatron_gad.stages.stage import Stage
from megatron_gad.training.parallel import Parallel


def find_stage(name: str) -> type[Stage]:
    """Return the stage of this name; every module of this folder is looked at."""
    for module in pkgutil.iter_modules(stages.__path__, f"{stages.__name__}."):
        importlib.import_module(module.name)
    classes = [Stage]
    while classes:
        stage = classes.pop()
        if "kind" in vars(stage) and stage.kind.name == name:
            return stage
        classes += stage.__subclasses__()
    raise AssertionError(f"{name} has a section and no stage")


def open_run(
    config: RunConfig,
    parallel: Parallel,
    watch: Watch = no_watch,
    codecs: Codecs | None = None,
    read: ReadRows = NOTHING,
    lock: RunFolderLock | None = None,
) -> Run:
    """Build the parts of a run; its data are loaded and checked before an engine starts.

    watch: entered for as long as a turn lasts.
    codecs: what turns text into ids, if it was opened already.
    read: the rows that the first rank has read already.
    lock: of the run directory, if the first rank took it already.

    Raises ValueError if the data are too few for a step, or the run directory cannot be used.
    """
    folder = Path(config.checkpoint.save)
    check_is_shared(folder, parallel)
    with contextlib.ExitStack() as opened:
        lock = lock or RunFolderLock(folder)
        opened.callback(lock.close)
        ask_first_rank(parallel, lock.take)
        writer = MetricsWriter(folder, config.log, parallel.is_writer)
        opened.callback(writer.close)
        codecs = codecs or read_codecs(config)
        data = RunData(config, codecs, parallel, read)
        config.check_rows(len(data.prompts))
        check_models(config, parallel)
        check_served_teacher(config, parallel)
        sampler = build_sampler(config, codecs, parallel)
        opened.callback(sampler.close)
        if parallel.device.type == "cuda":
            sampler.sleep()  # a server took its memory when all was free; now models need it
            parallel.barrier()
        rewards = Rewards(config.rewards)
        opened.callback(rewards.close)
        student = build_student(config, parallel)
        turn = build_turns(config, parallel, sampler, watch)
        turn.add("student", student)
        return Run(
            *(config, codecs, data, lock, writer, sampler, rewards, student, turn),
            opened=opened.pop_all(),
        )


def begin_stage(run: Run) -> Stage:
    """Set up what the run's stage needs, from the models as the stage before left them."""
    stage = find_stage(run.stage_name)(run.config)
    run.data.start_stage(run.progress.stage_index)
    if stage.kind.uses_discriminator and not run.has_discriminator:
        with run.turn("build"):
            run.build_discriminator()
            source = run.config.discriminator.path or run.student.hf_weights()
            run.discriminator.load_hf_weights(source)
            if isinstance(source, str):
                check_finite("discriminator.path", source, run.discriminator)
    _start_schedules(run, stage, run.config.gad.reset_optimizer)
    stage.begin(run)
    return stage


def resume_stage(
    run: Run,
    schedule_steps: Mapping[str, int],
    state: Mapping[str, Any],
    snapshots: Mapping[str, list[Tensor]],
) -> Stage:
    """Go on in the middle of the run's stage; the data orders stand where they stood.

    schedule_steps: optimizer steps of each model in the stage. state, snapshots: the stage's own.
    """
    stage = find_stage(run.stage_name)(run.config)
    _start_schedules(run, stage, resets_optimizer=False)
    run.student.schedule.resume(schedule_steps["student"])
    if stage.kind.uses_discriminator:
        run.discriminator.schedule.resume(schedule_steps["discriminator"])
    stage.resume(run, state, snapshots)
    return stage


def reason_to_end(run: Run, stage: Stage) -> str:
    """Return why the stage is at its end, or an empty string."""
    num_steps = stage.settings.num_steps(len(run.data.prompts))
    is_last = run.progress.step_in_stage >= num_steps
    return stage.reason_to_end() or (f"its {num_steps} steps are done" if is_last else "")


def _start_schedules(run: Run, stage: Stage, resets_optimizer: bool) -> None:
    """Start the learning-rate schedules of a stage."""
    num_steps = stage.settings.num_steps(len(run.data.prompts))
    student = stage.student_learning(num_steps)
    run.student.begin_stage(student.lr, student.num_steps, resets_optimizer)
    if stage.kind.uses_discriminator:
        own = stage.discriminator_learning(num_steps)
        run.discriminator.begin_stage(own.lr, own.num_steps, resets_optimizer)
