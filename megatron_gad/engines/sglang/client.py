"""HTTP calls to one SGLang server, with the two ways in which a call can fail kept apart."""

import contextlib
import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from megatron_gad.environment import SERVER_KEY, secret

Json = dict[str, Any]


class ServerFailed(RuntimeError):
    """The server did not answer as a working server does; the same call may succeed elsewhere."""


class CallRefused(RuntimeError):
    """The server works and does not accept the call; repeating it changes nothing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SGLangClient:
    """Makes one connection per call, so that calls from many threads need no care."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """url: http://host:port. timeout_s: the longest wait for an answer."""
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"server URL = {url!r} is not usable; give http://host:port")
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s
        key = secret(SERVER_KEY)
        self._headers = {"Content-Type": "application/json"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def post(self, path: str, body: Json, timeout_s: float | None = None) -> None:
        """Send JSON, and wait for the answer that it was done.

        Raises CallRefused for an answer 4xx, and ServerFailed for all other failures: no
        connection, no answer in time, 5xx.
        """
        self._call("POST", path, json.dumps(body).encode(), timeout_s)

    def ask(self, path: str, body: Json | None, timeout_s: float | None = None) -> Json:
        """Send JSON, or with None only ask, and return the object that is the answer.

        Raises as ``post``, and ServerFailed for an answer that is no JSON object.
        """
        if body is None:
            text = self._call("GET", path, None, timeout_s)
        else:
            text = self._call("POST", path, json.dumps(body).encode(), timeout_s)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerFailed(f"{self.url}{path} answers no JSON object: {_shown(text)}")
        return answer

    def local_address(self) -> str:
        """Return the address of this machine on the way to the server; nothing is sent."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((self._host, self._port))
                return probe.getsockname()[0]
        except OSError as error:
            raise ServerFailed(f"{self.url}: {error}") from error

    def is_healthy(self, timeout_s: float) -> bool:
        """Say whether the server reports within the time that it can generate."""
        try:
            self._call("GET", "/health", None, timeout_s)
        except (ServerFailed, CallRefused):
            return False
        return True

    def break_off(self) -> None:
        """End the calls that are waiting for an answer: they raise ServerFailed.

        A server that sees the connection gone stops the request, even one that came after its
        abort.
        """
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break off all calls, also those that have yet to be sent."""
        with self._lock:
            self._is_closed = True
        self.break_off()

    def _call(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> bytes:
        connection = http.client.HTTPConnection(
            self._host, self._port, timeout=timeout_s or self._timeout_s
        )
        try:
            connection.connect()
            with self._lock:
                if self._is_closed:
                    raise ServerFailed(f"{self.url}{path}: the client was closed")
                self._open.add(connection)
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if 400 <= response.status < 500:
            raise CallRefused(
                response.status, f"{self.url}{path} answers {response.status}: {_shown(text)}"
            )
        if response.status != 200:
            raise ServerFailed(f"{self.url}{path} answers {response.status}: {_shown(text)}")
        return text


def _shown(text: bytes) -> str:
    return text[:500].decode(errors="replace")
