"""The one exception that ends a run on purpose, and failures that must not end one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


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
