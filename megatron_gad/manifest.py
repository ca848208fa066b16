"""The list of a folder's files with sizes and digests: what is read is what was written.

XXH3 notices what disks, memory and networks break, as fast as memory is read. It is no protection
from somebody who means to change a file.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash

from megatron_gad.files import replace_text, sync

MANIFEST = "files.json"
# XXH3 lets go of Python's lock, and a disk serves several readers faster than one.
THREADS = 4
BLOCK_BYTES = 1 << 20
MOST_NAMED = 4


class Written(NamedTuple):
    """A file as it was written; digest: XXH3 of 128 bits, empty if only the size is known."""

    num_bytes: int
    digest: str


def look_at(folder: Path, names: Iterable[str]) -> dict[str, Written]:
    """Read files of a folder, several at a time, and return what they are now."""
    names = list(names)
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda name: _look_at(folder / name), names)
        return dict(zip(names, found, strict=True))


def names_in(folder: Path) -> list[str]:
    """Return the names of all files below a folder, but for the manifest's own."""
    names = (os.path.relpath(file, folder) for file in _files(folder))
    return sorted(name for name in names if name != MANIFEST)


def write_manifest(folder: Path, written: Mapping[str, Written]) -> None:
    """Write down what a folder's files are."""
    listed = {name: {"bytes": size, "xxh3_128": digest} for name, (size, digest) in written.items()}
    replace_text(folder / MANIFEST, json.dumps(dict(sorted(listed.items())), indent=1))
    sync(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Written]:
    """Return what a folder's files were; nothing if nobody wrote it down.

    Raises ValueError, with what is wrong as its text, if the manifest itself is damaged.
    """
    file = folder / MANIFEST
    if not file.exists():
        return {}
    try:
        return {name: _written(each) for name, each in json.loads(file.read_bytes()).items()}
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"holds {MANIFEST} that cannot be read ({error})") from error


def loss_of(folder: Path, written: Mapping[str, Written]) -> str:
    """Return which files a folder lost, whole or in part, by their sizes; empty if none."""
    lost = [name for name in written if not (folder / name).is_file()]
    if lost:
        return f"lacks {_some(lost)}"
    for name, (size, _) in written.items():
        found = (folder / name).stat().st_size
        if found != size:
            return f"holds {name} with {found:,} of its {size:,} bytes"
    return ""


def changed_files(
    folder: Path, written: Mapping[str, Written], names: Collection[str]
) -> list[str]:
    """Return which of some files are no longer what they were; those without a digest are not."""
    known = [name for name in names if written[name].digest]
    with ThreadPoolExecutor(THREADS) as threads:
        are_same = threads.map(lambda name: _is_still(folder / name, written[name]), known)
        return [name for name, is_same in zip(known, are_same, strict=True) if not is_same]


def describe_changed(names: Collection[str]) -> str:
    """Say that files are not what was written."""
    return f"holds {_some(sorted(names))} with other bytes than were written"


def _files(folder: str | Path) -> Iterator[str]:
    """Yield the files below a folder; the folder's list says what is one, so none is looked at."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file():
                yield entry.path


def _written(listed: int | Mapping[str, int | str]) -> Written:
    """Return one entry; version 0.1 listed sizes alone."""
    if isinstance(listed, int):
        return Written(listed, "")
    return Written(int(listed["bytes"]), str(listed["xxh3_128"]))


def _look_at(file: Path) -> Written:
    digest, num_bytes = xxhash.xxh3_128(), 0
    block = memoryview(bytearray(BLOCK_BYTES))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(block):
            digest.update(block[:count])
            num_bytes += count
    return Written(num_bytes, digest.hexdigest())


def _is_still(file: Path, written: Written) -> bool:
    try:
        return _look_at(file) == written
    except OSError:  # a disk that cannot read a block says so in this way
        return False


def _some(names: Collection[str]) -> str:
    named, more = list(names)[:MOST_NAMED], len(names) - MOST_NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
