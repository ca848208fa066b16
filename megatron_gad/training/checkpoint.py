"""Save and restore a run: models and optimizers in Megatron's sharded format, the rest as JSON.

A checkpoint is written into a folder with another name and renamed when it is whole, so that a
reader never meets half of one.
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
)
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_gad.errors import RunStoppedError
from megatron_gad.files import delete_tree, draft_of, sync
from megatron_gad.manifest import MANIFEST, Written, names_in
from megatron_gad.training.background_write import BackgroundWrite
from megatron_gad.training.checkpoint_digests import is_of_a_rank, write_digests
from megatron_gad.training.checkpoint_files import (
    STATE,
    describe_newest,
    iteration_folder,
    whole_iterations,
    write_marker,
)
from megatron_gad.training.checkpoint_pickles import check_pickles
from megatron_gad.training.checkpoint_shapes import check_tensors, checkpoint_tensors
from megatron_gad.training.distributed_optimizer import (
    fill_moments,
    load_optimizer,
    sharded_optimizer,
)
from megatron_gad.training.mixed_precision import float32_weights_known
from megatron_gad.training.optimizer import forget_moments, has_moments
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.shared_writes import SharedWrites
from megatron_gad.training.trainer import Trainer

DISTRIBUTED = "use_distributed_optimizer"
MODEL = "model_name"
# Norms of Transformer Engine keep an empty state beside their weights, others keep none.
NORM_STATE = "layernorm._extra_state"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Residents:
    """What a checkpoint holds besides the run state.

    models: name -> trainer, saved with its optimizer.
    snapshots: name -> (trainer, parameters), saved without one.
    turn: gives a trainer the device for as long as it is saved.
    """

    models: dict[str, Trainer]
    snapshots: dict[str, tuple[Trainer, list[Tensor]]] = field(default_factory=dict)
    turn: Callable[[Trainer], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Unpublished:
    """A checkpoint that is being written in the background.

    run_folder, iteration, keep_last: as ``save_checkpoint`` has them.
    """

    run_folder: Path
    iteration: int
    keep_last: int
    files: BackgroundWrite

    def is_written(self, parallel: Parallel) -> bool:
        """Return whether all ranks have written their files. All ranks call it."""
        return all(parallel.gather_over_world(self.files.is_done()))

    def publish(self, parallel: Parallel) -> None:
        """Wait until it is whole, and publish it. All ranks call it."""
        written = self.files.finish()
        _publish_draft(self.run_folder, self.iteration, parallel, self.keep_last, written)


def save_checkpoint(
    run_folder: Path,
    iteration: int,
    residents: Residents,
    state: dict[str, Any],
    parallel: Parallel,
    keep_last: int,
) -> None:
    """Write a checkpoint, publish it, delete all but it and the ``keep_last`` - 1 before (0: none).

    Every rank calls it.

    Raises RunStoppedError, and publishes nothing, if numbers of a model are not finite.
    """
    _write_draft(run_folder, iteration, residents, state, parallel, _write)
    _publish_draft(run_folder, iteration, parallel, keep_last, {})


def begin_checkpoint(
    run_folder: Path,
    iteration: int,
    residents: Residents,
    state: dict[str, Any],
    parallel: Parallel,
    keep_last: int,
) -> Unpublished:
    """Do so in the background: this returns when all that is saved was copied to the host.

    Whoever calls it publishes what it returns before the next checkpoint begins.
    """
    files = BackgroundWrite()

    def add(state: dict[str, Any], folder: Path) -> None:
        files.add(_write(state, folder, in_background=True))

    _write_draft(run_folder, iteration, residents, state, parallel, add)
    files.start()
    return Unpublished(run_folder, iteration, keep_last, files)


def _write_draft(
    run_folder: Path,
    iteration: int,
    residents: Residents,
    state: dict[str, Any],
    parallel: Parallel,
    write: Callable[[dict[str, Any], Path], object],
) -> None:
    """Write all models, or have them copied to be written, and the run state."""
    draft = draft_of(iteration_folder(run_folder, iteration))
    folders = [draft / name for name in (*residents.models, *residents.snapshots)]
    if parallel.is_writer:
        _clear(run_folder)
        for folder in folders:
            folder.mkdir(parents=True)
    parallel.barrier()
    for name, trainer in residents.models.items():
        with residents.turn(trainer), trainer.parallel.megatron_state.active():
            write(_state_of_model(name, trainer, draft), draft / name)
    for name, (trainer, snapshot) in residents.snapshots.items():
        with (
            residents.turn(trainer),
            trainer.lent(snapshot),
            trainer.parallel.megatron_state.active(),
        ):
            write(sharded_weights(trainer.modules_to_read()), draft / name)
    if parallel.is_writer:
        (draft / STATE).write_text(json.dumps(state, indent=1))


def _publish_draft(
    run_folder: Path,
    iteration: int,
    parallel: Parallel,
    keep_last: int,
    written: Mapping[Path, Written],
) -> None:
    """Write the digests of a draft that is whole, publish it, and delete older checkpoints."""
    target = iteration_folder(run_folder, iteration)
    draft = draft_of(target)
    write_digests(draft, parallel, written)
    if parallel.is_writer:
        _publish(run_folder, draft, target, iteration)
        _prune(run_folder, iteration, keep_last)
    parallel.barrier()


def _state_of_model(name: str, trainer: Trainer, draft: Path) -> dict[str, Any]:
    """Return what is saved of a model and its optimizer, if all of their numbers are finite."""
    optimizer = trainer.optimizer_to_write()
    fill_moments(optimizer)
    if not trainer.has_usable_state():
        if trainer.parallel.is_writer:
            _delete(draft)
        where = describe_newest(draft.parent) if trainer.parallel.is_writer else ""
        raise RunStoppedError(
            f"{draft.name.removesuffix('.draft')} is not saved, because weights or optimizer "
            f"states of the {name} are not finite, or too large to compute with; {where}. Go on "
            "from one, or begin anew, with a lower learning rate or a smaller clip_grad"
        )
    facts = {
        MODEL: name,
        "has_moments": has_moments(optimizer),
        DISTRIBUTED: trainer.settings.layout.use_distributed_optimizer,
    }
    return {**_sharded_state(trainer), **facts}


def undo_half_replacing(run_folder: Path) -> None:
    """Let a checkpoint have its name again whose writing anew a crash cut off between two names.

    One process calls it, which owns the folder.
    """
    for replaced in run_folder.glob("iter_*.old"):
        if not replaced.with_suffix("").exists() and (replaced / STATE).exists():
            replaced.rename(replaced.with_suffix(""))


def load_model(folder: Path, trainer: Trainer) -> None:
    """Restore a trainer's parameters and optimizer; any layout may load what any layout saved.

    Raises ValueError where one of them shards its optimizer's states and the other does not, and
    where the folder holds another model than its name says.
    """
    check_pickles(folder)
    facts = dist_checkpointing.load_common_state_dict(str(folder))
    if facts.get(MODEL, folder.name) != folder.name:
        raise ValueError(
            f"{folder} holds the {facts[MODEL]}, not the {folder.name}; give the folders of "
            f"{folder.parent} back the names that they were written with"
        )
    shards = trainer.settings.layout.use_distributed_optimizer
    if facts[DISTRIBUTED] != shards:
        raise ValueError(
            f"{folder} was saved with parallel.{DISTRIBUTED} = {facts[DISTRIBUTED]}, this run has "
            f"{shards}: the two keep their moments differently; resume with the same, or leave "
            "them behind with --load and --no-load-optim"
        )
    # An optimizer that took no step saved no moments, and has to be asked for none.
    held = facts["has_moments"]
    optimizer = trainer.optimizer_to_write()
    if held:
        fill_moments(optimizer)
    else:
        forget_moments(optimizer)
    with trainer.parallel.megatron_state.active():
        loaded = _filled(_sharded_state(trainer, is_loading=held), folder)
        take_weights(trainer.modules_to_write(), loaded)
        with float32_weights_known(optimizer):
            load_optimizer(optimizer, loaded["optimizer"])


def load_model_weights(folder: Path, trainer: Trainer) -> None:
    """Take a model's weights from a checkpoint, and let its optimizer begin anew at them.

    Raises ValueError if the folder's model has another shape.
    """
    with trainer.parallel.megatron_state.active():
        modules = trainer.modules_to_write()
        stored, wanted = checkpoint_tensors(folder), sharded_weights(modules)
        check_tensors(folder, stored, wanted, trainer.hf_config, trainer.parallel)
        take_weights(modules, _filled(sharded_weights(modules), folder))
        optimizer = trainer.optimizer_to_write()
        forget_moments(optimizer)
        optimizer.reload_model_params()


def load_snapshot(folder: Path, trainer: Trainer) -> list[Tensor]:
    """Return parameters saved as a snapshot; the trainer's own are left as they were."""
    own = trainer.snapshot()
    try:
        with trainer.parallel.megatron_state.active():
            modules = trainer.modules_to_write()
            take_weights(modules, read_sharded(sharded_weights(modules), folder))
    finally:
        trainer.swap(own)
    return own


