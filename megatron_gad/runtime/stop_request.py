"""Signals that ask a run to stop after the step that is running."""

import contextlib
import signal
from collections.abc import Iterator

from megatron_gad.training.parallel import Parallel


class StopRequest:
    """Turns signals into a checkpoint after the step that is running.

    A second SIGINT ends the process at once. Used as ``with stop.hearing(signal.SIGTERM):``.
    """

    def __init__(self) -> None:
        self.name = ""
        self.is_requested = False
        # Written by the handler alone: it may run in the middle of everywhere().
        self._noted = ""
        self._num_interrupts = 0

    @contextlib.contextmanager
    def hearing(self, *numbers: signal.Signals) -> Iterator[None]:
        """Take these signals for a request."""
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def everywhere(self, parallel: Parallel) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        self.name = max(parallel.gather_over_world(self._noted))
        self.is_requested = bool(self.name)
        return self.is_requested

    def _note(self, number: int, _frame: object) -> None:
        # Launcher, scheduler and other ranks pass one request on, each in its own time: a signal
        # that comes again asks for nothing new. Only a person presses Ctrl-C twice.
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt
        self._noted = self._noted or signal.Signals(number).name
