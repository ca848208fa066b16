"""What every way of bringing weights to SGLang servers offers."""

from abc import ABC, abstractmethod

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.versions import ServerApi


class Transport(ABC):
    """Brings buckets of weights to servers, to several at once.

    Its methods raise ServerFailed or CallRefused.
    """

    @abstractmethod
    def send(self, server: ServerApi, bucket: Bucket) -> None:
        """Bring a bucket to a server; returns when its memory is no longer needed."""

    def finish(self, server: ServerApi) -> None:
        """Bring what has to come last, after all buckets."""
        return

    def leave(self, server: ServerApi) -> None:
        """Let go of a server, which may be gone."""
        return

    def close(self) -> None:
        """Remove what was written."""
        return
