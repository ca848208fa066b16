"""A process group of this process and the ranks of one server, beside any other group.

A server joins with SGLang's ``init_custom_process_group``; the keys in the store are the ones that
torch's groups use. The group is made of torch's backend itself, so that it neither needs nor
touches the process group of the training.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SOURCE_RANK = 0
NCCL_ERRORS_VARIABLE = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class WeightStore:
    """Where the ranks of one group find each other; this process holds it."""

    def __init__(self, address: str, num_ranks: int, timeout_s: float) -> None:
        """address: of this machine, as the server reaches it. num_ranks: this one included."""
        self.address = address
        self.num_ranks = num_ranks
        self._timeout = timedelta(seconds=timeout_s)
        self._store = dist.TCPStore(
            address, 0, num_ranks, is_master=True, timeout=self._timeout, wait_for_workers=False
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._store.port

    def join(self, name: str, device: torch.device) -> "WeightGroup":
        """Wait for the other ranks, and return the group. Raises RuntimeError after the time."""
        on_gpu = device.type == "cuda"
        store: dist.Store = self._store
        # The group's name once as SGLang puts it and once as torch does, then the device's kind.
        for prefix in (name, f"{name}/", "cuda/" if on_gpu else "cpu/"):
            store = dist.PrefixStore(prefix, store)
        backend: Any
        if on_gpu:
            nccl: Any = getattr(dist, "ProcessGroupNCCL")  # noqa: B009 (not in builds for CPUs)
            options = nccl.Options()
            # The server's call ends first. A transfer that is over time would end this process.
            options._timeout = 2 * self._timeout + timedelta(minutes=1)
            with _bearing_nccl_errors():
                backend = nccl(store, SOURCE_RANK, self.num_ranks, options)
        else:
            backend = dist.ProcessGroupGloo(
                store, SOURCE_RANK, self.num_ranks, timeout=self._timeout
            )
        return WeightGroup(name, backend, self._store)


@contextlib.contextmanager
def _bearing_nccl_errors() -> Iterator[None]:
    """Let a group that is made here not end this process when another rank of it dies."""
    before = os.environ.get(NCCL_ERRORS_VARIABLE)
    os.environ[NCCL_ERRORS_VARIABLE] = "0"
    try:
        yield
    finally:
        del os.environ[NCCL_ERRORS_VARIABLE]
        if before is not None:
            os.environ[NCCL_ERRORS_VARIABLE] = before


class WeightGroup:
    """A joined group, in which this process sends."""

    def __init__(self, name: str, backend: Any, store: dist.TCPStore) -> None:
        self.name = name
        self._backend: Any = backend
        self._store = store  # has to live as long as the group

    def broadcast(self, flat: Tensor) -> dist.Work:
        """Start to send a tensor to all other ranks."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = SOURCE_RANK, 0
        return self._backend.broadcast([flat], options)

    def abandon(self) -> None:
        """Let go of the group without waiting for what is still on its way in it."""
        held = [self._backend, self._store]
        self._backend = None
        # Its end waits for a transfer that hangs, until the group's own timeout.
        threading.Thread(target=held.clear, daemon=True).start()
        del held
