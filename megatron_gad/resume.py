"""What a run puts into a checkpoint, and how it goes on from one."""

import logging
from dataclasses import asdict
from pathlib import Path

from megatron_gad.parts import Progress, Run
from megatron_gad.stage_config import SeqkdConfig
from megatron_gad.stage_ends import needs_reference, set_schedules
from megatron_gad.training.checkpoint import (
    Residents,
    iteration_folder,
    latest_iteration,
    load_model,
    load_snapshot,
    read_state,
    save_checkpoint,
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
        "progress": asdict(run.progress),
        "stages": list(run.config.stages),
        "order": run.order.state_dict(),
        "extra_order": run.extra_order.state_dict(),
        "schedule_steps": {name: trainer.schedule.num_steps for name, trainer in models.items()},
        "snapshots": list(snapshots),
    }
    save_checkpoint(
        run.folder,
        run.progress.iteration,
        Residents(models, snapshots),
        state,
        run.parallel,
        run.config.checkpoint.keep_last,
    )


def load_latest(run: Run) -> bool:
    """Go on from the newest checkpoint; return whether the run is now inside a stage.

    Raises ValueError where the checkpoint belongs to a run with other stages or data.
    """
    source = Path(run.config.checkpoint.load or run.folder)
    iteration = latest_iteration(source)
    if iteration is None:
        if run.config.checkpoint.load:
            raise ValueError(f"checkpoint.load = {source}: there is no checkpoint in it")
        return False
    state = read_state(source, iteration)
    if state["stages"] != list(run.config.stages):
        raise ValueError(
            f"the checkpoint in {source} belongs to a run with stages = {state['stages']}, this "
            f"one has {list(run.config.stages)}; use the same stages, or another --save"
        )
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


def _enter_stage(run: Run, folder: Path, state: dict) -> None:
    """Set up a stage that the checkpoint was taken in the middle of."""
    run.start_orders()
    run.order.load_state_dict(state["order"])
    run.extra_order.load_state_dict(state["extra_order"])
    set_schedules(run)
    run.student.schedule.resume(state["schedule_steps"]["student"])
    if not isinstance(run.stage, SeqkdConfig):
        run.discriminator.schedule.resume(state["schedule_steps"]["discriminator"])
    if needs_reference(run):
        run.reference = Reference(run.student, load_snapshot(folder / "reference", run.student))
    if "best" in state["snapshots"]:
        run.best_weights = load_snapshot(folder / "best", run.student)
