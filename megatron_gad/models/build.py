"""Builds the Megatron modules of one rank for the shape found in a Hugging Face folder."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch.nn.functional import silu
from transformers import PretrainedConfig

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.attention import RotaryTable
from megatron_gad.models.families import (
    family_of,
    head_dim,
    inverse_frequencies,
    mixture_of,
    softmax_scale,
)
from megatron_gad.models.gathering import with_gathered_keys
from megatron_gad.models.language_model import LanguageModel
from megatron_gad.models.layers import local_block_spec
from megatron_gad.models.layout_rules import layer_problems, shape_problems, size_problems
from megatron_gad.models.scorer import ScorerModel
from megatron_gad.models.sharding_marks import mark_experts, mark_sharded_weights


def build_language_model(
    hf_config: PretrainedConfig,
    layout: ParallelConfig,
    compute: ComputeConfig,
    returns_logits: bool = True,
) -> list[torch.nn.Module]:
    """Build this rank's chunks of a language model; the weights are not initialised.

    Called on every rank after megatron.core's process groups exist. A chunk is called as
    ``chunk(tokens, position_ids, attention_mask)`` with tokens and position_ids [B, T] int64 and
    attention_mask None (causal), rows padded on the right. The last stage returns logits
    [B, T, padded_vocab / TP] or hidden states [B, T, H], the others their hidden states.

    Args:
        hf_config: shape, from load_hf_config.
        layout: how ranks share the model.
        compute: precision, kernels and recompute.
        returns_logits: of all tokens; else see LanguageModel.

    Returns:
        One LanguageModel, or one per virtual pipeline stage. ``chunk.real_vocab_size`` is the count
        of vocabulary columns that exist; the ones behind it are padding for tensor parallelism.

    Raises:
        ValueError: the shape cannot be laid out like that.
    """

    def build(arguments: dict[str, Any]) -> GPTModel:
        tied = hf_config.tie_word_embeddings
        return LanguageModel(
            share_embeddings_and_output_weights=tied, returns_logits=returns_logits, **arguments
        )

    return _build_chunks(hf_config, layout, compute, build)


def build_scorer(
    hf_config: PretrainedConfig,
    layout: ParallelConfig,
    compute: ComputeConfig,
    head_std: float = 0.02,
    seed: int = 0,
) -> list[torch.nn.Module]:
    """Build this rank's chunks of the same network with a scalar head.

    Called as the language model; the last stage returns a score per token, [B, T] float32, the same
    on every tensor parallel rank.

    Args:
        hf_config: shape, from load_hf_config.
        layout: how ranks share the model.
        compute: precision, kernels and recompute.
        head_std: standard deviation of the head's first weights.
        seed: of the head's first weights; the same seed gives the same head at every layout.

    Raises:
        ValueError: the shape cannot be laid out like that.
    """

    def build(arguments: dict[str, Any]) -> GPTModel:
        generator = torch.Generator().manual_seed(seed)
        return ScorerModel(head_std=head_std, generator=generator, **arguments)

    return _build_chunks(hf_config, layout, compute, build)


def transformer_config(
    hf_config: PretrainedConfig, layout: ParallelConfig, compute: ComputeConfig
) -> TransformerConfig:
    """Translate shape, layout and arithmetic into Megatron's configuration.

    Raises:
        ValueError: the shape cannot be laid out like that.
    """
    check_layout(hf_config, layout, compute)
    family = family_of(hf_config)
    dtype = torch.bfloat16 if compute.bf16 else torch.float32
    interleaved = layout.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=hf_config.num_attention_heads,
        num_query_groups=hf_config.num_key_value_heads,
        kv_channels=head_dim(hf_config),
        layernorm_epsilon=hf_config.rms_norm_eps,
        normalization="RMSNorm",
        activation_func=silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=family.has_qkv_bias,
        qk_layernorm=family.has_qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        softmax_scale=softmax_scale(hf_config),
        bias_activation_fusion=False,
        perform_initialization=False,
        cuda_graph_scope=[],
        transformer_impl=compute.transformer_impl,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline_model_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        bf16=compute.bf16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        calculate_per_token_loss=True,
        variable_seq_lengths=True,
        # Megatron allows variable lengths with this dispatcher only, in dense models too.
        moe_token_dispatcher_type="alltoall",
        # Without these an interleaved schedule on two stages silently computes wrong gradients.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        **_recompute(compute),
        **_fp8(compute),
        **_expert_fields(hf_config, layout, compute),
    )


def _expert_fields(
    hf_config: PretrainedConfig, layout: ParallelConfig, compute: ComputeConfig
) -> dict[str, Any]:
    """Return Megatron's fields for a mixture of experts; none for a dense model."""
    mixture = mixture_of(hf_config)
    if mixture is None:
        return {}
    layers = [int(is_sparse) for is_sparse in mixture.sparse_layers]
    return {
        "num_moe_experts": mixture.num_experts,
        "moe_ffn_hidden_size": mixture.expert_width,
        "moe_router_topk": mixture.experts_per_token,
        # A softmax over the chosen ones only gives weights that add up to 1.
        "moe_router_pre_softmax": not mixture.normalises,
        "moe_router_dtype": "fp32",
        # Balancing losses depend on how a batch is cut into microbatches.
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        # A list has a checkpoint's layers named one by one, as layers of two kinds have to be.
        "moe_layer_freq": 1 if all(layers) else layers,
        "moe_grouped_gemm": compute.transformer_impl == "transformer_engine",
        "expert_model_parallel_size": layout.expert_model_parallel_size,
        "expert_tensor_parallel_size": layout.expert_tensor_parallel_size,
    }


