"""Weights by broadcast over a process group: gloo between hosts, NCCL between GPUs."""

import contextlib
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future

import torch

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.client import CallRefused, ServerFailed
from megatron_gad.engines.sglang.transport import Transport
from megatron_gad.engines.sglang.versions import ServerApi
from megatron_gad.engines.sglang.weight_group import WeightGroup, WeightStore


class BroadcastTransport(Transport):
    """A process group per server, so that one that fails takes no other with it.

    All ranks of a server are in its group, and the broadcast's tree carries a bucket to them. A
    group is joined at the first bucket, and given up when anything fails.
    """

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        """device: of the trainer and of the servers.

        timeout_s: of joining a group, and of a bucket.
        """
        self._device = device
        self._timeout_s = timeout_s
        self._groups: dict[ServerApi, WeightGroup] = {}

    def send(self, server: ServerApi, bucket: Bucket) -> None:
        """Send a bucket as one tensor while the server takes it."""
        group = self._groups.get(server) or self._join(server)
        server.begin_session()
        answer = _start(lambda: server.update_from_broadcast(bucket.layout, group.name))
        # NCCL's first one waits for a server that may never come; its answer tells.
        sending = _start(lambda: group.broadcast(bucket.flat.to(self._device)))
        try:
            answer.result()
            sending.result().wait()
        except RuntimeError as error:
            # Half a broadcast leaves the ranks of the group at different places.
            self._groups.pop(server).abandon()
            raise ServerFailed(f"broadcast of weights: {error}") from error

    def leave(self, server: ServerApi) -> None:
        """Leave the group, and let a server that lives do the same."""
        group = self._groups.pop(server, None)
        if group is not None:
            # A server that is gone took the group with it.
            with contextlib.suppress(CallRefused, ServerFailed):
                server.leave_group(group.name)
            group.abandon()

    def _join(self, server: ServerApi) -> WeightGroup:
        num_ranks = 1 + server.tensor_parallel_size()
        name = f"megatron_gad_weights_{uuid.uuid4().hex}"
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        try:
            store = WeightStore(server.local_address(), num_ranks, self._timeout_s)
            joining = _start(lambda: store.join(name, self._device))
            server.join_group(store.address, store.port, num_ranks, name, backend)
            self._groups[server] = group = joining.result()
        except RuntimeError as error:
            raise ServerFailed(f"process group for weights: {error}") from error
        return group


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
