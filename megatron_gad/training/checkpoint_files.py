"""Which checkpoints a run directory holds, and their run states; read without Megatron."""

import json
import re
from pathlib import Path
from typing import Any

from megatron_gad.files import replacing, sync
from megatron_gad.manifest import loss_of, read_manifest
from megatron_gad.storage import LATEST

STATE = "run_state.json"


def iteration_folder(run_folder: Path, iteration: int) -> Path:
    """Return where the checkpoint of an iteration lives."""
    return run_folder / f"iter_{iteration:07d}"


def marked_iteration(run_folder: Path) -> int | None:
    """Return the iteration that a run directory's marker names, None if there is no marker.

    Raises ValueError if it names none.
    """
    marker = run_folder / LATEST
    if not marker.exists():
        return None
    text = marker.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(_names_nothing(marker, text))
    return int(text)


def latest_iteration(run_folder: Path) -> int | None:
    """Return the iteration of the newest whole checkpoint, None where there is none.

    Raises ValueError where the marker names a checkpoint that is not there.
    """
    iteration = marked_iteration(run_folder)
    if iteration is not None and not (iteration_folder(run_folder, iteration) / STATE).exists():
        raise ValueError(_names_nothing(run_folder / LATEST, str(iteration)))
    return iteration


def write_marker(run_folder: Path, iteration: int) -> None:
    """Let a run directory's marker name a checkpoint; the disk holds it when this returns."""
    with replacing(run_folder / LATEST) as marker:
        marker.write_text(str(iteration))
        sync(marker)
    sync(run_folder)


def _names_nothing(marker: Path, text: str) -> str:
    return (
        f"{marker} says {text!r}, but there is no whole checkpoint of that iteration beside "
        f"it; write the number of an iter_* folder that holds {STATE} into it"
    )


def whole_iterations(run_folder: Path) -> list[int]:
    """Return the iterations whose checkpoints are whole, in ascending order."""
    names = (re.fullmatch(r"iter_(\d+)", path.name) for path in run_folder.glob("iter_*"))
    found = {int(name[1]) for name in names if name}
    return sorted(n for n in found if (iteration_folder(run_folder, n) / STATE).exists())


def read_state(run_folder: Path, iteration: int) -> dict[str, Any]:
    """Return the run state of a checkpoint."""
    return json.loads((iteration_folder(run_folder, iteration) / STATE).read_text())


def damage_of(folder: Path) -> str:
    """Return what a checkpoint has lost since it was written; empty if nothing, or not known."""
    try:
        return loss_of(folder, read_manifest(folder))
    except ValueError as error:
        return str(error)


def is_checked(run_folder: Path, iteration: int) -> bool:
    """Return whether a checkpoint was written by a version that saves no broken weights."""
    try:
        written = read_manifest(iteration_folder(run_folder, iteration))
    except ValueError:
        return False
    return any(each.digest for each in written.values())


def describe_newest(run_folder: Path) -> str:
    """Say which checkpoint is the newest, and whether its weights were checked."""
    newest = latest_iteration(run_folder)
    if newest is None:
        return "there is no checkpoint yet"
    is_known = is_checked(run_folder, newest)
    known = "were found finite when it was written" if is_known else "were never checked"
    return f"the newest checkpoint is {iteration_folder(run_folder, newest)}, whose weights {known}"
