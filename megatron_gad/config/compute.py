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
        micro_batch_size: rows of one forward, sorted by length where they are padded; the
            discriminator takes as many whole groups as fit in it, at least one (see
            discriminator.split_groups).
        max_tokens_per_microbatch: tokens of one forward, padding included, in place of a number of
            rows; rows are sorted by length. A group that has more is taken whole all the same.
        bf16: weights and activations in bfloat16, main weights and gradients in float32.
        transformer_impl: Megatron's own layers, or Transformer Engine's (needed for FP8).
        fp8_format: matrix products of the layers in FP8, by Transformer Engine; head and
            log-probabilities are not.
        fp8_recipe: how FP8 values are scaled; blockwise needs Hopper, mxfp8 Blackwell, delayed as
            many pipeline ranks for both models.
        fp8_param_gather: hold weights in FP8 and gather them so; needs the distributed optimizer,
            and "tensorwise" or "blockwise".
        recompute_granularity: recompute whole layers ("full") or attention ("selective") in the
            backward pass; None keeps activations.
        recompute_method: "full" for units of layers that cover the stage ("uniform"), or for some
            of its layers one by one ("block").
        recompute_num_layers: layers of a unit, or, by block, layers of a stage that recompute.
        use_precision_aware_optimizer: Transformer Engine's Adam, which holds the main weights too;
            optimizer_cpu_offload is part of it. Needs the distributed optimizer.
        optimizer_cpu_offload: optimizer states and step on the host, all in float32; needs bf16 and
            use_precision_aware_optimizer, and stages without a discriminator.
        pack_sequences: run the rows of a microbatch as one sequence without padding; None packs
            where attention takes it: without context parallelism, and not in fp32 of Transformer
            Engine.
        share_prompts: compute the prompt of a group once in each microbatch instead of once for
            each response; None does where attention takes it: packed, and with transformer_impl
            local.
        logprob_chunk_size: response tokens whose logits are held at once; no others are computed.
    """

    micro_batch_size: int = 4
    max_tokens_per_microbatch: int | None = None
    bf16: bool = False
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    fp8_format: Literal["e4m3", "hybrid"] | None = None
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    fp8_param_gather: bool = False
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: int = 1
    use_precision_aware_optimizer: bool = False
    optimizer_cpu_offload: bool = False
    pack_sequences: Switch = None
    share_prompts: Switch = None
    logprob_chunk_size: int = 1024
