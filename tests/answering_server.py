"""A real HTTP server for tests that answers as an SGLang server does, without a model."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.loopback_server import Request, loopback_server

Json = dict[str, Any]


@dataclass
class AnsweringServer:
    """What a server was asked to generate, and how it goes about it.

    version: of the weights that it was told it has.
    before: called with each request to generate, before it is answered; False: hang up instead.
    served: the requests that were answered. aborted: ids of requests that it was told to stop.
    """

    url: str = ""
    version: str = ""
    before: Callable[[Json], bool] = lambda body: True
    takes_versions: bool = True
    served: list[Json] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_until_served(self, count: int) -> bool:
        """Wait until so many requests were answered; False if they were not in a minute."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.served) >= count, timeout=60)

    def answer(self, path: str, body: Json) -> tuple[int, Json]:
        """Return status and object."""
        if path == "/weights_checker":
            return 404, {}
        if path == "/update_weight_version" and self.takes_versions:
            self.version = body["new_version"]
        if path == "/abort_request":
            self.aborted.append(body["rid"])
        if path != "/generate":
            return 200, {}
        with self.changed:
            self.served.append(body)
            self.changed.notify_all()
        ids = sampled_ids(body["sampling_params"]["sampling_seed"])
        meta = {
            "finish_reason": {"type": "length"},
            "output_token_logprobs": [[-0.5, token, None] for token in ids],
            "weight_version": self.version,
        }
        return 200, {"output_ids": ids, "meta_info": meta}


def sampled_ids(seed: int) -> list[int]:
    """Return what every server samples with a seed."""
    return [5 + seed % 11, 5 + seed // 11 % 11]


@contextmanager
def answering_server(**settings: Any) -> Iterator[AnsweringServer]:
    """Run a server on this machine."""
    served = AnsweringServer(**settings)

    def answer(request: Request) -> tuple[int, Json] | None:
        body = {} if request.body is None else request.body
        if request.path == "/generate" and not served.before(body):
            return None
        return served.answer(request.path, body)

    with loopback_server(answer) as served.url:
        yield served
