"""One SGLang server as the engine uses it: loaded, asked, put to sleep, and brought back."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.client import CallRefused, Json, ServerFailed, SGLangClient
from megatron_gad.engines.sglang.server import (
    HEALTH_TIMEOUT_S,
    POLL_S,
    ServerProcess,
    ServerStartError,
)
from megatron_gad.engines.sglang.transport import Transport
from megatron_gad.engines.sglang.versions import AFTER_WEIGHTS, BEFORE_WEIGHTS, ServerApi

logger = logging.getLogger(__name__)

STOP_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Limits:
    """How much of a server's failing is borne.

    start_timeout_s: until it is healthy. request_timeout_s: until it has answered any request.
    max_failures: in a row, after which the run ends.
    """

    start_timeout_s: float
    request_timeout_s: float
    max_failures: int


class Replica:
    """A server of ours, or one that somebody else runs at a URL.

    Every failure counts; after ``max_failures`` without a finished request in between, the run
    ends with the server's last words.
    """

    def __init__(
        self, start: Callable[[], ServerProcess] | str, transport: Transport, limits: Limits
    ) -> None:
        """start: starts a server of ours; or the URL of one that runs already."""
        self._start = start
        self._transport = transport
        self._limits = limits
        self._process: ServerProcess | None = None
        self._is_asleep = False
        self._is_closed = False
        self.num_failures = 0
        self.num_failed_loads = 0
        self.generation = 0  # grows with every recovery
        self.lock = threading.Lock()
        self.api: ServerApi
        self.client: SGLangClient
        self._connect(start if isinstance(start, str) else self._launch())

    @property
    def name(self) -> str:
        """Its address."""
        return self.client.url

    @property
    def process(self) -> ServerProcess | None:
        """The server's process where it is ours."""
        return self._process

    def wait_until_healthy(self) -> None:
        """Wait until it can generate. Raises ServerStartError."""
        if self._process is not None:
            self._process.wait_until_healthy(self._limits.start_timeout_s)
            return
        deadline = time.monotonic() + self._limits.start_timeout_s
        is_first = True
        while not self.client.is_healthy(HEALTH_TIMEOUT_S):
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"the SGLang server at {self.name} has not answered /health for "
                    f"{self._limits.start_timeout_s:g} s (sglang.start_timeout_s); start it, or "
                    "leave sglang.urls out so that the run starts servers itself",
                    timed_out=True,
                )
            if is_first:
                logger.warning("waiting for the SGLang server at %s", self.name)
            is_first = False
            time.sleep(POLL_S)

    def is_alive(self, health_timeout_s: float) -> bool:
        """Say whether it would work; a hung server would not."""
        if self._process is not None and not self._process.is_alive:
            return False
        return self.client.is_healthy(health_timeout_s)

    def wait_until_recovered(self) -> None:
        """Wait where a thread of a sampling that is over still brings it back."""
        with self.lock:
            pass

    def begin_load(self) -> None:
        """Make room for weights."""
        if self._is_asleep:
            self.api.resume_memory(BEFORE_WEIGHTS)

    def take(self, bucket: Bucket) -> None:
        """Load a bucket, between the begin and the end."""
        self._transport.send(self.api, bucket)

    def end_load(self, version: int) -> None:
        """Take what comes last; count as holding the version, awake, with empty caches."""
        self._transport.finish(self.api)
        self.api.end_session()
        if self._is_asleep:
            # The cache's room comes after the transfer's buffers have gone.
            self.api.resume_memory(AFTER_WEIGHTS)
            self._is_asleep = False
        self.api.finish_update(version)

    def load_all(self, buckets: Sequence[Bucket], version: int) -> None:
        """Take all weights again, as after a restart."""
        self.begin_load()
        for bucket in buckets:
            self.take(bucket)
        self.end_load(version)

    def sleep(self) -> None:
        """Give device memory back where the server can; it has to be idle."""
        self.api.release_memory()
        self._is_asleep = True

    def recover(
        self,
        error: Exception,
        load: Callable[["Replica"], None],
        request_ids: Sequence[str] = (),
    ) -> None:
        """Bring it back after a failure, with weights.

        load: gives it the current weights. request_ids: what it works on; a server that is not
        ours goes on with them, and takes weights and empties its caches when it is idle only.

        Raises RuntimeError, with the server's last words, when it failed once too often, or is not
        healthy in time.
        """
        while True:
            self._count_failure(error)
            try:
                self.restart()
                self.abort(request_ids)
                load(self)
            except ServerStartError as again:
                if again.timed_out:  # as long again would help no more, and nothing else goes on
                    raise RuntimeError(
                        f"the SGLang server at {self.name} failed and did not come back: {again}"
                    ) from error
                error = again
            except ServerFailed as again:
                error = again
            else:
                return

    def count_failed_load(self, error: Exception) -> None:
        """Count a swap at which it failed, however well it samples in between.

        Raises RuntimeError after too many in a row: each costs a start of the server.
        """
        self.num_failed_loads += 1
        if self.num_failed_loads > self._limits.max_failures:
            raise self._given_up(f"at {self.num_failed_loads} swaps of weights", error) from error

    def _count_failure(self, error: Exception) -> None:
        self._refuse_if_closed()
        self.num_failures += 1
        logger.warning("SGLang server failed (%d): %s", self.num_failures, error)
        if self.num_failures > self._limits.max_failures:
            raise self._given_up(f"{self.num_failures} times", error) from error

    def _given_up(self, failed: str, error: Exception) -> RuntimeError:
        log = f"; {self._process.last_log_lines()}" if self._process else ""
        return RuntimeError(
            f"the SGLang server at {self.name} failed {failed} in a row, last with: {error}{log}"
        )

    def restart(self) -> None:
        """Start the server anew, or wait for one that is not ours. Its weights are gone."""
        self._is_asleep = False
        if self._process is not None:
            self._process.stop()
        self._transport.leave(self.api)
        self._connect(self.name if self._process is None else self._launch())
        self.wait_until_healthy()

    def generate(self, body: Json) -> Json:
        """Sample one response."""
        return self.api.generate(body)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stop requests on a server that goes on living, as long as it answers."""
        if self._process is None:
            try:
                for request_id in request_ids:
                    self.api.abort(request_id)
            except (ServerFailed, CallRefused) as error:
                logger.warning("abort of %d requests: %s", len(request_ids), error)

    def kill(self) -> None:
        """End the server's process at once, where it is ours; its requests fail in any case."""
        if self._process is not None:
            self._process.stop()
        else:
            self.client.break_off()

    def close(self) -> None:
        """Let go of the server; end its process, where it is ours."""
        self._is_closed = True
        if self._process is not None:
            self._process.stop(STOP_PATIENCE_S)
        self._transport.leave(self.api)
        self.client.close()

    def _launch(self) -> str:
        assert not isinstance(self._start, str)
        self._process = self._start()
        try:
            self._refuse_if_closed()
        except RuntimeError:
            self._process.stop()
            raise
        return self._process.url

    def _refuse_if_closed(self) -> None:
        """A thread may bring it back while the engine is closed: nothing may be left running."""
        if self._is_closed:
            raise RuntimeError("the engine of this SGLang server was closed")

    def _connect(self, url: str) -> None:
        self.client = SGLangClient(url, self._limits.request_timeout_s)
        self.api = ServerApi(self.client)
