"""Weights by broadcast over a process group: gloo between hosts, NCCL between GPUs."""

import contextlib
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future

import torch

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.client import CallRefused, ServerFailed
from megatron_gad.engines.sglang.versions import ServerApi
from megatron_gad.engines.sglang.weight_group import WeightGroup, WeightStore


class BroadcastTransport:
    """A process group per server, so that one that fails takes no other with it.

    All ranks of a server are in its group, and the broadcast's tree carries a bucket to them.
    """

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        """device: of the trainer and of the servers.

        timeout_s: of joining a group, and of a bucket.
        """
        self._device = device
        self._timeout_s = timeout_s

    def begin(self) -> None:
        """Nothing is kept between two updates."""

    def stage(self, bucket: Bucket) -> None:
        """Nothing is needed before sending."""

    def connect(self, api: ServerApi) -> "BroadcastLink":
        """Return the way to a server that this machine can be reached from."""
        return BroadcastLink(api, self._device, self._timeout_s)

    def close(self) -> None:
        """Nothing is left."""


class BroadcastLink:
    """The group with one server: joined at the first update, given up when anything fails."""

    def __init__(self, api: ServerApi, device: torch.device, timeout_s: float) -> None:
        self._api = api
        self._device = device
        self._timeout_s = timeout_s
        self._group: WeightGroup | None = None

    def begin(self) -> None:
        """Join the group where there is none yet, and open the session."""
        if self._group is None:
            self._group = self._join()
        self._api.begin_weight_update()

    def send(self, bucket: Bucket) -> None:
        """Send a bucket as one tensor while the server takes it."""
        group = self._group
        if group is None:
            raise ServerFailed("the process group with the server was given up")
        answer = _start(lambda: self._api.update_from_broadcast(bucket.layout, group.name))
        # NCCL's first one waits for a server that may never come; its answer tells.
        sending = _start(lambda: group.broadcast(bucket.flat.to(self._device)))
        try:
            answer.result()
            sending.result().wait()
        except RuntimeError as error:
            # Half a broadcast leaves the ranks of the group at different places.
            self._abandon()
            raise ServerFailed(f"broadcast of weights: {error}") from error

    def end(self) -> None:
        """Close the session."""
        self._api.end_weight_update()

    def close(self) -> None:
        """Leave the group, and let a server that lives do the same."""
        if self._group is not None:
            # A server that is gone took the group with it.
            with contextlib.suppress(CallRefused, ServerFailed):
                self._api.leave_group(self._group.name)
            self._abandon()

    def _join(self) -> WeightGroup:
        num_ranks = 1 + self._api.tensor_parallel_size()
        name = f"megatron_gad_weights_{uuid.uuid4().hex}"
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        try:
            store = WeightStore(self._api.local_address(), num_ranks, self._timeout_s)
            joining = _start(lambda: store.join(name, self._device))
            self._api.join_group(store.address, store.port, num_ranks, name, backend)
            return joining.result()
        except RuntimeError as error:
            raise ServerFailed(f"process group for weights: {error}") from error

    def _abandon(self) -> None:
        if self._group is not None:
            self._group.abandon()
            self._group = None


def _start(call: Callable[[], object]) -> Future:
    """Run a call in a thread that nobody has to wait for."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except RuntimeError as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
