"""Can a run state be one that a run wrote? What a checkpoint lacks is looked at with it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_gad.training.checkpoint_files import (
    LATEST,
    STATE,
    damage_of,
    iteration_folder,
    whole_iterations,
)

ORDERS = ("order", "extra_order")
OF_ORDER = ("num_rows", "seed", "shuffle", "epoch", "position")
MOST = 10**15  # of anything that is counted
PROGRESS = ("iteration", "stage_index", "step_in_stage")
# Version 0.1 kept more beside these, which is no count.
COUNTED = (*PROGRESS, "weights_version", "consumed_samples")

# (key, value, the most that it can be)
Count = tuple[str, Any, int]


def damage_of_run(folder: Path) -> str:
    """Return what a run's checkpoint has lost since it was written; empty if nothing is seen.

    Looks at names, sizes and the run state.
    """
    if not (folder / STATE).is_file():
        return f"lacks {STATE}" if folder.is_dir() else "is not there"
    return damage_of(folder) or _damage_of_state(folder)


def earlier_whole(run_folder: Path, iteration: int) -> list[int]:
    """Return the iterations before one whose checkpoints have lost nothing that is seen."""
    before = [number for number in whole_iterations(run_folder) if number < iteration]
    return [each for each in before if not damage_of_run(iteration_folder(run_folder, each))]


def damage_message(folder: Path, damage: str) -> str:
    """Say what a checkpoint that nobody may move has lost, and which one is left to go on from."""
    before = earlier_whole(folder.parent, iteration_of(folder))
    remedy = "or begin anew with another --save"
    if before:
        remedy = f"or go on from the one before: write {before[-1]} into {folder.parent / LATEST}"
    return f"the checkpoint {folder} {damage}; copy it again if there is a copy, {remedy}"


def chosen_iteration(source: Path, step: int) -> int:
    """Return the iteration that checkpoint.ckpt_step names.

    Raises ValueError if a run directory has no such checkpoint; names those that it has.
    """
    whole = whole_iterations(source)
    if step not in whole:
        raise ValueError(
            f"checkpoint.ckpt_step = {step}: {source} has checkpoints of the iterations "
            f"{', '.join(map(str, whole)) or 'none'}; choose one of these"
        )
    return step


def iteration_of(folder: Path) -> int:
    """Return the number in a checkpoint's name, also in one that a crash left it with."""
    return int(folder.name.removeprefix("iter_").removesuffix(".old"))


def problem_of_state(state: Any, iteration: int) -> str:
    """Return what cannot be true of the run state of an iteration's checkpoint; empty if all can.

    As the end of a sentence that begins with its file.
    """
    if not isinstance(state, dict):
        return f"holds a {type(state).__name__} in place of an object"
    progress = state.get("progress")
    if not isinstance(progress, dict) or any(key not in progress for key in PROGRESS):
        return f"lacks progress with {', '.join(PROGRESS)}"
    if not isinstance(state.get("stages"), list) or not _has_steps(state.get("schedule_steps")):
        return "lacks stages, or schedule_steps of the student"
    if problem := _problem_of_parts(state):
        return problem
    for key, value, most in _counts(state):
        if isinstance(value, bool) or not isinstance(value, int):
            return f"has {key} = {value!r}, which is no count"
        if not 0 <= value <= most:
            return f"has {key} = {value}, which is not within 0 and {most}"
    if progress["iteration"] != iteration:
        return f"is of iteration {progress['iteration']}"
    return ""


def _problem_of_parts(state: Mapping[str, Any]) -> str:
    """Return which part is of another kind than a run saves; empty if none is."""
    for name in ORDERS:
        if not isinstance(state.get(name), dict) or any(key not in state[name] for key in OF_ORDER):
            return f"lacks {name} with {', '.join(OF_ORDER)}"
    for name in ("stage", "settings"):
        if not isinstance(state.get(name, {}), dict):
            return f"has {name} = {state[name]!r}, which is no object"
    if not isinstance(state.get("snapshots", []), list):
        return f"has snapshots = {state['snapshots']!r}, which is no list"
    return ""


def _damage_of_state(folder: Path) -> str:
    try:
        state = json.loads((folder / STATE).read_bytes())
        problem = problem_of_state(state, iteration_of(folder))
    except (ValueError, RecursionError) as error:
        problem = f"cannot be read ({error})"
    return f"holds {STATE} that {problem}" if problem else ""


def _has_steps(steps: Any) -> bool:
    return isinstance(steps, dict) and "student" in steps


def _counts(state: Mapping[str, Any]) -> Iterator[Count]:
    progress = state["progress"]
    iteration = progress["iteration"]
    most = {"stage_index": len(state["stages"])}
    if isinstance(iteration, int):
        most["step_in_stage"] = iteration
    for key in COUNTED:
        if key in progress:
            yield f"progress.{key}", progress[key], most.get(key, MOST)
    for name, steps in state["schedule_steps"].items():
        yield f"schedule_steps.{name}", steps, MOST
    for name in ORDERS:
        yield from _counts_of_order(name, state.get(name, {}))


def _counts_of_order(name: str, order: Mapping[str, Any]) -> Iterator[Count]:
    """Yield those of a data order, whose rows put off have to be rows that there are."""
    rows = order.get("num_rows", 0)
    most = rows if isinstance(rows, int) else 0
    for key, limit in (("num_rows", MOST), ("epoch", MOST), ("position", most)):
        if key in order:
            yield f"{name}.{key}", order[key], limit
    put_off = order.get("put_off", [])
    if not isinstance(put_off, list):
        yield f"{name}.put_off", put_off, MOST
        return
    for row in put_off:
        yield f"{name}.put_off", row, most - 1
