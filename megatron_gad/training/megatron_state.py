"""The global variables of megatron.core, kept once for each layout of a run.

Student and discriminator may lie differently over the same ranks. megatron.core keeps its process
groups in variables of ``parallel_state``, which layers, schedules, optimizers and checkpoints read
whenever they run. Most of them can also be handed their groups, but each one that is not falls
back to the variables without a word, and would then compute with the other model's ranks. So a
layout is a whole set of these variables here, installed around everything a trainer does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from megatron.core import parallel_state
from megatron.core.tensor_parallel import random

T = TypeVar("T")
# Tensor-parallel ranks draw differently, so a layout has random states of its own, too.
RANDOM_STATES = {"_CUDA_RNG_STATE_TRACKER": None, "_CUDA_RNG_STATE_TRACKER_INITIALIZED": False}

Variables = dict[ModuleType, dict[str, Any]]


class MegatronState:
    """What megatron.core's variables are for one layout."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables

    @classmethod
    def installed(cls) -> "MegatronState":
        """Return the state that megatron.core has now."""
        return cls(_read())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Install this state, and afterwards what was there before; may be nested."""
        before = _read()
        _write(self._variables)
        try:
            yield
        finally:
            _write(before)

    def around(self, items: Iterator[T]) -> Iterator[T]:
        """Install this state whenever an item is computed, and not while the caller has it."""
        while True:
            with self.active():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


@contextmanager
def without_layout() -> Iterator[None]:
    """Let megatron.core be as before the first layout was made, for one more to be made."""
    before = _read()
    _write({parallel_state: initial_variables(), random: RANDOM_STATES})
    try:
        yield
    finally:
        _write(before)


def initial_variables() -> dict[str, Any]:
    """Return what the variables of ``parallel_state`` are when it is imported."""
    return {
        name: {} if isinstance(value, dict) else None
        for name, value in _read()[parallel_state].items()
    }


def _read() -> Variables:
    groups = {
        name: value
        for name, value in vars(parallel_state).items()
        if name.startswith("_") and name.isupper()
    }
    return {parallel_state: groups, random: {name: getattr(random, name) for name in RANDOM_STATES}}


def _write(variables: Variables) -> None:
    for module, values in variables.items():
        for name, value in values.items():
            setattr(module, name, value)
