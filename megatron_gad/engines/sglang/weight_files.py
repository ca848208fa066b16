"""Weights as safetensors files in a folder that the servers see."""

import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import psutil
from safetensors.torch import save_file

from megatron_gad.engines.sglang.buckets import Bucket, Place
from megatron_gad.engines.sglang.keeper import WEIGHTS_NAME
from megatron_gad.engines.sglang.transport import Transport
from megatron_gad.engines.sglang.versions import ServerApi

MEMORY_FILE_SYSTEM = Path("/dev/shm")


class DiskTransport(Transport):
    """Writes files to a folder, best on a memory file system, which the servers read.

    Works for every server that sees the folder, at any parallelism and on any device. The files of
    an update stay until the next.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: where to write; by default on the machine's memory file system."""
        on_memory = MEMORY_FILE_SYSTEM if MEMORY_FILE_SYSTEM.is_dir() else tempfile.gettempdir()
        root = Path(folder or on_memory)
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        prefix = f"{WEIGHTS_NAME}{socket.gethostname()}_{os.getpid()}_"
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        self._written = Place(-1, -1)
        self._writing = threading.Lock()

    def send(self, server: ServerApi, bucket: Bucket) -> None:
        """Write a bucket as a file, unless that was done for another server."""
        with self._writing:
            if bucket.place <= self._written:
                return
            if bucket.place.update > self._written.update:
                for file in self._folder.iterdir():
                    file.unlink()
            file = self._folder / f"model-{bucket.place.number:05d}.safetensors"
            save_file(dict(bucket.on_host().named), file, metadata={"format": "pt"})
            self._written = bucket.place

    def finish(self, server: ServerApi) -> None:
        """Let the server read the files."""
        server.update_from_disk(self._folder)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Remove the folders of processes of this host that were killed before they could."""
    prefix = f"{WEIGHTS_NAME}{socket.gethostname()}_"
    for folder in root.glob(f"{prefix}*"):
        # The random end of the name may hold further underscores.
        process = folder.name.removeprefix(prefix).split("_")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
