"""A server on this machine that answers requests as a test says."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """What was asked. body: the JSON of the request, None if it has no body."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@contextmanager
def loopback_server(answer: Callable[[Request], tuple[int, Any] | None]) -> Iterator[str]:
    """Run a server and give its URL.

    answer: returns status and JSON, or None to hang up without an answer; called by many threads.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(text) if text else None
            answered = answer(Request(self.command, self.path, dict(self.headers.items()), body))
            if answered is None:
                self.close_connection = True
                return
            self.send_response(answered[0])
            self.end_headers()
            self.wfile.write(json.dumps(answered[1]).encode())

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
