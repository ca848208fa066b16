"""The quickstart's teacher: a small OpenAI-compatible chat server on this machine.

It answers robot-turns prompts and nothing else. Text crosses, weights and probabilities do not, as
with any black-box teacher. Tests make it fail on purpose.
"""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.quickstart.robot_turns import count_words, teacher_answer

MODEL = "robot-turns-teacher"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose; a request is counted when it arrives.

    fail_every: every such request gets fail_status instead of an answer; 0: none.
    retry_after_s: what such a reply asks the client to wait; 0: nothing is said.
    drop_every: every such request loses its connection; 0: none.
    empty_every: every such request gets an answer without text; 0: none.
    delay_s: wait before each reply.
    """

    fail_every: int = 0
    fail_status: int = 429
    retry_after_s: float = 0.0
    drop_every: int = 0
    empty_every: int = 0
    delay_s: float = 0.0


class TeacherServer(ThreadingHTTPServer):
    """Listens on a free loopback port; a thread per connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, seed: int, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), TeacherHandler)
        self.seed = seed
        self.faults = faults
        self.numbers = itertools.count(1)  # next() of a counter is atomic between threads

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about clients that went away; anything else is worth its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def base_url(self) -> str:
        """Where a client finds the API."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class TeacherHandler(BaseHTTPRequestHandler):
    """GET /v1/models and POST /v1/chat/completions over kept-alive connections."""

    server: TeacherServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet

    def do_GET(self) -> None:
        """List the one model."""
        if self.path == "/v1/models":
            self._reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._refuse(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        """Answer the last message, or fail as told."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"no such path: {self.path}")
            return
        faults, number = self.server.faults, next(self.server.numbers)
        time.sleep(faults.delay_s)
        if _is_due(faults.drop_every, number):
            self.close_connection = True
        elif _is_due(faults.fail_every, number):
            self._refuse(faults.fail_status, f"request {number} fails on purpose")
        else:
            self._answer(body, is_empty=_is_due(faults.empty_every, number))

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the collector reports."""

    def _answer(self, body: bytes, is_empty: bool) -> None:
        try:
            prompt = json.loads(body)["messages"][-1]["content"]
            text = "" if is_empty else teacher_answer(prompt, self.server.seed)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._refuse(400, str(error))
            return
        self._reply(200, _completion(prompt, text))

    def _refuse(self, status: int, message: str) -> None:
        self._reply(status, {"error": {"message": message, "type": "teacher_server"}})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        encoded = json.dumps(content).encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        if status != 200 and self.server.faults.retry_after_s:
            self.send_header("Retry-After", str(self.server.faults.retry_after_s))
        self.end_headers()
        self.wfile.write(encoded)


@contextmanager
def serve(seed: int = 0, faults: Faults | None = None) -> Iterator[str]:
    """Run the teacher in a process of its own and yield its base URL; it ends with the block.

    The process also ends by itself when this one does, however that happens.
    """
    settings = json.dumps({"seed": seed, "faults": asdict(faults or Faults())})
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.quickstart.teacher_server", settings],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process, which then stops the other
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        base_url = process.stdout.readline().strip()
        if not base_url:
            raise RuntimeError(f"the teacher server did not start; exit status {process.wait()}")
        yield base_url
    finally:
        process.stdin.close()
        process.terminate()
        process.wait()
        process.stdout.close()


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def _completion(prompt: str, text: str) -> dict[str, Any]:
    """Return a chat completion as the API defines it; tokens are counted as words."""
    num_prompt, num_text = count_words(prompt), count_words(text)
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_text,
            "total_tokens": num_prompt + num_text,
        },
    }


def main(settings: str) -> None:
    """Serve until standard input closes; print the base URL first."""
    loaded = json.loads(settings)
    with TeacherServer(loaded["seed"], Faults(**loaded["faults"])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
