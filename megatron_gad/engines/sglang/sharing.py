"""Places on servers that data ranks lend each other, so that all ranks take from one queue.

A place is room for one request on a server. A rank that has no request for a place of its servers
lends it, through a store that all ranks reach; a rank whose requests wait borrows it, sends them to
the server itself, and lends the place on. Requests and answers travel between the rank that needs
the response and the server alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch.distributed import PrefixStore, Store

from megatron_gad.engines.sglang.client import CallRefused, Json, ServerFailed, SGLangClient
from megatron_gad.engines.sglang.versions import ServerApi

# Places that a rank asks for at a time; each may be a bundle.
MOST_ASKED = 8


@dataclass(frozen=True)
class Sharing:
    """The ranks whose servers have one queue: a store for them alone, and how many they are."""

    store: Store
    num_ranks: int


class Places:
    """The places that are lent in one sampling, first come, first served."""

    def __init__(self, sharing: Sharing, name: str) -> None:
        """name: of the sampling, the same on all ranks."""
        self._store = PrefixStore(name, sharing.store)
        self._num_ranks = sharing.num_ranks
        self._asked: list[int] = []

    def lend(self, url: str, count: int = 1) -> None:
        """Offer places on a server."""
        if count:
            number = self._store.add("lent", 1) - 1
            self._store.set(f"place/{number}", f"{count} {url}")

    def borrow(self, num_waiting: int) -> Iterator[tuple[str, int]]:
        """Ask for places for requests that wait, and yield those that have come: URL and count."""
        missing = min(MOST_ASKED, num_waiting) - len(self._asked)
        if missing > 0:
            end = self._store.add("asked", missing)
            self._asked += range(end - missing, end)
        for number in tuple(self._asked):
            key = f"place/{number}"
            if self._store.check([key]):
                count, url = self._store.get(key).decode().split(" ", 1)
                self._store.delete_key(key)
                self._asked.remove(number)
                yield url, int(count)

    def withdraw(self, url: str) -> None:
        """Let all ranks leave a server that has failed."""
        self._store.set(f"withdrawn/{url}", "")

    def is_withdrawn(self, url: str) -> bool:
        """Say whether the owner of a server has asked all ranks to leave it."""
        return self._store.check([f"withdrawn/{url}"])

    def finish(self) -> None:
        """Tell that this rank has all its answers; called once."""
        self._store.add("finished", 1)

    def have_all_finished(self) -> bool:
        """Say whether every rank has all its answers."""
        return self._store.add("finished", 0) >= self._num_ranks

    def fail(self, reason: str) -> None:
        """Tell all ranks that this one gives up."""
        self._store.set("failed", reason)

    def failure(self) -> str:
        """Return why another rank gave up; empty if none did."""
        return self._store.get("failed").decode() if self._store.check(["failed"]) else ""


@dataclass(frozen=True)
class Borrowing:
    """The places of a sampling, and the patience with servers of other ranks."""

    places: Places
    request_timeout_s: float

    def guest(self, url: str) -> "Guest":
        """Return the server at a URL."""
        return Guest(url, self.request_timeout_s)

    def tell(self, error: Exception) -> None:
        """Tell all ranks that this one gives up, if the store is still there."""
        with contextlib.suppress(RuntimeError):
            self.places.fail(str(error))


class Guest:
    """A server that another rank owns: asked and told to stop, never started or loaded."""

    def __init__(self, url: str, request_timeout_s: float) -> None:
        self.name = url
        self._client = SGLangClient(url, request_timeout_s)
        self._api = ServerApi(self._client)

    def generate(self, body: Json) -> Json:
        """Sample one response."""
        return self._api.generate(body)

    def leave(self, request_ids: list[str]) -> None:
        """Stop our requests and hang up; later ones fail at once."""
        try:
            for request_id in request_ids:
                self._api.abort(request_id)
        except (ServerFailed, CallRefused):
            pass  # it is gone, or its owner starts it again
        self._client.close()