def sharded_weights(chunks: list[Any]) -> dict[str, Any]:
    """Return what Megatron saves of a model, or fills in when it loads one."""
    return {"model": {index: chunk.sharded_state_dict() for index, chunk in enumerate(chunks)}}


def read_sharded(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill in what a sharded state asks for, apart from what not all kinds of layers save.

    Raises ValueError if the checkpoint is damaged, or could run code.
    """
    check_pickles(folder)
    return _filled(wanted, folder)


def _filled(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill in a sharded state from a folder whose pickles were checked."""
    models = {
        index: {key: value for key, value in chunk.items() if not key.endswith(NORM_STATE)}
        for index, chunk in wanted["model"].items()
    }
    # What several data ranks want is read by one of them, and sent to the others.
    strategy = FullyParallelLoadStrategyWrapper(
        get_default_load_sharded_strategy(str(folder)), _data_ranks()
    )
    loaded: Any = dist_checkpointing.load(
        {**wanted, "model": models},
        str(folder),
        strategy,
        # It would tell every rank what all ranks want. A rank that wants what is not there fails.
        validate_access_integrity=False,
    )
    return loaded


def _write(state: dict[str, Any], folder: Path, in_background: bool = False) -> Any:
    """Write a sharded state; of what several data ranks hold, each writes an equal share.

    in_background: only plan it, and return the plan.
    """
    strategy = SharedWrites(get_default_save_sharded_strategy(), _data_ranks())
    return dist_checkpointing.save(
        state,
        str(folder),
        strategy,
        # The strategy looks whether every part has a writer, once it has shared them out.
        validate_access_integrity=False,
        async_sharded_save=in_background,
    )


def _data_ranks() -> ProcessGroup:
    """Return the ranks that hold copies of this rank's weights, in the layout that is installed."""
    group: Any = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return group


def take_weights(chunks: list[Any], loaded: dict[str, Any]) -> None:
    """Copy what was filled in into the modules that it was asked for."""
    for index, chunk in enumerate(chunks):
        empty = torch.empty(0, dtype=torch.uint8)
        norms = {key: empty for key in chunk.state_dict() if key.endswith(NORM_STATE)}
        chunk.load_state_dict(loaded["model"][index] | norms)


def _sharded_state(trainer: Trainer, is_loading: bool = False) -> dict[str, Any]:
    state = sharded_weights(trainer.modules_to_read())
    optimizer = trainer.optimizer_to_read()
    with float32_weights_known(optimizer):
        optimizer_state = sharded_optimizer(optimizer, state["model"], is_loading)
    return {**state, "optimizer": optimizer_state}


def _clear(run_folder: Path) -> None:
    """Delete what a crash left behind, so that it takes no room beside what is to be written."""
    for pattern in ("iter_*.draft", "iter_*.old"):
        for left_behind in run_folder.glob(pattern):
            _delete(left_behind)


def _publish(run_folder: Path, draft: Path, target: Path, iteration: int) -> None:
    """Give the draft its name and point the marker at it, then drop what stood there before.

    The disk holds each step before the next is taken: a power failure must not keep the deletion
    of the older checkpoints and lose parts of this one.
    """
    folders = [draft, *(path for path in draft.iterdir() if path.is_dir())]
    # Every rank waited until the disk held its files.
    others = (draft / name for name in names_in(draft) if not is_of_a_rank(name))
    for path in (*others, draft / MANIFEST, *folders):
        sync(path)
    replaced = target.with_name(target.name + ".old")
    if target.exists():
        target.rename(replaced)
    draft.rename(target)
    sync(run_folder)
    write_marker(run_folder, iteration)
    if replaced.exists():
        _delete(replaced)


def _prune(run_folder: Path, newest: int, keep_last: int) -> None:
    """Delete older checkpoints than are to be kept.

    Checkpoints beyond the newest were left behind by a run that was set back; they do not count.
    """
    older = [iteration for iteration in whole_iterations(run_folder) if iteration <= newest]
    for iteration in older[:-keep_last] if keep_last else []:
        folder = iteration_folder(run_folder, iteration)
        _delete(folder, first_name=draft_of(folder))


def _delete(folder: Path, first_name: Path | None = None) -> None:
    """Delete a folder, or leave it to the next checkpoint where the file system will not.

    first_name: what to call it before, so that half of it does not look like a whole one.
    """
    try:
        delete_tree(folder.rename(first_name) if first_name else folder)
    except OSError as error:
        logger.warning("%s is deleted later: %s", folder, error)
