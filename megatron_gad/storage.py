"""Failures of the disk, told from failures of the program: one message says what to do."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_gad.errors import RunStoppedError

LATEST = "latest_checkpointed_iteration.txt"
# Whatever is read or written then, the file system is the cause.
OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO),
)
# Of a file whose name is known.
OF_A_PATH = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST),
)
IS_FULL = (errno.ENOSPC, errno.EDQUOT)
# How libraries that are not written in Python name an error of the system.
NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
# What torch says of a file that took less than it was given.
SHORT_WRITE = re.compile(r"inline_container\.cc.*(unexpected pos|file write failed)", re.DOTALL)


class StorageError(RuntimeError):
    """A file system does not take or give what a run needs; the message says what to do."""


@contextlib.contextmanager
def telling_of_storage(run_folder: Path) -> Iterator[None]:
    """Raise StorageError in place of a failure of the block that is about the disk."""
    try:
        yield
    except BaseException as error:  # torch's failures of checkpoints are no Exceptions
        told = storage_error(error, run_folder)
        if told is None:
            raise
        raise told from None


def storage_error(error: BaseException, run_folder: Path) -> StorageError | None:
    """Return what a failure says about the disk; None if it is about something else.

    run_folder: named if the failure names no file; the checkpoints in it are what is safe.
    """
    if isinstance(error, (ValueError, RunStoppedError)):
        return None
    for each in _with_causes(error):
        if isinstance(each, StorageError):
            return each
        if getattr(each, "failures", None) == {}:
            return StorageError(f"{run_folder}: another rank could not write, and says why")
        found = _reason(each)
        if found is not None:
            number, path = found
            return _told(number, path or run_folder, run_folder)
    return None


def lost_folder(run_folder: Path) -> StorageError:
    """Return the error of a run whose folder was taken away from under it."""
    return _told(errno.ENOENT, run_folder, run_folder)


def _told(number: int, path: Path, run_folder: Path) -> StorageError:
    what, remedy = os.strerror(number), "let this user read and write it"
    if number in IS_FULL:
        remedy = (
            "make room there; the disk has to hold one checkpoint more than checkpoint.keep_last"
        )
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(path if path.exists() else run_folder)
            what += f" ({usage.free:,} of {usage.total:,} bytes are free)"
    elif number in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO):
        remedy = "bring it back, or name another"
    elif number in (errno.EISDIR, errno.EEXIST, errno.ELOOP):
        remedy = "move it away"
    elif number in OF_THE_DISK:
        remedy = "look after the file system"
    return StorageError(f"{path}: {what}; {remedy}. {_what_is_safe(run_folder)}")


def _what_is_safe(run_folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        iteration = int((run_folder / LATEST).read_text())
        newest = run_folder / f"iter_{iteration:07d}"
        return (
            f"The newest checkpoint, {newest}, was whole before and is not touched; the same "
            "command goes on from there"
        )
    return "There is no checkpoint yet; the same command begins anew"


def _reason(error: BaseException) -> tuple[int, Path | None] | None:
    """Return the system's number of one failure, and the path if it names one."""
    if isinstance(error, OSError):
        path = Path(os.fsdecode(error.filename)) if _is_path(error.filename) else None
        if error.errno in OF_THE_DISK or (path is not None and error.errno in OF_A_PATH):
            return error.errno, path
        return None
    text = str(error)
    if match := NUMBER.search(text):
        number = int(match[1] or match[2])
        return (number, None) if number in OF_THE_DISK else None
    return (errno.ENOSPC, None) if SHORT_WRITE.search(text) else None


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield a failure and those that it was raised from, also where ranks hand theirs to one."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is not None:
            yield each
            # torch's checkpoints hold {rank: (exception, traceback)}.
            of_ranks = getattr(each, "failures", None)
            failures = of_ranks.values() if isinstance(of_ranks, dict) else ()
            waiting += [each.__cause__, *(failure for failure, _ in failures)]
