"""Calls that end before their answer: what the server sees of them."""

import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from megatron_gad.engines.sglang.client import ServerFailed, SGLangClient


def requests_of(listener: socket.socket, received: threading.Event, ended: Future[bytes]) -> None:
    """Take one request, never answer it, and tell what comes behind it: nothing, at its end."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        received.set()
        ended.set_result(connection.recv(65536))


def test_a_closed_client_hangs_up_so_that_no_server_works_for_nobody() -> None:
    received, ended = threading.Event(), Future[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        client = SGLangClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=60)
        pool.submit(requests_of, listener, received, ended)
        call = pool.submit(client.ask, "/generate", None)
        assert received.wait(timeout=30)
        client.close()
        assert ended.result(timeout=30) == b""
        with pytest.raises(ServerFailed, match="/generate"):
            call.result(timeout=30)
        # A thread that comes late, after the server was told to stop its request, sends nothing.
        with pytest.raises(ServerFailed, match="the client was closed"):
            client.ask("/generate", {"rid": "late"})
        late, _ = listener.accept()
        with late:
            assert late.recv(65536) == b""
