"""A run from beginning to end: build the parts, walk the stages, save, report."""

import logging
import signal
import time

from megatron_gad.config import RunConfig, to_toml
from megatron_gad.metrics import advance, progress
from megatron_gad.models.hf_folder import save_hf_folder
from megatron_gad.parts import Run
from megatron_gad.reporting.page import build_report
from megatron_gad.resume import load_latest, save
from megatron_gad.stage_ends import begin_stage, finish_stage, reason_to_end, refusal
from megatron_gad.stages import StepResult, adversarial_step, seqkd_step, warmup_step
from megatron_gad.training import parallel

STEPS = {"seqkd": seqkd_step, "warmup": warmup_step, "adversarial": adversarial_step}

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

logger = logging.getLogger(__name__)


def run(config: RunConfig) -> None:
    """Train through all stages; go on from the newest checkpoint where there is one.

    Writes everything under ``config.checkpoint.save``. Raises ValueError for bad input and
    RuntimeError where the run has to stop; the newest checkpoint is then still whole.
    """
    place = parallel.initialize(config.parallel, config.seed)
    try:
        parts = Run(config, place)
        try:
            _write_config(parts)
            with _StopRequest() as stop:
                _walk_stages(parts, stop)
        finally:
            parts.close()
    finally:
        parallel.shut_down()


def _walk_stages(parts: Run, stop: "_StopRequest") -> None:
    is_new_stage = not load_latest(parts)
    parts.writer.truncate_after(parts.progress.iteration)
    while parts.progress.stage_index < len(parts.config.stages):
        if is_new_stage:
            begin_stage(parts)
        reason = _run_stage(parts, stop)
        if stop.is_requested:
            save(parts)
            _say(parts, f"stopped by {stop.name} after step {parts.progress.iteration}; saved")
            return
        _say(parts, f"stage {parts.stage_name} ends: {reason}")
        _hand_over(parts)
        is_new_stage = True
    _export(parts, suffix="")
    _report(parts)


def _run_stage(parts: Run, stop: "_StopRequest") -> str:
    """Take steps until the stage ends or the run is asked to stop; return why it ended."""
    where, total = parts.progress, parts.stage_steps
    interval = parts.config.checkpoint.save_interval
    last_step = where.iteration - where.step_in_stage + total
    with progress(total, parts.stage_name, parts.parallel.is_writer) as bar:
        bar.update(where.step_in_stage)
        while True:
            result = _take_step(parts)
            reason = reason_to_end(parts, result.metrics)
            _record(parts, result, last_step)
            advance(bar, result.metrics)
            if reason or stop.everywhere(parts.parallel):
                return reason
            if interval and where.iteration % interval == 0:
                save(parts)


def _take_step(parts: Run) -> StepResult:
    start = time.monotonic()
    result = STEPS[parts.stage_name](parts, parts.stage)
    parts.progress.iteration += 1
    parts.progress.step_in_stage += 1
    result.metrics.update(parts.timers.take())
    result.metrics["time/step_s"] = time.monotonic() - start
    result.metrics["data/epoch"] = parts.order.epoch
    return result


def _record(parts: Run, result: StepResult, last_step: int) -> None:
    where = parts.progress
    name = parts.stage_name
    parts.writer.write(where.iteration, name, result.metrics, where.consumed_samples, last_step)
    interval = parts.config.log.samples_interval
    is_due = interval and where.step_in_stage % interval in (0, 1)
    if result.samples and is_due:
        parts.writer.write_samples(where.iteration, name, result.samples)


def _hand_over(parts: Run) -> None:
    """End the stage and save, so that the next one begins from a checkpoint."""
    reason_against = refusal(parts)
    if reason_against:
        save(parts)
        raise RuntimeError(reason_against)
    finish_stage(parts)
    if parts.config.checkpoint.export_stages:
        _export(parts, suffix=f"_{parts.stage_name}")
    parts.progress.stage_index += 1
    parts.progress.step_in_stage = 0
    save(parts)


def _export(parts: Run, suffix: str) -> None:
    """Write the models that [checkpoint] export names as Hugging Face folders."""
    for name in parts.config.checkpoint.export:
        if name == "discriminator" and not parts.has_discriminator:
            continue
        trainer = parts.student if name == "student" else parts.discriminator
        weights = trainer.hf_weights()
        if parts.parallel.is_writer:
            folder = parts.folder / f"{name}_hf{suffix}"
            save_hf_folder(weights, trainer.hf_config, parts.config.student.path, folder)
        else:
            for _ in weights:
                pass


def _write_config(parts: Run) -> None:
    if parts.parallel.is_writer:
        draft = parts.folder / "config.toml.draft"
        draft.write_text(to_toml(parts.config))
        draft.rename(parts.folder / "config.toml")


def _report(parts: Run) -> None:
    if parts.parallel.is_writer:
        build_report(parts.folder)


def _say(parts: Run, message: str) -> None:
    if parts.parallel.is_writer:
        logger.info(message)


class _StopRequest:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a checkpoint after the step that is running.

    A second SIGINT ends the process at once. Used as ``with _StopRequest() as stop:``.
    """

    def __init__(self) -> None:
        self.name = ""
        self.is_requested = False
        self._num_interrupts = 0

    def __enter__(self) -> "_StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def everywhere(self, place: parallel.Parallel) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        self.name = max(place.gather_over_world(self.name))
        self.is_requested = bool(self.name)
        return self.is_requested

    def _note(self, number: int, _frame: object) -> None:
        # Launcher, scheduler and other ranks pass one request on, each in its own time: a signal
        # that comes again asks for nothing new. Only a person presses Ctrl-C twice.
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name
