"""How named tensors reach an SGLang server: gathered into buckets, sent from memory or as files."""

import base64
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Protocol

import psutil
import torch
import torch.multiprocessing
from safetensors.torch import save_file
from torch import Tensor

from megatron_gad.engines.sglang.versions import ServerApi

MEMORY_FILE_SYSTEM = Path("/dev/shm")
FOLDER_PREFIX = "megatron_gad_weights_"


@dataclass(frozen=True)
class Bucket:
    """Some named tensors in one piece of memory.

    named: (Hugging Face name, tensor); every tensor is a view of ``flat``.
    flat: [bytes] uint8.
    """

    named: tuple[tuple[str, Tensor], ...]
    flat: Tensor

    def on_host(self) -> "Bucket":
        """Return the same bucket in host memory; itself where it is there already."""
        if self.flat.device.type == "cpu":
            return self
        return make_bucket([(name, tensor.cpu()) for name, tensor in self.named])


def make_bucket(named_tensors: Sequence[tuple[str, Tensor]]) -> Bucket:
    """Copy tensors of one dtype into one new piece of memory."""
    sizes = [tensor.numel() * tensor.element_size() for _, tensor in named_tensors]
    flat = torch.empty(sum(sizes), dtype=torch.uint8, device=named_tensors[0][1].device)
    named = []
    for (name, tensor), piece in zip(named_tensors, flat.split(sizes), strict=True):
        view = piece.view(tensor.dtype).view(tensor.shape)
        view.copy_(tensor)
        named.append((name, view))
    return Bucket(tuple(named), flat)


@torch.no_grad()
def fill_buckets(
    named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, buffer_size: int
) -> Iterator[Bucket]:
    """Yield buckets of at most ``buffer_size`` bytes, or of one tensor that is larger itself.

    dtype: what the server computes in; everything is converted to it before it travels.
    """
    pending: list[tuple[str, Tensor]] = []
    num_bytes = 0
    for name, tensor in named_tensors:
        converted = tensor.detach().to(dtype)
        size = converted.numel() * converted.element_size()
        if pending and num_bytes + size > buffer_size:
            yield make_bucket(pending)
            pending, num_bytes = [], 0
        pending.append((name, converted))
        num_bytes += size
    if pending:
        yield make_bucket(pending)


class Transport(Protocol):
    """Brings buckets to servers, in the order: begin, stage each bucket, and per server load."""

    sends_buckets: bool  # whether ``send`` does something, so that it can overlap the gathering

    def begin(self) -> None:
        """Forget what was staged before."""
        ...

    def stage(self, bucket: Bucket) -> None:
        """Take a bucket, once for all servers."""
        ...

    def send(self, api: ServerApi, bucket: Bucket) -> None:
        """Bring a bucket to one server, between the begin and the end of its update."""
        ...

    def finish(self, api: ServerApi) -> None:
        """Bring to one server what has to come last."""
        ...

    def close(self) -> None:
        """Remove everything that was staged."""
        ...


class TensorTransport:
    """Shares the memory of every bucket with the server: by name on a host, by CUDA IPC on a GPU.

    The tensors of a bucket are views of one piece of memory, so only one handle travels for it. A
    bucket is never used again, because the server may answer before its copies have ended.
    """

    sends_buckets = True

    def __init__(self, tensor_parallel_size: int) -> None:
        self._tensor_parallel_size = tensor_parallel_size

    def begin(self) -> None:
        """Nothing is kept between two updates."""

    def stage(self, bucket: Bucket) -> None:
        """Nothing is needed before sending."""

    def send(self, api: ServerApi, bucket: Bucket) -> None:
        """Let the server copy a bucket's tensors; every rank of it takes its own part."""
        # Receiving gives one count of a handle back, so that each rank needs a pickle of its own.
        ranks = range(self._tensor_parallel_size)
        api.update_from_tensors([_pickled(bucket) for _ in ranks])

    def finish(self, api: ServerApi) -> None:
        """Nothing comes last."""

    def close(self) -> None:
        """Nothing is left."""


class DiskTransport:
    """Writes safetensors files to a folder, best on a memory file system, which the server reads.

    Works for every server that sees the folder, at any parallelism and on any device.
    """

    sends_buckets = False

    def __init__(self, folder: Path | None) -> None:
        """folder: where to write; by default on the machine's memory file system."""
        on_memory = MEMORY_FILE_SYSTEM if MEMORY_FILE_SYSTEM.is_dir() else tempfile.gettempdir()
        root = Path(folder or on_memory)
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        prefix = f"{FOLDER_PREFIX}{socket.gethostname()}_{os.getpid()}_"
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        self._num_files = 0

    def begin(self) -> None:
        """Remove the files of the last update."""
        for file in self._folder.iterdir():
            file.unlink()
        self._num_files = 0

    def stage(self, bucket: Bucket) -> None:
        """Write a bucket as a file."""
        name = f"model-{self._num_files:05d}.safetensors"
        tensors = {key: tensor.cpu() for key, tensor in bucket.named}
        save_file(tensors, self._folder / name, metadata={"format": "pt"})
        self._num_files += 1

    def send(self, api: ServerApi, bucket: Bucket) -> None:
        """Nothing: the server reads all files at once."""

    def finish(self, api: ServerApi) -> None:
        """Let the server read the files."""
        api.update_from_disk(self._folder)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Remove the folders of processes of this host that were killed before they could."""
    prefix = f"{FOLDER_PREFIX}{socket.gethostname()}_"
    for folder in root.glob(f"{prefix}*"):
        # The random end of the name may hold further underscores.
        process = folder.name.removeprefix(prefix).split("_")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _pickled(bucket: Bucket) -> str:
    """Return the named tensors as handles on their memory, pickled, in base64."""
    # The default way passes file descriptors through a socket that a foreign process cannot use.
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        buffer = io.BytesIO()
        ForkingPickler(buffer).dump(list(bucket.named))
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
