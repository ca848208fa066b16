"""A real HTTP server for tests, which writes down what it is asked and answers as it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.loopback_server import Request, loopback_server


@dataclass
class RecordingServer:
    """What a server was asked, in order, and its answers that are not 200 with ``{}``.

    calls: (method, path, body). headers: of each call. answers: {path: (status, object)}.
    """

    url: str
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [path for _, path, _ in self.calls]


@contextmanager
def recording_server() -> Iterator[RecordingServer]:
    """Run a server on this machine."""
    recorded = RecordingServer("")

    def answer(request: Request) -> tuple[int, Any]:
        recorded.calls.append((request.method, request.path, request.body))
        recorded.headers.append(dict(request.headers))
        return recorded.answers.get(request.path, (200, {}))

    with loopback_server(answer) as recorded.url:
        yield recorded
