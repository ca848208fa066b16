"""A run from beginning to end: build the parts, walk the stages, save, report."""

import contextlib
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_gad.checks.inputs import ReadRows, read_all_rows
from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import to_toml
from megatron_gad.data.codecs import Codecs
from megatron_gad.environment import (
    environment_rank,
    environment_world_size,
    is_started_by_torchrun,
)
from megatron_gad.errors import RunStoppedError, only_warns
from megatron_gad.files import replace_text
from megatron_gad.models.hub import with_model_names
from megatron_gad.reporting.health_watch import HealthWatch
from megatron_gad.resume import finish_saving, load_latest, save
from megatron_gad.runtime.export import export_model
from megatron_gad.runtime.metrics import METRICS_FILE, advance, progress
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.run_folder import RunFolderLock
from megatron_gad.runtime.selection import keep_best
from megatron_gad.runtime.stop_request import StopRequest
from megatron_gad.runtime.watchdog import Watchdog
from megatron_gad.stages.begin import begin_stage, open_run, reason_to_end
from megatron_gad.stages.held_out import evaluate_held_out
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult
from megatron_gad.storage import storage_error, telling_of_storage
from megatron_gad.training import parallel

logger = logging.getLogger(__name__)


def train(config: RunConfig, tell: Callable[[BaseException], int], codecs: Codecs) -> None:
    """Train through all stages; go on from the newest checkpoint where there is one.

    Writes everything under ``config.checkpoint.save``. Raises ValueError for bad input and
    RunStoppedError where the run must not go on; the newest checkpoint is then still whole.
    Raises StorageError where the disk does not take or give what it should. Ends
    the process where the run hangs, where its launcher is gone, and where this rank of several
    has an error that the others may not have.

    tell: prints such an error and returns the exit status.
    codecs: what turns text into ids, from folders that were checked.
    """
    stop, folder = StopRequest(), Path(config.checkpoint.save)
    # SIGUSR1 comes long before the time is up, and is heard from here on. The others end a run that
    # has trained nothing at once: a launcher sends them where another rank failed while it started.
    with stop.hearing(signal.SIGUSR1), telling_of_storage(folder), _watchdog(config) as watch:
        store = parallel.meet()
        lock = RunFolderLock(folder)

        def read_alone() -> ReadRows:
            lock.take()
            return read_all_rows(config, codecs)

        # One process for all, and before there is anything to take down again.
        read = parallel.ask_first_process(store, read_alone)
        place = parallel.initialize(
            config.parallel, config.seed, store, config.watchdog.collective_timeout
        )
        try:
            _check_models_are_the_same(config, place)
            with contextlib.ExitStack() as parts:
                try:
                    run = open_run(config, place, watch, codecs, read or {}, lock)
                    parts.callback(_report, run.folder, run.parallel.is_writer)
                    parts.callback(run.close)
                    with stop.hearing(signal.SIGTERM, signal.SIGINT):
                        _walk_stages(run, stop)
                except BaseException as error:
                    if place.world_size > 1 and not isinstance(error, RunStoppedError):
                        leave(tell(storage_error(error, folder) or error), parts)
                    raise
        finally:
            parallel.shut_down()


def _check_models_are_the_same(config: RunConfig, place: parallel.Parallel) -> None:
    """Raise ValueError if the hub's caches of two nodes hold different revisions of a model."""
    named = with_model_names(config)
    for key, path in (("student", named.student.path), ("discriminator", named.discriminator.path)):
        found = sorted(set(place.gather_over_world(path)))
        if len(found) > 1:
            raise ValueError(
                f"{key}.path is {' on one node and '.join(found)} on another; "
                "name one of them with its revision"
            )


def leave(status: int, parts: contextlib.ExitStack) -> None:
    """End this process with its parts, and leave the process groups as they are.

    The other ranks may wait in a collective for this one, and with NCCL to take a group apart then
    waits for them. The launcher sees the end of this rank and ends the others.
    """
    try:
        parts.close()
    finally:
        # Whatever failed on the way, the error that was told is the one that counts.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _watchdog(config: RunConfig) -> Watchdog:
    return Watchdog(
        config.watchdog,
        Path(config.checkpoint.save),
        environment_rank(),
        environment_world_size(),
        is_started_by_torchrun(),
    )


def _walk_stages(run: Run, stop: StopRequest) -> None:
    stage = load_latest(run)
    _write_config(run)
    run.writer.truncate_after(run.progress.iteration)
    health = HealthWatch(run.folder, run.config.health, run.parallel)
    while run.progress.stage_index < len(run.config.stages):
        stage = stage or begin_stage(run)
        run.restraint = health.restraint(run.progress.step_in_stage)
        reason = _run_stage(run, stage, stop, health)
        if stop.is_requested:
            save(run, stage)
            _say(run, f"stopped by {stop.name} after step {run.progress.iteration}; saved")
            return
        _say(run, f"stage {stage.name} ends: {reason}")
        _hand_over(run, stage)
        stage = None
    _export(run, suffix="")


