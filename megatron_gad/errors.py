"""The one exception that ends a run on purpose, failures that must not end one, and statuses."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Exit statuses of the command. Python has 1 too, argparse and its relatives 2, and a shell 130.
FAILED = 1
BAD_INPUT = 2
STOPPED = 3
HUNG = 4
ORPHANED = 5
NO_STORAGE = 6
INTERRUPTED = 130


class RunStoppedError(RuntimeError):
    """A run must not go on: its numbers are broken, or a rule of the user's says so.

    Raised on every rank alike. The message says what was seen and what to do; the newest
    checkpoint is whole and from before.
    """


@contextmanager
def only_warns(logger: logging.Logger, what_failed: str) -> Iterator[None]:
    """Turn an error in the block into a warning, for what a run can do without.

    what_failed: the beginning of the warning; the error's type and message follow.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is worth more
        logger.warning("%s: %s: %s", what_failed, type(error).__name__, error)
