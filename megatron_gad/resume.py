"""What a run puts into a checkpoint, and how it goes on from one."""

import logging
from dataclasses import asdict
from pathlib import Path

from megatron_gad.checks.resume import changes_since, settings
from megatron_gad.config.stages import AdversarialConfig, SeqkdConfig
from megatron_gad.runtime.run import Progress, Run
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.stages.ends import needs_reference, set_schedules
from megatron_gad.stages.rollouts import ahead_state, restore_ahead
from megatron_gad.training.checkpoint import (
    Residents,
    load_model,
    load_snapshot,
    save_checkpoint,
    undo_half_replacing,
)
from megatron_gad.training.checkpoint_files import (
    LATEST,
    iteration_folder,
    latest_iteration,
    read_state,
    whole_iterations,
)
from megatron_gad.training.reference import Reference

logger = logging.getLogger(__name__)


def save(run: Run) -> None:
    """Write a checkpoint of everything the run needs to go on bit for bit. All ranks call it."""
    models = {"student": run.student}
    if run.has_discriminator:
        models["discriminator"] = run.discriminator
    snapshots = {}
    if run.reference is not None:
        snapshots["reference"] = (run.student, run.reference.snapshot)
    if run.best_weights is not None:
        snapshots["best"] = (run.student, run.best_weights)
    state = {
        "settings": settings(run.config),
        "progress": asdict(run.progress),
        "stages": list(run.config.stages),
        **run.order_states(),
        "ahead": ahead_state(run),
        "schedule_steps": {name: trainer.schedule.num_steps for name, trainer in models.items()},
        "snapshots": list(snapshots),
    }
    run.writer.sync()
    save_checkpoint(
        run.folder,
        run.progress.iteration,
        Residents(models, snapshots, run.turn.save),
        state,
        run.parallel,
        run.config.checkpoint.keep_last,
    )


def load_latest(run: Run) -> bool:
    """Go on from the newest checkpoint; return whether the run is now inside a stage.

    Raises ValueError where the checkpoint belongs to a run with other stages, or with settings that
    must not change, and warns of those that may.
    """
    found = ask_first_rank(run.parallel, lambda: _find_checkpoint(run))
    if found is None:
        return False
    source, iteration = found
    state = read_state(source, iteration)
    _check_stages(run, source, state)
    _check_settings(run, iteration_folder(source, iteration), state)
    run.progress = Progress(**state["progress"])
    folder = iteration_folder(source, iteration)
    load_model(folder / "student", run.student)
    if "discriminator" in state["schedule_steps"]:
        run.build_discriminator()
        load_model(folder / "discriminator", run.discriminator)
    if run.parallel.is_writer:
        logger.info("resuming from %s", folder)
    if run.progress.step_in_stage == 0:
        return False
    _enter_stage(run, folder, state)
    return True


def _find_checkpoint(run: Run) -> tuple[Path, int] | None:
    """Return folder and iteration to go on from: the run's own, or else what --load names."""
    undo_half_replacing(run.folder)
    iteration = latest_iteration(run.folder)
    if iteration is not None:
        return run.folder, iteration
    whole = whole_iterations(run.folder)
    if whole:
        raise ValueError(
            f"checkpoint.save = {str(run.folder)!r} holds whole checkpoints of the iterations "
            f"{whole}, but no {LATEST}; write the one to go on from into that file, or begin anew "
            "with another --save"
        )
    if not run.config.checkpoint.load:
        return None
    source = Path(run.config.checkpoint.load)
    iteration = latest_iteration(source)
    if iteration is None:
        raise ValueError(f"checkpoint.load = {str(source)!r}: there is no checkpoint in it")
    return source, iteration


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


def _enter_stage(run: Run, folder: Path, state: dict) -> None:
    """Set up a stage that the checkpoint was taken in the middle of."""
    run.start_orders()
    run.load_order_states(state)
    set_schedules(run)
    run.student.schedule.resume(state["schedule_steps"]["student"])
    if not isinstance(run.stage, SeqkdConfig):
        run.discriminator.schedule.resume(state["schedule_steps"]["discriminator"])
    if needs_reference(run):
        if "reference" not in state["snapshots"]:
            raise ValueError(
                f"gad.kl_coef = {run.config.gad.kl_coef:g}, but the stage began without a "
                f"reference (kl_coef = 0), so {folder} holds none; keep kl_coef = 0 until it ends"
            )
        run.reference = Reference(run.student, load_snapshot(folder / "reference", run.student))
    if isinstance(run.stage, AdversarialConfig):
        restore_ahead(run, run.stage, state.get("ahead", []))
    if "best" in state["snapshots"]:
        run.best_weights = load_snapshot(folder / "best", run.student)
