"""A run that is asked to stop hears it, whenever and however often it is asked."""

import os
import signal
from typing import TypeVar

import pytest

from megatron_gad.runtime.stop_request import StopRequest
from megatron_gad.training.parallel import Parallel

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class SignalledWhileAsking(Parallel):
    """A rank that gets SIGUSR1 after it has told the others that it knows of no signal."""

    def __init__(self) -> None:
        """Take no place among ranks."""

    def gather_over_world(self, value: T) -> list[T]:
        """Answer as one rank does, after the signal."""
        os.kill(os.getpid(), signal.SIGUSR1)
        return [value]


class Alone(SignalledWhileAsking):
    """The same without a signal."""

    def gather_over_world(self, value: T) -> list[T]:
        """Answer as one rank does."""
        return [value]


def test_a_signal_during_the_exchange_is_heard_after_the_next_step() -> None:
    stop = StopRequest()
    with stop.hearing(*SIGNALS):
        assert not stop.everywhere(SignalledWhileAsking())
        assert stop.everywhere(Alone())
        assert stop.name == "SIGUSR1"


def test_a_repeated_signal_is_the_same_request() -> None:
    stop = StopRequest()
    with stop.hearing(*SIGNALS):
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.everywhere(Alone())
        assert stop.name == "SIGUSR1"


def test_a_second_interrupt_ends_the_process() -> None:
    with StopRequest().hearing(*SIGNALS), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_warning_while_the_run_starts_is_heard_in_its_first_step() -> None:
    stop, before = StopRequest(), signal.getsignal(signal.SIGTERM)
    with stop.hearing(signal.SIGUSR1):
        assert signal.getsignal(signal.SIGTERM) == before
        os.kill(os.getpid(), signal.SIGUSR1)
        with stop.hearing(signal.SIGTERM, signal.SIGINT):
            assert stop.everywhere(Alone())
            assert stop.name == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) == before