def _recompute(compute: ComputeConfig) -> dict[str, Any]:
    """Return Megatron's options of activation recompute; its method is that of full recompute."""
    if compute.recompute_granularity != "full":
        return {"recompute_granularity": compute.recompute_granularity}
    return {
        "recompute_granularity": "full",
        "recompute_method": compute.recompute_method,
        "recompute_num_layers": compute.recompute_num_layers,
    }


def _fp8(compute: ComputeConfig) -> dict[str, Any]:
    """Return Megatron's options of FP8; its layers enter and leave FP8 by themselves."""
    if compute.fp8_format is None:
        return {}
    return {
        "fp8": compute.fp8_format,
        "fp8_recipe": compute.fp8_recipe,
    }


def padded_vocab_size(hf_config: PretrainedConfig, layout: ParallelConfig) -> int:
    """Return the vocabulary size rounded up so that every tensor parallel rank holds as much."""
    size = layout.tensor_model_parallel_size
    return -(-hf_config.vocab_size // size) * size


def check_layout(
    hf_config: PretrainedConfig, layout: ParallelConfig, compute: ComputeConfig
) -> None:
    """Check that the shape can be divided over the ranks as asked.

    Raises:
        ValueError: names the option, the number it has to divide, and what else is missing.
    """
    problems = [*size_problems(layout), *shape_problems(layout, hf_config)]
    problems += layer_problems(layout, compute, hf_config)
    if problems:
        raise ValueError("; ".join(problems))


def _build_chunks(
    hf_config: PretrainedConfig,
    layout: ParallelConfig,
    compute: ComputeConfig,
    build: Callable[[dict[str, Any]], GPTModel],
) -> list[torch.nn.Module]:
    """Build one chunk per virtual stage, with the arguments that both kinds of model share."""
    config = transformer_config(hf_config, layout, compute)
    virtual_size = layout.virtual_pipeline_model_parallel_size
    # The local attention does so, and the one of rows that share prompts.
    rotates_by_itself = compute.transformer_impl == "local" or bool(compute.share_prompts)
    chunks: list[torch.nn.Module] = []
    for index in range(virtual_size or 1):
        vp_stage = None if virtual_size is None else index
        is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        chunk = build(
            {
                "config": config,
                "transformer_layer_spec": _block_spec(
                    config, hf_config, bool(compute.share_prompts), vp_stage, is_last
                ),
                "vocab_size": padded_vocab_size(hf_config, layout),
                "max_sequence_length": hf_config.max_position_embeddings,
                "position_embedding_type": "none" if rotates_by_itself else "rope",
                "pre_process": parallel_state.is_pipeline_first_stage(
                    ignore_virtual=False, vp_stage=vp_stage
                ),
                "post_process": is_last,
                "vp_stage": vp_stage,
            }
        )
        if not rotates_by_itself:
            chunk.rotary_pos_emb.inv_freq = inverse_frequencies(hf_config)
        mark_sharded_weights(chunk)
        mark_experts(chunk)
        chunk.real_vocab_size = hf_config.vocab_size
        chunks.append(chunk)
    return chunks


def _block_spec(
    config: TransformerConfig,
    hf_config: PretrainedConfig,
    shares_prompts: bool,
    vp_stage: int | None,
    is_last: bool,
) -> TransformerBlockSubmodules:
    """Name the classes a stage is made of: Transformer Engine's, or the local ones."""
    if config.transformer_impl == "transformer_engine":
        block = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
        rotary = RotaryTable(inverse_frequencies(hf_config))
        return with_gathered_keys(block, rotary) if shares_prompts else block
    first = get_transformer_layer_offset(config, vp_stage)
    mixture = mixture_of(hf_config)
    dense = (False,) * config.num_layers
    sparse_layers = dense if mixture is None else mixture.sparse_layers
    here = sparse_layers[first : first + get_num_layers_to_build(config, vp_stage)]
    return local_block_spec(config, here, inverse_frequencies(hf_config), is_last)
