"""The calls of SGLang that training needs, with the differences between its versions kept here.

Written against 0.5.16 and 0.5.23. The newer has weight sessions, outside of which it refuses
tensors; the older does not know them. A server is asked, never its version number.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_gad.engines.sglang.client import CallRefused, Json, SGLangClient

# In the order in which memory has to come back: the weights arrive before the cache takes room.
BEFORE_WEIGHTS = ("weights",)
AFTER_WEIGHTS = ("kv_cache", "cuda_graph")
NOT_FOUND = 404


class ServerApi:
    """What training asks of one server. Methods raise ServerFailed or CallRefused."""

    def __init__(self, client: SGLangClient) -> None:
        self._client = client
        self._has_sessions: bool | None = None
        self._is_session_open = False

    @property
    def has_weight_sessions(self) -> bool | None:
        """Whether the server knows weight sessions; None before the first update."""
        return self._has_sessions

    def begin_weight_update(self) -> None:
        """Open a session for tensors, where the server knows sessions."""
        self.end_weight_update()  # of an update that was broken off
        if self._has_sessions is not False:
            try:
                self._client.post("/begin_weight_update", {})
                self._has_sessions = self._is_session_open = True
            except CallRefused as refusal:
                if refusal.status != NOT_FOUND:
                    raise
                self._has_sessions = False

    def update_from_tensors(self, pickled_per_rank: Sequence[str]) -> None:
        """Load some tensors. pickled_per_rank: for each tensor-parallel rank, in base64."""
        body = {"serialized_named_tensors": list(pickled_per_rank), "flush_cache": False}
        self._client.post("/update_weights_from_tensor", body)

    def end_weight_update(self) -> None:
        """Close the session, if one is open."""
        if self._is_session_open:
            self._client.post("/end_weight_update", {})
            self._is_session_open = False

    def update_from_disk(self, folder: Path) -> None:
        """Load all weights from the safetensors files of a folder that the server sees."""
        body = {"model_path": str(folder), "load_format": "auto", "flush_cache": False}
        self._client.post("/update_weights_from_disk", body)

    def finish_update(self, version: int) -> None:
        """Forget what older weights computed, then count as holding this version."""
        self._client.post("/flush_cache", {})
        self._client.post(
            "/update_weight_version", {"new_version": str(version), "abort_all_requests": False}
        )

    def release_memory(self) -> None:
        """Give device memory back; the server has to be idle, and its weights are lost."""
        self._client.post("/release_memory_occupation", {"tags": [*BEFORE_WEIGHTS, *AFTER_WEIGHTS]})

    def resume_memory(self, tags: Sequence[str]) -> None:
        """Take device memory again for some of what was released."""
        self._client.post("/resume_memory_occupation", {"tags": list(tags)})

    def checksums(self) -> list[dict[str, str]] | None:
        """Return each tensor-parallel rank's {parameter: checksum}; None if it has none to give."""
        try:
            answer = self._client.ask("/weights_checker", {"action": "checksum"})
        except CallRefused:
            return None
        ranks = answer.get("ranks")
        if not ranks:
            return None
        ranks = sorted(ranks, key=lambda rank: _tp_rank(rank["parallelism_info"]))
        return [rank["checksums"] for rank in ranks]

    def generate(self, body: Json) -> Json:
        """Sample one response."""
        return self._client.ask("/generate", body)

    def abort(self, request_id: str) -> None:
        """Stop a request that is running."""
        self._client.post("/abort_request", {"rid": request_id}, timeout_s=5)


def _tp_rank(parallelism_info: Json | list[Json]) -> int:
    """Return a rank's number; newer versions list the roles of a rank."""
    first = parallelism_info[0] if isinstance(parallelism_info, list) else parallelism_info
    return first["tp_rank"]
