"""What a server is asked in an update, where it knows weight sessions and where it does not."""

import pytest

from megatron_gad.engines.sglang.client import CallRefused, SGLangClient
from megatron_gad.engines.sglang.versions import ServerApi
from tests.recording_server import RecordingServer, recording_server

BEGIN, END, UPDATE = "/begin_weight_update", "/end_weight_update", "/update_weights_from_tensor"


def update_twice(server: RecordingServer) -> None:
    api = ServerApi(SGLangClient(server.url, timeout_s=10))
    for _ in range(2):
        api.begin_session()
        api.update_from_tensors(["x"])
        api.begin_session()  # as for every bucket
        api.update_from_tensors(["y"])
        api.end_session()


def test_a_server_with_sessions_gets_tensors_inside_of_one():
    with recording_server() as server:
        update_twice(server)
        assert server.paths == [BEGIN, UPDATE, UPDATE, END] * 2


def test_a_server_without_sessions_gets_the_tensors_alone():
    with recording_server() as server:
        server.answers = {path: (404, {"detail": "Not Found"}) for path in (BEGIN, END)}
        update_twice(server)
        assert server.paths == [BEGIN, *[UPDATE] * 4]


def test_a_session_that_a_broken_update_left_open_is_closed_first():
    with recording_server() as server:
        api = ServerApi(SGLangClient(server.url, timeout_s=10))
        server.answers[BEGIN] = (400, {"message": "a weight-update session is already open"})
        with pytest.raises(CallRefused, match="already open"):
            api.begin_session()
        assert server.paths == [BEGIN, END, BEGIN]
