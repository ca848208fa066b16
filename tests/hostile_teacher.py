"""A chat endpoint on this machine that sends whatever bytes a test wants, over real HTTP."""

import json
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

MODEL = "hostile-teacher"


@dataclass(frozen=True)
class Reply:
    """What the server sends.

    raw: status line, headers and body.
    is_cut: the connection ends after them, though the headers may promise more.
    pause_s: wait before each byte.
    """

    raw: bytes
    is_cut: bool = False
    pause_s: float = 0.0


# The body of a request, and which attempt at its last message it is, from 1 -> what is sent.
Answerer = Callable[[dict[str, Any], int], Reply]


@dataclass
class HostileTeacher:
    """What a server was asked.

    bodies: of all requests, in order of arrival.
    keys: the Authorization headers that came with them.
    """

    base_url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def asked(self) -> Counter[str]:
        """Return last message -> how often it came."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)


def http(status: int, body: bytes | str, *headers: str) -> bytes:
    """Return a reply with a length."""
    encoded = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(encoded)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + encoded


def completion(message: Any, **fields: Any) -> dict[str, Any]:
    """Return a chat completion; message: the answer's text, or the whole message."""
    whole = {"role": "assistant", "content": message} if isinstance(message, str) else message
    return {
        "id": "reply-1",
        "object": "chat.completion",
        "model": f"{MODEL}-2",
        "choices": [{"index": 0, "message": whole, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    } | fields


def ok(content: Any) -> Reply:
    """Return a reply with status 200 and a JSON body."""
    return Reply(http(200, json.dumps(content), "Content-Type: application/json"))


def stream(*events: Any, done: bool = True) -> Reply:
    """Return a reply with status 200 and a stream of events."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    body = ": a comment\n\n" + "".join(lines) + "data: [DONE]\n\n" * done
    return Reply(http(200, body, "Content-Type: text/event-stream"))


def delta(finish_reason: str | None = None, **message: Any) -> dict[str, Any]:
    """Return one event of a streamed answer."""
    choice = {"index": 0, "delta": message, "finish_reason": finish_reason}
    return {"id": "reply-1", "model": f"{MODEL}-2", "choices": [choice]}


@contextmanager
def hostile_teacher(answer: Answerer) -> Iterator[HostileTeacher]:
    """Run a server in threads of this process."""
    seen = HostileTeacher("")
    attempts: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                while self._answer_one():
                    pass

        def _answer_one(self) -> bool:
            headers: dict[str, str] = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if not headers:
                return False
            sent = self.rfile.read(length := int(headers["content-length"]))
            if len(sent) < length:  # the client was killed
                return False
            body = json.loads(sent)
            text = json.dumps(body["messages"])
            with lock:
                attempts[text] += 1
                seen.bodies.append(body)
                seen.keys.append(headers["authorization"])
            reply = answer(body, attempts[text])
            self._send(reply)
            return not reply.is_cut

        def _send(self, reply: Reply) -> None:
            if not reply.pause_s:
                self.wfile.write(reply.raw)
                return
            for byte in reply.raw:
                time.sleep(reply.pause_s)
                self.wfile.write(bytes([byte]))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False  # a handler may still be sending slowly
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        seen.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield seen
        server.shutdown()
