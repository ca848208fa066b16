"""The calls of SGLang that training needs, with the differences between its versions kept here.

Written against 0.5.16 and 0.5.23. The newer has weight sessions, outside of which it refuses
tensors; the older does not know them. A server is asked, never its version number.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from megatron_gad.engines.sglang.buckets import BucketLayout
from megatron_gad.engines.sglang.client import CallRefused, Json, ServerFailed, SGLangClient

# In the order in which memory has to come back: the weights arrive before the cache takes room.
# Graphs go only where SGLANG_MEMORY_SAVER_CUDA_GRAPH is set for the server; their tag is harmless.
BEFORE_WEIGHTS = ("weights",)
AFTER_WEIGHTS = ("kv_cache", "cuda_graph")
NOT_FOUND = 404
# One flat tensor and the places in it, instead of a tensor for each name.
FLAT_BUCKET = "flattened_bucket"
FLUSH_TIMEOUT_S = 60.0
FLUSH_POLL_S = 0.2


class ServerApi:
    """What training asks of one server. Methods raise ServerFailed or CallRefused."""

    def __init__(self, client: SGLangClient) -> None:
        self._client = client
        self._has_sessions = True  # until the server says otherwise
        self._is_session_open = False

    def local_address(self) -> str:
        """Return this machine's address as the server reaches it."""
        return self._client.local_address()

    def tensor_parallel_size(self) -> int:
        """Return the number of the server's ranks."""
        size = self._client.ask("/server_info", None).get("tp_size")
        if not isinstance(size, int):
            raise ServerFailed(f"{self._client.url}/server_info names no tp_size")
        return size

    def begin_session(self) -> None:
        """Open a session for tensors, if none is open and the server knows sessions."""
        if self._is_session_open or not self._has_sessions:
            return
        try:
            self._open_session()
        except CallRefused as refusal:
            if refusal.status != NOT_FOUND:
                # The session of an update that was broken off, perhaps by another run.
                self._post("/end_weight_update", {})
                self._open_session()
            else:
                self._has_sessions = False

    def _open_session(self) -> None:
        self._post("/begin_weight_update", {})
        self._is_session_open = True

    def update_from_tensors(self, pickled_per_rank: Sequence[str]) -> None:
        """Load a bucket, in a session.

        pickled_per_rank: for each tensor-parallel rank, in base64.
        """
        body = {
            "serialized_named_tensors": list(pickled_per_rank),
            "load_format": FLAT_BUCKET,
            "flush_cache": False,
        }
        self._post("/update_weights_from_tensor", body)

    def join_group(self, address: str, port: int, num_ranks: int, name: str, backend: str) -> None:
        """Join a process group whose rank 0 is ours; returns when it is complete.

        address, port: of the group's store.
        """
        body = {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": num_ranks,
            "group_name": name,
            "backend": backend,
        }
        self._post("/init_weights_update_group", body)

    def update_from_broadcast(self, layout: BucketLayout, group_name: str) -> None:
        """Load a bucket, in a session, that rank 0 of a group broadcasts as one flat tensor."""
        body = {
            "names": list(layout.names),
            "dtypes": [str(layout.dtype).removeprefix("torch.")] * len(layout.names),
            "shapes": [list(shape) for shape in layout.shapes],
            "group_name": group_name,
            "load_format": FLAT_BUCKET,
            "flush_cache": False,
        }
        self._post("/update_weights_from_distributed", body)

    def leave_group(self, name: str) -> None:
        """Leave a process group."""
        self._client.post("/destroy_weights_update_group", {"group_name": name}, timeout_s=5)

    def end_session(self) -> None:
        """Close the session of an update, if one is open."""
        if self._is_session_open:
            self._post("/end_weight_update", {})
            self._is_session_open = False

    def update_from_disk(self, folder: Path) -> None:
        """Load all weights from the safetensors files of a folder that the server sees."""
        body = {"model_path": str(folder), "load_format": "auto", "flush_cache": False}
        self._post("/update_weights_from_disk", body)

    def finish_update(self, version: int) -> None:
        """Forget what older weights computed, then count as holding this version."""
        self._flush_cache()
        self._post(
            "/update_weight_version", {"new_version": str(version), "abort_all_requests": False}
        )

    def _flush_cache(self) -> None:
        """Empty the cache, which a server refuses until requests that were aborted are gone."""
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while True:
            try:
                return self._post("/flush_cache", {})
            except CallRefused as refusal:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"does not get idle: {refusal}") from refusal
                time.sleep(FLUSH_POLL_S)

    def release_memory(self) -> None:
        """Give device memory back once the server is idle; its weights are lost.

        It would end, asked while it works, and refuses to empty its cache before it is idle.
        """
        self._flush_cache()
        self._post("/release_memory_occupation", {"tags": [*BEFORE_WEIGHTS, *AFTER_WEIGHTS]})

    def resume_memory(self, tags: Sequence[str]) -> None:
        """Take device memory again for some of what was released."""
        self._post("/resume_memory_occupation", {"tags": list(tags)})

    def checksums(self) -> list[dict[str, str]] | None:
        """Return each tensor-parallel rank's {parameter: checksum}; None if it has none to give."""
        body = {"action": "checksum"}
        try:
            answer = self._client.ask("/weights_checker", body)
        except CallRefused:
            return None
        ranks = answer.get("ranks")
        if not ranks:
            return None
        try:
            ranks = sorted(ranks, key=lambda rank: _tp_rank(rank["parallelism_info"]))
            return [dict(rank["checksums"]) for rank in ranks]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServerFailed(f"broken checksums ({error!r}): {str(answer)[:300]}") from error

    def generate(self, body: Json) -> Json:
        """Sample one response."""
        return self._client.ask("/generate", body)

    def abort(self, request_id: str) -> None:
        """Stop a request that is running."""
        self._client.post("/abort_request", {"rid": request_id}, timeout_s=5)

    def _post(self, path: str, body: Json) -> None:
        self._client.post(path, body)


def _tp_rank(parallelism_info: Json | list[Json]) -> int:
    """Return a rank's number; newer versions list the roles of a rank."""
    first = parallelism_info[0] if isinstance(parallelism_info, list) else parallelism_info
    return first["tp_rank"]
