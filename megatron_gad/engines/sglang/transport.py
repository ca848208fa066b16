"""How buckets of weights reach SGLang servers: what every way of sending them offers."""

from pathlib import Path
from typing import Protocol

import torch

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.sglang.broadcast import BroadcastTransport
from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.shared_memory import TensorTransport
from megatron_gad.engines.sglang.versions import ServerApi
from megatron_gad.engines.sglang.weight_files import DiskTransport


class Link(Protocol):
    """The way of weights to one server, as long as it is the same server.

    Its methods raise ServerFailed or CallRefused.
    """

    def begin(self) -> None:
        """Make the server ready to take weights."""
        ...

    def send(self, bucket: Bucket) -> None:
        """Bring a bucket to the server; returns when the server has it."""
        ...

    def end(self) -> None:
        """Bring what has to come last."""
        ...

    def close(self) -> None:
        """Let go of the server, which may be gone."""
        ...


class Transport(Protocol):
    """Brings buckets to servers: begin, then stage each bucket and send it on all links."""

    def begin(self) -> None:
        """Forget what was staged before."""
        ...

    def stage(self, bucket: Bucket) -> None:
        """Take a bucket, once for all servers."""
        ...

    def connect(self, api: ServerApi) -> Link:
        """Return the way to a server; nothing is asked of it yet."""
        ...

    def close(self) -> None:
        """Remove everything that was staged."""
        ...


def build_transport(config: SGLangConfig, device: torch.device) -> Transport:
    """Return the way of the weights that the settings name.

    device: of the trainer's tensors.
    """
    name = config.weight_transport
    if name == "auto":
        of_urls = "disk" if config.weight_folder else "broadcast"
        name = of_urls if config.urls else "tensor"
    if name == "tensor":
        return TensorTransport(config.tensor_parallel_size)
    if name == "broadcast":
        return BroadcastTransport(device, config.weight_timeout_s)
    return DiskTransport(Path(config.weight_folder) if config.weight_folder else None)
