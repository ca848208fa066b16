"""Which checkpoints a run directory holds, and their run states; read without Megatron."""

import json
import re
from pathlib import Path
from typing import Any

LATEST = "latest_checkpointed_iteration.txt"
STATE = "run_state.json"


def iteration_folder(run_folder: Path, iteration: int) -> Path:
    """Return where the checkpoint of an iteration lives."""
    return run_folder / f"iter_{iteration:07d}"


def latest_iteration(run_folder: Path) -> int | None:
    """Return the iteration of the newest whole checkpoint, None where there is none.

    Raises ValueError where the marker names a checkpoint that is not there.
    """
    marker = run_folder / LATEST
    if not marker.exists():
        return None
    text = marker.read_text().strip()
    if not text.isdigit() or not (iteration_folder(run_folder, int(text)) / STATE).exists():
        raise ValueError(
            f"{marker} says {text!r}, but there is no whole checkpoint of that iteration beside "
            f"it; write the number of an iter_* folder that holds {STATE} into it"
        )
    return int(text)


def whole_iterations(run_folder: Path) -> list[int]:
    """Return the iterations whose checkpoints are whole, in ascending order."""
    names = (re.fullmatch(r"iter_(\d+)", path.name) for path in run_folder.glob("iter_*"))
    found = {int(name[1]) for name in names if name}
    return sorted(n for n in found if (iteration_folder(run_folder, n) / STATE).exists())


def read_state(run_folder: Path, iteration: int) -> dict[str, Any]:
    """Return the run state of a checkpoint."""
    return json.loads((iteration_folder(run_folder, iteration) / STATE).read_text())
