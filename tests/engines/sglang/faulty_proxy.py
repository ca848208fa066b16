"""A real HTTP proxy in front of a real server, which spoils some of what passes through it."""

import contextlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["500", "garbage", "truncated", "cut", "silent", "hang", "port"]
PORT_LOST_S = 2.0


class FaultyProxy:
    """Passes everything on, but for faults in the course of the calls of one path.

    faults: {number of the call, from 1: what happens at it}. "500", "garbage" and "truncated"
    replace the server's answer, "cut" closes the connection without one, and "silent" never
    answers. "hang" answers nothing at all any more, until a question after the health has hung,
    too. "port" stops to listen for a while. path: whose calls count. always: what happens at every
    one of them.
    """

    def __init__(
        self,
        url: str,
        faults: Mapping[int, Fault],
        path: str = "/generate",
        always: Fault | None = None,
    ) -> None:
        self._server = urlsplit(url)
        self._path = path
        self._faults = dict(faults)
        self._always: Fault | None = always
        self.num_calls = 0
        self._lock = threading.Lock()
        self._is_hanging = False
        self._is_closed = threading.Event()
        self.happened: list[Fault] = []
        self.answered: Counter[str] = Counter()  # rid -> whole answers of the server passed on
        self._listen(0)
        self.port = self._listener.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop, and let go of the calls that hang."""
        self._is_closed.set()
        self._listener.shutdown()
        self._listener.server_close()

    def _listen(self, port: int) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                proxy.handle(self)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        self._listener = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def _lose_port(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        if not self._is_closed.wait(PORT_LOST_S):
            self._listen(self.port)

    def _fault_of(self, path: str) -> Fault | None:
        with self._lock:
            if self._is_hanging:
                self._is_hanging = path != "/health"
                return "hang"
            if path != self._path:
                return None
            self.num_calls += 1
            fault = self._always or self._faults.get(self.num_calls)
            if fault is not None:
                self.happened.append(fault)
            self._is_hanging = fault == "hang"
            return fault

    def handle(self, call: BaseHTTPRequestHandler) -> None:
        """Answer one call."""
        body = call.rfile.read(int(call.headers.get("Content-Length") or 0))
        fault = self._fault_of(call.path)
        if fault in ("hang", "silent"):
            self._is_closed.wait()
        elif fault == "port":
            threading.Thread(target=self._lose_port, daemon=True).start()
        if fault in ("hang", "silent", "port", "cut"):
            call.connection.close()
            call.close_connection = True
            return
        status, answer = self._ask(call, body)
        if fault == "500":
            status, answer = 500, b"Internal Server Error"
        elif fault == "garbage":
            answer = b"\x00\xff<html>"
        elif fault == "truncated":
            answer = json.dumps({"output_ids": json.loads(answer)["output_ids"]}).encode()
        elif call.path == "/generate" and status == 200:
            meta = json.loads(answer)["meta_info"]
            self.answered[meta["id"]] += meta["finish_reason"]["type"] != "abort"
        with contextlib.suppress(ConnectionError):  # a client may have given up
            call.send_response(status)
            call.send_header("Content-Length", str(len(answer)))
            call.end_headers()
            call.wfile.write(answer)

    def _ask(self, call: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(str(self._server.hostname), self._server.port or 80)
        try:
            connection.request(
                call.command, call.path, body or None, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
