"""The digests of a checkpoint: every rank computes those of what it wrote, and checks its share."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from megatron_gad.manifest import (
    MANIFEST,
    Written,
    changed_files,
    describe_changed,
    look_at,
    names_in,
    read_manifest,
    write_manifest,
)
from megatron_gad.training.parallel import Parallel

# How Megatron names what a rank writes.
OF_RANK = re.compile(r"__\d+_\d+\.distcp")


def write_digests(
    folder: Path, parallel: Parallel, known: Mapping[Path, Written] | None = None
) -> None:
    """Write the manifest of a folder whose files are all there. All ranks call it.

    A rank reads what it has just written, which its host still has in memory.

    known: files of this rank's that need not be read again.
    """
    found = {str(file.relative_to(folder)): each for file, each in (known or {}).items()}
    parallel.barrier()
    own = names_of_rank(folder, parallel.rank)
    if parallel.is_writer:
        own += [name for name in names_in(folder) if not is_of_a_rank(name)]
    unknown = [name for name in own if name not in found]
    parts = parallel.gather_over_world(look_at(folder, unknown) | found)
    if parallel.is_writer:
        write_manifest(folder, {name: each for part in parts for name, each in part.items()})


def changed_since(folder: Path, parallel: Parallel) -> str:
    """Return which files of a folder are not what was written; empty if none, or not known.

    All ranks call it, and read an equal share of the bytes.
    """
    try:
        written = read_manifest(folder)
    except ValueError as error:
        written, problem = {}, str(error)
    else:
        problem = ""
    by_size = sorted(written, key=lambda name: (-written[name].num_bytes, name))
    loads, own = [0] * parallel.world_size, []
    for name in by_size:
        rank = min(range(parallel.world_size), key=loads.__getitem__)
        loads[rank] += written[name].num_bytes + 1
        if rank == parallel.rank:
            own.append(name)
    found = parallel.gather_over_world((problem, changed_files(folder, written, own)))
    changed = {name for _, names in found for name in names}
    return next((problem for problem, _ in found if problem), "") or (
        describe_changed(changed) if changed else ""
    )


def check_model_folder(key: str, folder: str, parallel: Parallel) -> None:
    """Compare the weights of an exported folder with their digests. All ranks call it.

    Raises ValueError, alike on all ranks, naming the key and the files that changed.
    """
    changed = changed_since(Path(folder), parallel)
    if changed:
        raise ValueError(
            f"{key} = {folder!r} {changed}; copy the folder again, or delete its {MANIFEST} if it "
            "was changed on purpose"
        )


def names_of_rank(folder: Path, rank: int) -> list[str]:
    """Return the names of what a rank wrote in a folder and those in it; it numbers its files.

    If every rank listed the files of all of them, the file system would show the square of them.
    """
    found: list[Path] = []
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        own = (place / f"__{rank}_{number}.distcp" for number in itertools.count())
        found += itertools.takewhile(Path.exists, own)
    return [str(file.relative_to(folder)) for file in found]


def is_of_a_rank(name: str) -> bool:
    """Return whether a file is one of those that every rank writes; the first writes the others."""
    return OF_RANK.fullmatch(name.rpartition("/")[2]) is not None
