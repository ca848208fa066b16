"""Files of a checkpoint that a thread writes from copies in host memory, while the run goes on.

Megatron's own way starts processes, which live on if the run is killed and write into what the
next start makes of the folder. A thread ends with its run.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_gad.manifest import Written, look_at
from megatron_gad.training.offload import to_host

# (path, name in the checkpoint's folder, (objects, tensors)): what goes into one file.
Bucket = tuple[str, str, tuple[list[Any], list[tuple[Any, torch.Tensor]]]]


class BackgroundWrite:
    """What a rank writes of one checkpoint: copied when it is added, written after ``start``.

    host_bytes: of the copies.
    """

    def __init__(self) -> None:
        self.host_bytes = 0
        self._requests: list[AsyncRequest] = []
        self._copies: list[list[Bucket]] = []
        self._written: dict[Path, Written] = {}
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)

    def add(self, request: AsyncRequest) -> None:
        """Copy what Megatron planned to write; from here on the models may change."""
        self._requests.append(request)
        buckets: list[Bucket] = request.async_fn_args[1] if request.async_fn is not None else []
        self._copies.append([_copied(bucket) for bucket in buckets])
        self.host_bytes += sum(each.nbytes for bucket in buckets for _, each in bucket[2][1])

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def is_done(self) -> bool:
        """Return whether this rank's files are written, or failed to be."""
        return not self._thread.is_alive()

    def finish(self) -> Mapping[Path, Written]:
        """Wait for all ranks' files and write the lists of their tensors. All ranks call it.

        Returns this rank's files. Raises what a rank failed with, on all of them.
        """
        self._thread.join()
        for request in self._requests:
            finalize: Callable[[], None]
            for finalize in request.finalize_fns:
                finalize()
        return self._written

    def _write(self) -> None:
        for request, buckets in zip(self._requests, self._copies, strict=True):
            if request.async_fn is None:
                continue
            outcome: Any = {}
            for index, bucket in enumerate(buckets):
                found = _write_bucket(bucket, request.async_fn.args[0])
                if isinstance(found, Exception):
                    outcome = found
                    break
                outcome[index] = found
                file = Path(bucket[0])
                self._written[file] = look_at(file.parent, [file.name])[file.name]
            # Where Megatron looks for it when it writes the list of all tensors.
            request.async_fn_args[2].put(outcome)
            buckets.clear()


def _copied(bucket: Bucket) -> Bucket:
    path, name, (objects, tensors) = bucket
    return path, name, (objects, [(item, to_host(tensor)) for item, tensor in tensors])


def _write_bucket(bucket: Bucket, transforms: list[Any]) -> Any:
    """Write one file to the disk; returns where everything is in it, or the error that it met."""
    results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    counts: queue.Queue[int] = queue.Queue()
    counts.put(0)
    write: Any = FileSystemWriterAsync.write_preloaded_data
    write(transforms, 0, bucket, results, counts, True)
    return results.get()[1]
