"""Calls the command in this process with an input, and says what is wrong with how it takes it."""

import contextlib
import io
import logging
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from megatron_gad.__main__ import main
from megatron_gad.errors import BAD_INPUT, NO_STORAGE

# Far longer than any input takes; what is not done then never is.
HANG_S = 120
LEAST_SAID = 30
PASSED = "passed, though it makes no sense"


class Hang(BaseException):
    """The command does not come to an end."""


def problem_of(arguments: Sequence[str], must_refuse: bool) -> str:
    """Run the command; return what is wrong with its answer, empty if nothing is.

    arguments: of the command. must_refuse: the input makes no sense, and must not pass.
    """
    said = io.StringIO()
    try:
        with _arguments(arguments), _time_limit(), _captured(said):
            status = main()
    except SystemExit as ended:  # of the parser of flags
        status = ended.code
    except Hang:
        return f"no end in {HANG_S} s"
    except BaseException as error:  # noqa: BLE001 - whatever gets out is what is looked for
        return "".join(traceback.format_exception(error)[-6:])
    if status not in (0, BAD_INPUT, NO_STORAGE):
        return f"status {status}: {said.getvalue()[-2000:]}"
    if status == BAD_INPUT and len(said.getvalue()) < LEAST_SAID:
        return f"refused with hardly a word: {said.getvalue()!r}"
    if "Traceback" in said.getvalue():
        return said.getvalue()[-3000:]
    if status == 0 and must_refuse:
        return PASSED
    return ""


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["megatron_gad", *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _captured(said: io.StringIO) -> Iterator[None]:
    """Take what is printed and logged."""
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        logging.getLogger().removeHandler(handler)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, and the folders above it; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    path.write_bytes(data)
    return path
