"""How forward, backward and the optimizer step are computed."""

from dataclasses import dataclass
from typing import Literal

from megatron_gad.config.layout import Switch

# Values that share a scale in recipe "blockwise"; what is gathered has to be whole blocks.
FP8_BLOCK = 128


@dataclass(frozen=True)
class ComputeConfig:
    """How forward and backward are computed; nothing here changes the result beyond rounding.

    Attributes:
        micro_batch_size: rows of one forward pass; padded rows are sorted by length. If rows share
            their prompts, as many as have no more tokens than this number of whole ones. The
            discriminator takes as many whole groups as fit, and at least one (see
            discriminator.split_groups).
        max_tokens_per_microbatch: tokens of one forward pass, padding included; replaces the bound
            on rows. A group with more tokens is still taken as a whole.
        bf16: weights and activations in bfloat16, main weights and gradients in float32.
        transformer_impl: Megatron's own layers, or Transformer Engine's (needed for FP8).
        fp8_format: compute the layers' matrix products in FP8, with Transformer Engine. Head and
            log-probabilities are not computed in FP8.
        fp8_recipe: how FP8 values are scaled. blockwise needs Hopper and mxfp8 Blackwell; delayed
            needs the same number of pipeline ranks for both models.
        recompute_granularity: recompute whole layers ("full") or attention ("selective") in the
            backward pass; default: keep all activations.
        recompute_method: which layers "full" recomputes: all, in units of some layers ("uniform"),
            or only some layers of a pipeline rank ("block").
        recompute_num_layers: layers of a unit ("uniform"), or layers of a pipeline rank that
            recompute ("block").
        pack_sequences: run the rows of a microbatch as one sequence without padding; default: if
            attention supports it, which it does without context parallelism, and not in fp32 with
            Transformer Engine.
        share_prompts: compute the prompt of a group once in each microbatch instead of once for
            each response; default: for packed rows with transformer_impl = "local". Transformer
            Engine does so if told to.
        logprob_chunk_size: response tokens whose logits are held in memory at the same time.
    """

    micro_batch_size: int = 4
    max_tokens_per_microbatch: int | None = None
    bf16: bool = False
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    fp8_format: Literal["e4m3", "hybrid"] | None = None
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: int = 1
    pack_sequences: Switch = None
    share_prompts: Switch = None
    logprob_chunk_size: int = 1024
