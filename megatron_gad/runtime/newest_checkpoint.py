"""Which checkpoint a run goes on from: its own newest whole one, or else what --load names.

A damaged one of its own is moved aside, and the run goes back to the one before. Nothing is
deleted, and another run's directory is never written to.
"""

import itertools
import logging
from functools import partial
from pathlib import Path

from megatron_gad.checks.run_state import (
    chosen_iteration,
    damage_message,
    damage_of_run,
    earlier_whole,
)
from megatron_gad.config.output import CheckpointConfig
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.training.checkpoint import undo_half_replacing
from megatron_gad.training.checkpoint_digests import changed_since
from megatron_gad.training.checkpoint_files import (
    LATEST,
    iteration_folder,
    latest_iteration,
    marked_iteration,
    whole_iterations,
    write_marker,
)
from megatron_gad.training.parallel import Parallel

logger = logging.getLogger(__name__)


def find_checkpoint(config: CheckpointConfig, parallel: Parallel) -> tuple[Path, int] | None:
    """Return run directory and iteration to go on from, None to begin anew. All ranks call it.

    Raises ValueError, alike on all ranks, if there are checkpoints and none is whole.
    """
    own = Path(config.save)
    ask_first_rank(parallel, lambda: undo_half_replacing(own))
    iteration = ask_first_rank(parallel, lambda: _own_newest(own))
    while iteration is not None:
        damage = _damage(own, iteration, config, parallel)
        if not damage:
            return own, iteration
        iteration = ask_first_rank(parallel, partial(_go_back, own, iteration, damage))
    if not config.load:
        return None
    source = Path(config.load)
    iteration = ask_first_rank(parallel, lambda: _loaded(source, config.ckpt_step))
    damage = _damage(source, iteration, config, parallel)
    if damage:
        raise ValueError(damage_message(iteration_folder(source, iteration), damage))
    return source, iteration


def _damage(run_folder: Path, iteration: int, config: CheckpointConfig, parallel: Parallel) -> str:
    """Return what a checkpoint has lost, the same on all ranks; empty if it is whole."""
    folder = iteration_folder(run_folder, iteration)
    damage = ask_first_rank(parallel, lambda: damage_of_run(folder))
    if damage or not config.verify_checkpoint:
        return damage
    return changed_since(folder, parallel)


def _own_newest(run_folder: Path) -> int | None:
    """Return what the marker names; its checkpoint may be damaged, or gone."""
    iteration = marked_iteration(run_folder)
    whole = whole_iterations(run_folder)
    if iteration is None and whole:
        raise ValueError(
            f"checkpoint.save = {str(run_folder)!r} holds whole checkpoints of the iterations "
            f"{whole}, but no {LATEST}; write the one to go on from into that file, or begin anew "
            "with another --save"
        )
    return iteration


def _go_back(run_folder: Path, iteration: int, damage: str) -> int:
    """Move a damaged checkpoint aside and return the one before it.

    Raises ValueError, and moves nothing, if there is none.
    """
    folder = iteration_folder(run_folder, iteration)
    before = earlier_whole(run_folder, iteration)
    if not before:
        raise ValueError(damage_message(folder, damage))
    # First: a crash between the two leaves a run that goes on from the one before.
    write_marker(run_folder, before[-1])
    kept = "is gone"
    if folder.exists():
        names = itertools.chain([""], itertools.count(2))
        free = (folder.with_name(f"{folder.name}.damaged{number}") for number in names)
        kept = f"is kept as {folder.rename(next(each for each in free if not each.exists()))}"
    logger.error(
        "THE CHECKPOINT %s IS DAMAGED: it %s. It %s, and the run goes back to iteration %d: "
        "%d step(s) are lost and are taken again",
        *(folder, damage, kept, before[-1], iteration - before[-1]),
    )
    return before[-1]


def _loaded(source: Path, step: int | None) -> int:
    if step is not None:
        return chosen_iteration(source, step)
    iteration = latest_iteration(source)
    if iteration is None:
        raise ValueError(f"checkpoint.load = {str(source)!r}: there is no checkpoint in it")
    return iteration
