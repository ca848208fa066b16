"""Watches how much memory a computation takes."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Copies to the host what a rank writes of a checkpoint.
WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any floating point tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.is_floating_point():
                self.num_elements = max(self.num_elements, value.numel())
        return result


class NewNumbers(TorchDispatchMode):
    """Counts the bytes of floating point numbers that were made, by the modules that did so.

    Views of what was there have none, nor have tensors without values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and look whose memory its results have."""
        result = func(*args, **(kwargs or {}))
        given = {_storage_of(value) for value in tree_leaves((args, kwargs)) if _has_numbers(value)}
        for value in tree_leaves(result):
            if _has_numbers(value) and _storage_of(value) not in given:
                self.num_bytes[_calling_module()] += value.untyped_storage().nbytes()
        return result


def _calling_module() -> str:
    """Return the name of the innermost module that is neither this one nor torch's."""
    frame = sys._getframe()
    while frame.f_globals["__name__"].partition(".")[0] == "torch" or (
        frame.f_globals["__name__"] == __name__
    ):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_globals["__name__"]


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta


def peak_bytes(compute: Callable[[], object]) -> int:
    """Return the most bytes that a computation held at once on the CPU, as the allocator saw it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        compute()
    results: Any = profile.profiler
    held = peak = 0
    for event in sorted(results.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
