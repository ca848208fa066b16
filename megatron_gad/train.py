"""A run from beginning to end: build the parts, walk the stages, save, report."""

import contextlib
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import to_toml
from megatron_gad.environment import (
    environment_rank,
    environment_world_size,
    is_started_by_torchrun,
)
from megatron_gad.errors import RunStoppedError, only_warns
from megatron_gad.files import replace_text
from megatron_gad.models.hf_folder import save_hf_folder
from megatron_gad.resume import load_latest, save
from megatron_gad.runtime.metrics import METRICS_FILE, advance, progress
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.watchdog import Watchdog
from megatron_gad.stages.ends import begin_stage, finish_stage, reason_now, reason_to_end, refusal
from megatron_gad.stages.steps import StepResult, adversarial_step, seqkd_step, warmup_step
from megatron_gad.training import parallel

STEPS = {"seqkd": seqkd_step, "warmup": warmup_step, "adversarial": adversarial_step}

logger = logging.getLogger(__name__)


def train(config: RunConfig, tell: Callable[[BaseException], int]) -> None:
    """Train through all stages; go on from the newest checkpoint where there is one.

    Writes everything under ``config.checkpoint.save``. Raises ValueError for bad input and
    RunStoppedError where the run must not go on; the newest checkpoint is then still whole. Ends
    the process where the run hangs, where its launcher is gone, and where this rank of several
    has an error that the others may not have.

    tell: prints such an error and returns the exit status.
    """
    stop = _StopRequest()
    # SIGUSR1 comes long before the time is up, and is heard from here on. The others end a run that
    # has trained nothing at once: a launcher sends them where another rank failed while it started.
    with stop.hearing(signal.SIGUSR1), _watchdog(config) as watch:
        place = parallel.initialize(config.parallel, config.seed)
        try:
            with contextlib.ExitStack() as parts:
                try:
                    run = Run(config, place, watch)
                    parts.callback(_report, run.folder, run.parallel.is_writer)
                    parts.callback(run.close)
                    with stop.hearing(signal.SIGTERM, signal.SIGINT):
                        _walk_stages(run, stop)
                except BaseException as error:
                    if place.world_size > 1 and not isinstance(error, RunStoppedError):
                        leave(tell(error), parts)
                    raise
        finally:
            parallel.shut_down()


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


def _walk_stages(run: Run, stop: "_StopRequest") -> None:
    is_new_stage = not load_latest(run)
    _write_config(run)
    run.writer.truncate_after(run.progress.iteration)
    while run.progress.stage_index < len(run.config.stages):
        if is_new_stage:
            begin_stage(run)
        reason = _run_stage(run, stop)
        if stop.is_requested:
            save(run)
            _say(run, f"stopped by {stop.name} after step {run.progress.iteration}; saved")
            return
        _say(run, f"stage {run.stage_name} ends: {reason}")
        _hand_over(run)
        is_new_stage = True
    _export(run, suffix="")


def _run_stage(run: Run, stop: "_StopRequest") -> str:
    """Take steps until the stage ends or the run is asked to stop; return why it ended."""
    where, total = run.progress, run.stage_steps
    interval = run.config.checkpoint.save_interval
    last_step = where.iteration - where.step_in_stage + total
    with progress(total, run.stage_name, run.parallel.is_writer) as bar:
        bar.update(where.step_in_stage)
        reason = reason_now(run)  # a stopped stage may have been at its end
        while not reason:
            result = _take_step(run)
            reason = reason_to_end(run, result.metrics)
            _record(run, result, last_step)
            advance(bar, result.metrics)
            if stop.everywhere(run.parallel):
                break
            if not reason and interval and where.iteration % interval == 0:
                save(run)
    return reason


def _take_step(run: Run) -> StepResult:
    start = time.monotonic()
    result = STEPS[run.stage_name](run, run.stage)
    run.progress.consumed_samples += run.prompts_per_step
    run.progress.iteration += 1
    run.progress.step_in_stage += 1
    result.metrics.update(run.turn.take_metrics())
    result.metrics["time/step_s"] = time.monotonic() - start
    result.metrics["data/epoch"] = run.epoch
    return result


def _record(run: Run, result: StepResult, last_step: int) -> None:
    where = run.progress
    name = run.stage_name
    run.writer.write(where.iteration, name, result.metrics, where.consumed_samples, last_step)
    interval = run.config.log.samples_interval
    is_due = interval and (where.step_in_stage == 1 or where.step_in_stage % interval == 0)
    if result.samples and is_due:
        run.writer.write_samples(where.iteration, name, result.samples)


def _hand_over(run: Run) -> None:
    """End the stage and save, so that the next one begins from a checkpoint."""
    reason_against = refusal(run)
    if reason_against:
        save(run)
        raise RunStoppedError(reason_against)
    finish_stage(run)
    if run.config.checkpoint.export_stages:
        _export(run, suffix=f"_{run.stage_name}")
    run.progress.stage_index += 1
    run.progress.step_in_stage = 0
    save(run)


def _export(run: Run, suffix: str) -> None:
    """Write the models that [checkpoint] export names as Hugging Face folders."""
    for name in run.config.checkpoint.export:
        if name == "discriminator" and not run.has_discriminator:
            continue
        trainer = run.student if name == "student" else run.discriminator
        weights = trainer.hf_weights()
        with run.turn("export"):
            if run.parallel.is_writer:
                folder = run.folder / f"{name}_hf{suffix}"
                save_hf_folder(weights, trainer.hf_config, run.config.student.path, folder)
            else:
                for _ in weights:
                    pass


def _write_config(run: Run) -> None:
    """Write the resolved configuration; another one that is there stays as config_NNNN.toml."""
    if not run.parallel.is_writer:
        return
    text, file = to_toml(run.config), run.folder / "config.toml"
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


class _StopRequest:
    """Turns signals into a checkpoint after the step that is running.

    A second SIGINT ends the process at once. Used as ``with stop.hearing(signal.SIGTERM):``.
    """

    def __init__(self) -> None:
        self.name = ""
        self.is_requested = False
        # Written by the handler alone: it may run in the middle of everywhere().
        self._noted = ""
        self._num_interrupts = 0

    @contextlib.contextmanager
    def hearing(self, *numbers: signal.Signals) -> Iterator[None]:
        """Take these signals for a request."""
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def everywhere(self, place: parallel.Parallel) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        self.name = max(place.gather_over_world(self._noted))
        self.is_requested = bool(self.name)
        return self.is_requested

    def _note(self, number: int, _frame: object) -> None:
        # Launcher, scheduler and other ranks pass one request on, each in its own time: a signal
        # that comes again asks for nothing new. Only a person presses Ctrl-C twice.
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt
        self._noted = self._noted or signal.Signals(number).name
