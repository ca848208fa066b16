"""The one trainer: a Megatron model, its optimizer, and the forward-backward schedule."""

from dataclasses import dataclass
from typing import Literal

from megatron_gad.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class ComputeConfig:
    """How forward and backward are computed; nothing here changes the result beyond rounding.

    micro_batch_size: rows of one forward; the discriminator takes as many whole groups as fit in
        it, at least one.
    bf16: weights and activations in bfloat16, main weights and gradients in float32.
    recompute_granularity: full or selective activation recompute; None keeps activations.
    transformer_impl: Megatron's own layers, or Transformer Engine's (needed for FP8).
    fp8_format: FP8 training with Transformer Engine.
    logprob_chunk_size: tokens whose float32 logits are held at once.
    """

    micro_batch_size: int = 4
    bf16: bool = False
    recompute_granularity: Literal["full", "selective"] | None = None
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    fp8_format: Literal["e4m3", "hybrid"] | None = None
    logprob_chunk_size: int = 1024


@dataclass(frozen=True)
class StudentConfig(OptimizerConfig):
    """The model that learns.

    path: Hugging Face folder with config, safetensors weights and tokenizer.
    """

    path: str = ""


@dataclass(frozen=True)
class DiscriminatorConfig(OptimizerConfig):
    """The model that scores.

    path: Hugging Face folder; empty starts from the student's weights when the stage begins.
    score: read the last token's value, or sum the values of all response tokens.
    head_std: standard deviation of the scalar head's first weights.
    """

    path: str = ""
    score: Literal["last_token", "sum"] = "last_token"
    head_std: float = 0.02