def _run_stage(run: Run, stage: Stage, stop: StopRequest, health: HealthWatch) -> str:
    """Take steps until the stage ends or the run is asked to stop; return why it ended."""
    where, total = run.progress, stage.settings.num_steps(len(run.data.prompts))
    interval = run.config.checkpoint.save_interval
    last_step = where.iteration - where.step_in_stage + total
    with progress(total, stage.name, run.parallel.is_writer) as bar:
        bar.update(where.step_in_stage)
        reason = reason_to_end(run, stage)  # a stopped stage may have been at its end
        is_due = False
        while not reason:
            result = _take_step(run, stage)
            reason = reason_to_end(run, stage)
            _evaluate_if_due(run, stage, result, is_last=bool(reason))
            record = _record(run, stage, result, last_step)
            run.restraint = health.look(record, where.step_in_stage) or run.restraint
            advance(bar, result.metrics)
            if stop.everywhere(run.parallel):
                break
            finish_saving(run, waits=False)
            is_due = is_due or (bool(interval) and where.iteration % interval == 0)
            # Whether weights are usable is not known while steps are skipped, and older checkpoints
            # would go for it.
            if is_due and not reason and not any(run.skips_in_a_row.values()):
                save(run, stage, run.config.checkpoint.async_save)
                is_due = False
    return reason


def _take_step(run: Run, stage: Stage) -> StepResult:
    start = time.monotonic()
    result = stage.take_step(run)
    result.metrics.update(run.turn.take_metrics())
    result.metrics["time/step_s"] = time.monotonic() - start
    result.metrics["data/epoch"] = run.data.epoch
    stage.after_step(run, result.metrics)
    return result


def _evaluate_if_due(run: Run, stage: Stage, result: StepResult, is_last: bool) -> None:
    """Measure the student on held-out rows, also at the end of a stage."""
    interval = run.config.evaluation.interval
    if not interval or not stage.kind.uses_engine:
        return
    if run.progress.iteration % interval and not is_last:
        return
    start = time.monotonic()
    metrics = evaluate_held_out(run)
    keep_best(run, metrics)
    # What was done for it is no part of the next step.
    run.turn.take_metrics()
    run.sampler.take_work()
    result.metrics.update(metrics)
    result.metrics["time/evaluation_s"] = time.monotonic() - start


def _record(run: Run, stage: Stage, result: StepResult, last_step: int) -> dict[str, Any] | None:
    where, name = run.progress, stage.name
    record = run.writer.write(
        where.iteration, name, result.metrics, where.consumed_samples, last_step
    )
    if result.samples and run.config.log.writes_samples(where.step_in_stage):
        run.writer.write_samples(where.iteration, name, result.samples)
    return record


def _hand_over(run: Run, stage: Stage) -> None:
    """End the stage and save, so that the next one begins from a checkpoint."""
    refusal = stage.refusal()
    if refusal:
        save(run, stage)
        raise RunStoppedError(refusal)
    stage.finish(run)
    if run.config.checkpoint.export_stages:
        _export(run, suffix=f"_{stage.name}")
    run.progress.stage_index += 1
    run.progress.step_in_stage = 0
    save(run)


def _export(run: Run, suffix: str) -> None:
    """Write the models that [checkpoint] export names as Hugging Face folders."""
    for name in run.config.checkpoint.export:
        if name != "discriminator" or run.has_discriminator:
            export_model(run, name, run.folder / f"{name}_hf{suffix}")


def _write_config(run: Run) -> None:
    """Write the resolved configuration; another one that is there stays as config_NNNN.toml."""
    if not run.parallel.is_writer:
        return
    text, file = to_toml(with_model_names(run.config)), run.folder / "config.toml"
    if file.exists() and file.read_text() != text:
        numbers = itertools.count(1)
        names = (run.folder / f"config_{number:04d}.toml" for number in numbers)
        kept = next(name for name in names if not name.exists())
        file.rename(kept)
        _say(run, f"the configuration changed; the one before is kept as {kept}")
    replace_text(file, text)


def _report(folder: Path, is_writer: bool) -> None:
    """Show what there is, however the run ended; a run without a step has nothing to show."""
    if is_writer and (folder / METRICS_FILE).exists():
        with only_warns(
            logger, f"{folder} gets no new report.html; the run itself is not affected"
        ):
            # It draws, and what it draws with takes a second to import: at the end, on one rank.
            from megatron_gad.reporting.page import build_report  # noqa: PLC0415

            build_report(folder)


def _say(run: Run, message: str) -> None:
    if run.parallel.is_writer:
        logger.info(message)
