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
# Failures of one server in a row that are tolerated; one more ends the run.
TOLERATED_FAILURES = 3
ArgumentValue = bool | int | float | str | list[bool | int | float | str]


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled in training.

    Attributes:
        engine: engine that samples.
        temperature: sampling temperature. It also divides the student's logits in the policy loss,
            so that training stays on-policy.
        max_total_tokens: largest number of tokens whose keys and values the embedded engine holds.
        logprob_gap_bound: largest difference between engine and trainer on a sampled token, in
            nats; a larger one stops the run. Default: 1e-3 in fp32; in bf16 the mean over tokens is
            bounded instead; no bound in FP8. 0: never.
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
        urls: addresses of servers that run already, shared out between the data ranks. Empty: each
            model-parallel group starts its own.
        python: Python interpreter that has SGLang; default: the run's own.
        num_servers: servers that a model-parallel group starts, on its GPUs from the first rank's
            on. Default: as many as its GPUs have room for; one on a CPU.
        tensor_parallel_size: tensor-parallel ranks of one server.
        mem_fraction_static: share of a GPU's whole memory for a server's weights and its cache.
        weight_transport: "tensor" shares memory with servers that the run starts, "broadcast" sends
            over a process group, "disk" writes files that servers read: for urls in the run
            directory. "auto": "tensor" for servers of the run, "broadcast" for urls.
        update_weight_buffer_size: bytes of one bucket of weights.
        verify_interval: swaps from one comparison of the servers' checksums to the next, beginning
            with the first swap; 0: never.
        max_running_requests: requests that a server works on at the same time.
        start_timeout_s: seconds a server may take to become healthy.
        request_timeout_s: seconds a server may take to answer one request: to sample a response, or
            to load a bucket or all files of weights.
        health_timeout_s: seconds without an answer after which a server counts as hung. While
            servers sample, their health is checked six times in this interval.
        server_args: further arguments of the server by name, such as chunked_prefill_size = 4096;
            as flags --sglang-chunked-prefill-size 4096.
    """

    urls: tuple[str, ...] = ()
    python: str = ""
    num_servers: int | None = None
    tensor_parallel_size: int = 1
    mem_fraction_static: float = 0.5
    weight_transport: WeightTransport = "auto"
    update_weight_buffer_size: int = 512 * 2**20
    verify_interval: int = 10
    max_running_requests: int = 128
    start_timeout_s: float = 900.0
    request_timeout_s: float = 1200.0
    health_timeout_s: float = 60.0
    server_args: dict[str, ArgumentValue] = field(default_factory=dict[str, ArgumentValue])
