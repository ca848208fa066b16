"""Weights as safetensors files in a folder that the servers see."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil
from safetensors.torch import save_file

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.keeper import WEIGHTS_NAME
from megatron_gad.engines.sglang.versions import ServerApi

MEMORY_FILE_SYSTEM = Path("/dev/shm")


class DiskTransport:
    """Writes files to a folder, best on a memory file system, which the servers read.

    Works for every server that sees the folder, at any parallelism and on any device.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: where to write; by default on the machine's memory file system."""
        on_memory = MEMORY_FILE_SYSTEM if MEMORY_FILE_SYSTEM.is_dir() else tempfile.gettempdir()
        root = Path(folder or on_memory)
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        prefix = f"{WEIGHTS_NAME}{socket.gethostname()}_{os.getpid()}_"
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
        tensors = dict(bucket.on_host().named)
        save_file(tensors, self._folder / name, metadata={"format": "pt"})
        self._num_files += 1

    def connect(self, api: ServerApi) -> "DiskLink":
        """Return the way to a server that sees the folder."""
        return DiskLink(api, self._folder)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


class DiskLink:
    """Tells one server to read the files, all at once."""

    def __init__(self, api: ServerApi, folder: Path) -> None:
        self._api = api
        self._folder = folder

    def begin(self) -> None:
        """Files need no session."""

    def send(self, bucket: Bucket) -> None:
        """Nothing: the bucket is written, and the server reads all files at the end."""

    def end(self) -> None:
        """Let the server read the files."""
        self._api.update_from_disk(self._folder)

    def close(self) -> None:
        """Nothing is held."""


def _remove_abandoned(root: Path) -> None:
    """Remove the folders of processes of this host that were killed before they could."""
    prefix = f"{WEIGHTS_NAME}{socket.gethostname()}_"
    for folder in root.glob(f"{prefix}*"):
        # The random end of the name may hold further underscores.
        process = folder.name.removeprefix(prefix).split("_")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
