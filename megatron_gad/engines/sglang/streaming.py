"""Buckets on their way to all servers, each while the next one is gathered."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from traceback import clear_frames

import torch

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.sglang.broadcast import BroadcastTransport
from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.replica import Replica
from megatron_gad.engines.sglang.shared_memory import TensorTransport
from megatron_gad.engines.sglang.transport import Transport
from megatron_gad.engines.sglang.weight_files import DiskTransport

Failures = dict[Replica, Exception]


def build_transport(config: SGLangConfig, device: torch.device, folder: Path) -> Transport:
    """Return the transport of weights that the settings name.

    device: of the trainer's tensors. folder: of the files that servers at URLs read.
    """
    name = config.weight_transport
    if name == "auto":
        name = "broadcast" if config.urls else "tensor"
    if name == "tensor":
        return TensorTransport(config.tensor_parallel_size)
    if name == "broadcast":
        return BroadcastTransport(device, config.request_timeout_s)
    return DiskTransport(folder if config.urls else None)


def stream_buckets(
    buckets: Iterator[Bucket],
    replicas: Sequence[Replica],
    keep: Callable[[Bucket], None],
) -> Failures:
    """Send a bucket to all servers while the next is gathered; two at most exist meanwhile.

    buckets: read to the end whatever happens. keep: is given every bucket; what it holds of one
    is not counted.

    Returns what went wrong on the way to a server, which is then given nothing more.
    """
    failures: Failures = {}
    # Sent from here, not from what the threads are given: a pool's thread lets go of that some
    # time after its work is done, and another bucket would exist by then.
    on_its_way: Bucket | None = None

    def attempt(replica: Replica) -> None:
        if replica in failures:
            return
        try:
            if on_its_way is None:
                replica.begin_load()
            else:
                replica.take(on_its_way)
        except Exception as error:  # noqa: BLE001 - the caller tells them apart
            clear_frames(error.__traceback__)  # they hold the bucket
            failures[replica] = error

    with ThreadPoolExecutor(len(replicas)) as pool:
        sending: list[Future[None]] = [pool.submit(attempt, replica) for replica in replicas]
        for bucket in buckets:
            keep(bucket)
            wait(sending)
            on_its_way = bucket
            del bucket  # the next is gathered without it
            sending = [pool.submit(attempt, replica) for replica in replicas]
    return failures
