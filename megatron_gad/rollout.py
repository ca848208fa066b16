"""Prompts to groups through an engine."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled in training.

    engine: which engine samples.
    temperature: also divides the student's logits in the policy loss, so that it is on-policy.
    top_p, top_k: 1.0 and 0 switch them off.
    max_batch_size: rows that the embedded engine decodes at once.
    logprob_gap_bound: stop the run when engine and trainer differ by more, in nats, on a sampled
        token; None: 1e-3 in fp32, no bound in bf16; 0: never.
    """

    engine: Literal["embedded", "sglang"] = "embedded"
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    max_batch_size: int = 256
    logprob_gap_bound: float | None = None
