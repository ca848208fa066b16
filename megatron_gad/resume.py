"""What a run puts into a checkpoint, and how it goes on from one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_gad.checks.resume import changes_since, settings
from megatron_gad.runtime.newest_checkpoint import find_checkpoint
from megatron_gad.runtime.run import Progress, Run
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.stages.begin import resume_stage
from megatron_gad.stages.stage import Stage
from megatron_gad.training.checkpoint import (
    Residents,
    begin_checkpoint,
    load_model,
    load_model_weights,
    load_snapshot,
    save_checkpoint,
)
from megatron_gad.training.checkpoint_files import (
    iteration_folder,
    read_state,
)
from megatron_gad.training.trainer import Trainer

logger = logging.getLogger(__name__)


def finish_saving(run: Run, waits: bool = True) -> None:
    """Publish the checkpoint that is written in the background, if there is one. All ranks call it.

    waits: until it is whole; else it is published only if it is.
    """
    unpublished = run.unpublished
    if unpublished is None or not (waits or unpublished.is_written(run.parallel)):
        return
    run.unpublished = None
    unpublished.publish(run.parallel)


def save(run: Run, stage: Stage | None = None, in_background: bool = False) -> None:
    """Write a checkpoint of everything the run needs to go on bit for bit. All ranks call it.

    stage: that the run is in the middle of; None between two.
    in_background: return when all was copied; ``finish_saving`` publishes it.
    """
    finish_saving(run)
    run.lock.check_is_there()
    models = {"student": run.student}
    if run.has_discriminator:
        models["discriminator"] = run.discriminator
    kept = stage.snapshots() if stage is not None else {}
    snapshots = {name: (run.student, snapshot) for name, snapshot in kept.items()}
    state = {
        "settings": settings(run.config),
        "data_fingerprint": run.data.fingerprint if run.parallel.is_writer else "",
        "progress": asdict(run.progress),
        "stages": list(run.config.stages),
        **run.data.states(),
        "stage": stage.state(run) if stage is not None else {},
        "schedule_steps": {name: trainer.schedule.num_steps for name, trainer in models.items()},
        "snapshots": list(snapshots),
    }
    run.writer.sync()
    what = (run.folder, run.progress.iteration, Residents(models, snapshots, run.turn.save), state)
    keep_last = run.config.checkpoint.keep_last
    if in_background:
        run.unpublished = begin_checkpoint(*what, run.parallel, keep_last)
    else:
        save_checkpoint(*what, run.parallel, keep_last)


def load_latest(run: Run) -> Stage | None:
    """Go on from the newest checkpoint; return the stage that the run is now in, if it is in one.

    Raises ValueError where the checkpoint belongs to a run with other stages, or with settings that
    must not change, and warns of those that may.
    """
    found = find_checkpoint(run.config.checkpoint, run.parallel)
    if found is None:
        return None
    source, iteration = found
    is_other = source != run.folder
    if is_other and run.config.checkpoint.finetune:
        _take_student(run, iteration_folder(source, iteration))
        return None
    # A run of its own that goes on has its optimizers' states by now.
    load = load_model if run.config.checkpoint.load_optim or not is_other else load_model_weights
    with _named(iteration_folder(source, iteration)):
        return _load(run, source, iteration, load)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Let what is said against a checkpoint name it."""
    try:
        yield
    except ValueError as error:
        if str(folder.parent) in str(error):
            raise
        raise ValueError(f"the checkpoint {folder} cannot be gone on from: {error}") from error


def _load(
    run: Run, source: Path, iteration: int, load: Callable[[Path, Trainer], None]
) -> Stage | None:
    state = read_state(source, iteration)
    _check_stages(run, source, state)
    _check_settings(run, iteration_folder(source, iteration), state)
    ask_first_rank(
        run.parallel, lambda: _check_data(run, iteration_folder(source, iteration), state)
    )
    names = {field.name for field in fields(Progress)}
    run.progress = Progress(**{k: v for k, v in state["progress"].items() if k in names})
    run.last_update = run.progress.iteration
    folder = iteration_folder(source, iteration)
    load(folder / "student", run.student)
    if "discriminator" in state["schedule_steps"]:
        run.build_discriminator()
        load(folder / "discriminator", run.discriminator)
    if run.parallel.is_writer:
        logger.info("resuming from %s", folder)
    if run.progress.step_in_stage == 0:
        return None
    run.data.start_stage(run.progress.stage_index)
    run.data.load_states(state)
    snapshots = {name: load_snapshot(folder / name, run.student) for name in state["snapshots"]}
    return resume_stage(run, state["schedule_steps"], _stage_state(state), snapshots)


def _take_student(run: Run, folder: Path) -> None:
    """Let a run begin at the student's weights of another run."""
    load_model_weights(folder / "student", run.student)
    if run.parallel.is_writer:
        logger.info("beginning at the student's weights of %s, with nothing else of it", folder)


def _stage_state(state: dict) -> dict:
    """Return what a checkpoint holds of its stage; version 0.1 kept it beside the rest."""
    return _Stored(state.get("stage", {**state["progress"], "ahead": state.get("ahead", [])}))


class _Stored(dict[str, Any]):
    """What a checkpoint holds of its stage; what it should hold and does not is named."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(
            f"its run_state.json lacks {key!r} of the stage; go on from another checkpoint, with "
            "--ckpt-step"
        )


def _check_stages(run: Run, source: Path, state: dict) -> None:
    """Refuse a checkpoint whose past is not this run's; what is still to come may differ."""
    progress = state["progress"]
    num_begun = progress["stage_index"] + (progress["step_in_stage"] > 0)
    stages = list(run.config.stages)
    if state["stages"][:num_begun] != stages[:num_begun]:
        raise ValueError(
            f"the checkpoint in {source} comes after the stages {state['stages'][:num_begun]}, "
            f"this run begins with {stages[:num_begun]}; use the same stages, or another --save"
        )


def _check_settings(run: Run, folder: Path, state: dict) -> None:
    """Refuse settings that must not change on the way, and tell which did."""
    changes = changes_since(run.config, state, folder)
    if changes.refused:
        raise ValueError("\n".join(changes.refused))
    if run.parallel.is_writer:
        for change in changes.told:
            logger.warning("resuming with another setting: %s", change)


def _check_data(run: Run, folder: Path, state: dict) -> None:
    """Refuse other texts than those that the run began with, where nobody accepted others."""
    config = run.config
    is_accepted = "data.path" in config.checkpoint.override_config
    if is_accepted or state.get("data_fingerprint", run.data.fingerprint) == run.data.fingerprint:
        return
    raise ValueError(
        f"data.path = {config.data.path!r} holds other texts than those that {folder} was trained "
        "on; give it the data that the run began with, begin a run of its own with another "
        "--save, or accept the change with --override-config data.path"
    )
