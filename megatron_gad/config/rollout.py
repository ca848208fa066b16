"""How responses are sampled, and the servers that may do it."""

from dataclasses import dataclass, field
from typing import Literal

WeightTransport = Literal["auto", "tensor", "broadcast", "disk"]
# Nats between engine and trainer on a sampled token beyond which more than the rounding of bf16 is
# at work; in fp32 the first bound of a run. Of 1,000 tokens of SmolLM2-135M, which has 30 layers,
# the worst is off by 0.3 to 0.8 in bf16, and by 2e-5 in fp32.
BF16_GAP_ALARM, FP32_GAP_BOUND = 2.0, 1e-3
# Rows that the embedded engine decodes at a time, which bounds the memory of their logits.
EMBEDDED_ROWS = 512
# Tokens of one block of its keys and values.
EMBEDDED_BLOCK = 64
ArgumentValue = bool | int | float | str | list[bool | int | float | str]


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled in training.

    Attributes:
        engine: which engine samples.
        temperature: also divides the student's logits in the policy loss, so that it is on-policy.
        max_total_tokens: tokens whose keys and values the embedded engine holds at a time.
        logprob_gap_bound: stop the run when engine and trainer differ by more, in nats, on a
            sampled token; None: 1e-3 in fp32, in bf16 a bound on the mean over tokens instead, none
            in FP8; 0: never.
        record: write every rollout to rollouts/ in the run directory.
        replay: run directory of a run that recorded; engine "replay" gives its rollouts again.
    """

    engine: Literal["embedded", "sglang", "replay"] = "embedded"
    temperature: float = 0.8
    max_total_tokens: int = 262_144
    logprob_gap_bound: float | None = None
    record: bool = False
    replay: str = ""


@dataclass(frozen=True)
class SGLangConfig:
    """The servers behind rollout.engine = "sglang".

    Attributes:
        urls: servers that run already, shared out between the data ranks; without any, each
            model-parallel group starts its own.
        python: interpreter of the environment that has SGLang; by default the one of the run.
        num_servers: servers that a model-parallel group starts, on GPUs from its first rank's on;
            None: as many as its GPUs have room for, and on a CPU one.
        tensor_parallel_size: of one server.
        mem_fraction_static: share of a GPU's whole memory for a server's weights and its cache.
        weight_transport: "tensor" shares memory with servers that the run starts, "broadcast" sends
            over a process group, "disk" writes files that servers read. "auto": "tensor" for
            servers of the run; for urls "disk" where weight_folder is set, else "broadcast".
        update_weight_buffer_size: bytes of one bucket of weights.
        weight_folder: of the files; by default on this machine's memory file system.
        verify_interval: compare the servers' checksums on the first and on every so many-th swap;
            0: never.
        max_running_requests: requests that a server works on at a time.
        start_timeout_s: until a server is healthy.
        request_timeout_s: until a server has answered a request.
        weight_timeout_s: until a server has taken a bucket of weights, or all files.
        health_timeout_s: after how long without an answer servers count as hung. While they sample,
            they are asked how they are six times as often.
        max_restarts: failures in a row of one server after which the run ends.
        log_folder: of the servers' output; by default logs/ in the run directory.
        server_args: further arguments of the server by name.
    """

    urls: tuple[str, ...] = ()
    python: str = ""
    num_servers: int | None = None
    tensor_parallel_size: int = 1
    mem_fraction_static: float = 0.5
    weight_transport: WeightTransport = "auto"
    update_weight_buffer_size: int = 512 * 2**20
    weight_folder: str = ""
    verify_interval: int = 10
    max_running_requests: int = 128
    start_timeout_s: float = 900.0
    request_timeout_s: float = 1200.0
    weight_timeout_s: float = 600.0
    health_timeout_s: float = 60.0
    max_restarts: int = 3
    log_folder: str = ""
    server_args: dict[str, ArgumentValue] = field(default_factory=dict[str, ArgumentValue])
