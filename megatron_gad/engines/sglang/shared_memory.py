"""Weights by handle on the memory that holds them: shared memory on a host, CUDA IPC on a GPU."""

import base64
import io
import threading
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import torch.multiprocessing

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.transport import Transport
from megatron_gad.engines.sglang.versions import ServerApi

# Torch's strategy is one for the process, and buckets go to several servers at once.
_sharing = threading.Lock()


class TensorTransport(Transport):
    """One handle per bucket. A bucket's memory is never written again.

    A server may answer before its copies have ended. Then the memory waits, uncounted, until the
    server lets go of the handle: torch sees to that for both kinds of memory. A server that dies
    before never does, and on a GPU the bucket's memory is lost to the run.
    """

    def __init__(self, tensor_parallel_size: int) -> None:
        self._tensor_parallel_size = tensor_parallel_size

    def send(self, server: ServerApi, bucket: Bucket) -> None:
        """Let the server copy a bucket's tensors; every rank of it takes its own part."""
        # Receiving gives one count of a handle back, so that each rank needs a pickle of its own.
        ranks = range(self._tensor_parallel_size)
        server.begin_session()
        server.update_from_tensors([pickled(bucket) for _ in ranks])


def pickled(bucket: Bucket) -> str:
    """Return a handle on a bucket's memory and the places in it, pickled, in base64.

    The format is SGLang's "flattened_bucket"; of the metadata it reads these attributes.
    """
    layout = bucket.layout
    metadata = [
        SimpleNamespace(
            name=name,
            shape=tuple(shape),
            dtype=layout.dtype,
            start_idx=start,
            end_idx=end,
            numel=end - start,
        )
        for name, shape, start, end in zip(
            layout.names, layout.shapes, (0, *layout.ends), layout.ends, strict=False
        )
    ]
    # The default way passes file descriptors through a socket that a foreign process cannot use.
    with _sharing:
        strategy = torch.multiprocessing.get_sharing_strategy()
        torch.multiprocessing.set_sharing_strategy("file_system")
        try:
            buffer = io.BytesIO()
            ForkingPickler(buffer).dump({"flattened_tensor": bucket.flat, "metadata": metadata})
        finally:
            torch.multiprocessing.set_sharing_strategy(strategy)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
