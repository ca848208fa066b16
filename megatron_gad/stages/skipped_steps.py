"""Steps that a model skipped because their numbers are not finite: told, counted, limited."""

import logging
from itertools import chain

from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.run import Run
from megatron_gad.stages.step_result import ModelStep
from megatron_gad.training.checkpoint_files import (
    LATEST,
    describe_newest,
    iteration_folder,
    whole_iterations,
)
from megatron_gad.training.forward_backward import StepOutput

# Row numbers that a message lists.
MOST_ROWS = 20

logger = logging.getLogger(__name__)


def note_step(run: Run, step: ModelStep) -> None:
    """Warn of a step that was skipped; stop the run after too many of a model in a row.

    Raises RunStoppedError on all ranks alike.
    """
    name, output = step.model, step.output
    if not output.is_skipped:
        if "skipped_steps" in output.metrics:  # the pass was a training step
            run.skips_in_a_row[name] = 0
            run.last_update = run.progress.iteration + 1
        return
    run.skips_in_a_row[name] += 1
    count = run.skips_in_a_row[name]
    trainer = run.student if name == "student" else run.discriminator
    gathered = trainer.parallel.gather_over_data((list(step.broken_rows), list(step.data_rows)))
    found = set(chain.from_iterable(broken for broken, _ in gathered))
    suspects = found or set(chain.from_iterable(every for _, every in gathered))
    reason = f"{_numbers(output)}, {_describe(found, suspects)}"
    if run.parallel.is_writer:
        logger.warning("the %s's step is skipped (%d in a row): %s", name, count, reason)
    limit = run.config.watchdog.max_skipped_steps
    if limit and count >= limit:
        raise RunStoppedError(
            f"the {name} skipped {count} steps in a row (watchdog.max_skipped_steps = {limit}), "
            f"because their numbers are not finite; the last had {reason}. A skipped step changes "
            f"neither weights nor optimizer states. {_state_of_weights(run)}"
        )


def _numbers(output: StepOutput) -> str:
    seen = {key: output.metrics[key] for key in ("loss", "grad_norm") if key in output.metrics}
    return ", ".join(f"{key} = {value:g}" for key, value in seen.items())


def _describe(broken: set[int], suspects: set[int]) -> str:
    listed = ", ".join(map(str, sorted(suspects)[:MOST_ROWS]))
    more = f" and {len(suspects) - MOST_ROWS} more" if len(suspects) > MOST_ROWS else ""
    if broken:
        return f"not finite at the rows {listed}{more} of data.path"
    return f"on the rows {listed}{more} of data.path, of which each alone is finite"


def _state_of_weights(run: Run) -> str:
    """Say which weights are whole, where the newest checkpoint is, and what to do."""
    with run.turn("student"):
        is_finite = {"student": run.student.has_finite_weights()}
    if run.has_discriminator:
        with run.turn("discriminator"):
            is_finite["discriminator"] = run.discriminator.has_finite_weights()
    broken = [name for name, finite in is_finite.items() if not finite]
    where = describe_newest(run.folder) if run.parallel.is_writer else ""
    if broken:
        return (
            f"The weights of the {' and the '.join(broken)} are not finite already; {where}. Go on "
            "from one that is finite, or begin anew, with a lower learning rate or a smaller "
            "clip_grad"
        )
    return (
        f"All weights are finite; {where}, and the same command goes on from it, or begins anew "
        "without one. Look at these rows; if they are in order, lower the learning rate or "
        "clip_grad, or raise lr_warmup_steps" + _way_back(run)
    )


def _way_back(run: Run) -> str:
    """Name the newest checkpoint whose weights are known to be usable, where it is an older one.

    The last update may have made weights that nothing can be computed with, though each is finite.
    """
    whole = whole_iterations(run.folder) if run.parallel.is_writer else []
    used = [iteration for iteration in whole if iteration < run.last_update]
    if not used or used == whole:
        return ""
    return (
        f". If it fails again, go back to {iteration_folder(run.folder, used[-1])}, with whose "
        f"weights a later step was taken: write {used[-1]} into {run.folder / LATEST}"
    )
