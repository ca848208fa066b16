"""Which checkpoints a run directory holds, and their run states; read without Megatron."""

import json
import re
from pathlib import Path
from typing import Any

from megatron_gad.storage import LATEST

STATE = "run_state.json"
FILES = "files.json"  # name -> bytes of all other files of a checkpoint


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


def note_files(folder: Path) -> None:
    """Write down which files a checkpoint has, and their sizes, before it is called whole."""
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / FILES).write_text(json.dumps(sizes, indent=1))


def damage_of(folder: Path) -> str:
    """Return what a checkpoint has lost since it was written; empty if nothing, or not known."""
    if not (folder / FILES).exists():
        return ""
    sizes: dict[str, int] = json.loads((folder / FILES).read_text())
    lost = [name for name in sizes if not (folder / name).is_file()]
    if lost:
        return f"lacks {', '.join(lost[:4])}" + (f" and {len(lost) - 4} more" if lost[4:] else "")
    for name, size in sizes.items():
        found = (folder / name).stat().st_size
        if found != size:
            return f"holds {name} with {found:,} of its {size:,} bytes"
    return ""
