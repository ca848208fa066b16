"""Where every Hugging Face tensor lives in the Megatron parameters of this rank.

A Hugging Face tensor is cut over the tensor parallel ranks along at most one axis, and a rank's
part of it is a view of one Megatron parameter: query, key and value are interleaved per query group
in linear_qkv, gate lies over up in linear_fc1. An expert is on one expert parallel rank alone, and
cut over the expert tensor parallel ranks. One table of such slots serves both directions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor
from transformers import PretrainedConfig

from megatron_gad.models.families import family_of, head_dim, mixture_of
from megatron_gad.models.scorer import ScorerModel
from megatron_gad.models.tensor_names import DENSE, EMBEDDING, FINAL_NORM, LM_HEAD, SCORE_HEAD


@dataclass(frozen=True)
class Slot:
    """One Hugging Face tensor, or this rank's part of it.

    name: under Hugging Face.
    part: a view of the Megatron parameter, with the elements in the order of the tensor's part.
    part_shape: the shape of this rank's part of the tensor.
    cut_axis: the axis cut over the tensor parallel ranks; None where every rank has all of it.
    num_rows: rows of the whole tensor, where the Megatron parameter has padding rows behind them.
    expert_rank: the expert parallel rank that has it, cut over the expert tensor parallel ranks;
        None for what is no expert's.
    """

    name: str
    part: Tensor
    part_shape: tuple[int, ...]
    cut_axis: int | None
    num_rows: int | None = None
    expert_rank: int | None = None


def slots_of(chunks: Iterable[torch.nn.Module], hf_config: PretrainedConfig) -> list[Slot]:
    """List the slots of this rank, in the order of the layers.

    A tied output layer on another stage than the embedding is a second slot of the embedding.

    Args:
        chunks: GPTModel or ScorerModel, bare or wrapped.
        hf_config: the shape they were built from.
    """
    slots: list[Slot] = []
    for wrapped in chunks:
        chunk = unwrapped(wrapped)
        if chunk.pre_process:
            weight = chunk.embedding.word_embeddings.weight
            slots.append(_cut(EMBEDDING, weight, 0, hf_config.vocab_size))
        for layer in chunk.decoder.layers:
            slots += _layer_slots(layer, hf_config)
        if chunk.post_process:
            slots.append(_whole(FINAL_NORM, chunk.decoder.final_layernorm.weight))
            slots += _head_slots(chunk, hf_config)
    return slots


def unwrapped(module: torch.nn.Module) -> Any:
    """Return the model inside Megatron's wrappers for data parallelism and half precision."""
    inner: Any = module
    while hasattr(inner, "module"):
        inner = inner.module
    return inner


def _head_slots(chunk: Any, hf_config: PretrainedConfig) -> Iterator[Slot]:
    """Yield the slot of the score head or output layer, where this chunk has weights for it."""
    weight = chunk.output_layer.weight
    if isinstance(chunk, ScorerModel):
        yield _whole(SCORE_HEAD, weight)
    elif not hf_config.tie_word_embeddings:
        yield _cut(LM_HEAD, weight, 0, hf_config.vocab_size)
    elif weight is not None:
        yield _cut(EMBEDDING, weight, 0, hf_config.vocab_size)


def _layer_slots(layer: Any, hf_config: PretrainedConfig) -> Iterator[Slot]:
    """Yield the slots of one transformer layer, of the local or Transformer Engine's modules."""
    prefix = f"model.layers.{layer.layer_number - 1}."
    attention, mlp = layer.self_attention, layer.mlp
    norm = _norm(layer.input_layernorm, attention.linear_qkv)
    yield _whole(prefix + "input_layernorm.weight", norm)
    for kind in ("weight", "bias") if family_of(hf_config).has_qkv_bias else ("weight",):
        parameter = getattr(attention.linear_qkv, kind)
        for which, part in zip("qkv", _query_key_value(parameter, hf_config), strict=True):
            rows = part.shape[0] * part.shape[1] * part.shape[2]
            name = f"{prefix}self_attn.{which}_proj.{kind}"
            yield Slot(name, part, (rows, *parameter.shape[1:]), cut_axis=0)
    if family_of(hf_config).has_qk_norm:
        yield _whole(prefix + "self_attn.q_norm.weight", attention.q_layernorm.weight)
        yield _whole(prefix + "self_attn.k_norm.weight", attention.k_layernorm.weight)
    yield _cut(prefix + "self_attn.o_proj.weight", attention.linear_proj.weight, 1)
    is_sparse = hasattr(mlp, "router")
    norm = _norm(layer.pre_mlp_layernorm, None if is_sparse else mlp.linear_fc1)
    yield _whole(prefix + "post_attention_layernorm.weight", norm)
    if is_sparse:
        yield from _expert_slots(prefix, mlp, hf_config)
    else:
        names = [prefix + name for name in DENSE]
        yield from _feed_forward_slots(names, mlp.linear_fc1.weight, mlp.linear_fc2.weight)


def _expert_slots(prefix: str, layer: Any, hf_config: PretrainedConfig) -> Iterator[Slot]:
    """Yield the slots of a layer's router and of the experts that this rank has."""
    mixture = mixture_of(hf_config)
    assert mixture is not None, hf_config.model_type
    yield _whole(prefix + mixture.router_name(), layer.router.weight)
    rank = parallel_state.get_expert_model_parallel_rank()
    for index, expert in enumerate(layer.local_expert_indices):
        fc1, fc2 = _expert_weights(layer.experts, index)
        names = [prefix + name for name in mixture.expert_names(expert)]
        yield from _feed_forward_slots(names, fc1, fc2, expert_rank=rank)


def _expert_weights(experts: Any, index: int) -> tuple[Tensor, Tensor]:
    """Return the two matrices of a local expert, of modules one by one or of a grouped one."""
    if hasattr(experts, "local_experts"):
        expert = experts.local_experts[index]
        return expert.linear_fc1.weight, expert.linear_fc2.weight
    linears = experts.linear_fc1, experts.linear_fc2
    fc1, fc2 = (getattr(linear, f"weight{index}") for linear in linears)
    return fc1, fc2


def _feed_forward_slots(
    names: Iterable[str], fc1: Tensor, fc2: Tensor, expert_rank: int | None = None
) -> Iterator[Slot]:
    """Yield the slots of a gate, which lies over up in fc1, up, and down."""
    parts = (*fc1.detach().chunk(2), fc2.detach())
    for name, part, axis in zip(names, parts, (0, 0, 1), strict=True):
        yield Slot(name, part, tuple(part.shape), axis, expert_rank=expert_rank)


def _query_key_value(parameter: Tensor, hf_config: PretrainedConfig) -> tuple[Tensor, ...]:
    """Return views [groups, heads of a group, head_dim, ...] of the query, key and value rows."""
    heads_per_group = hf_config.num_attention_heads // hf_config.num_key_value_heads
    shape = (-1, heads_per_group + 2, head_dim(hf_config), *parameter.shape[1:])
    return parameter.detach().view(shape).split([heads_per_group, 1, 1], dim=1)


def _norm(module: Any, linear: Any) -> Tensor:
    """Return the weight of a norm that is its own module, or fused into the linear behind it."""
    fused = getattr(linear, "layer_norm_weight", None)
    return module.weight if fused is None else fused


def _whole(name: str, parameter: Tensor) -> Slot:
    return Slot(name, parameter.detach(), tuple(parameter.shape), cut_axis=None)


def _cut(name: str, parameter: Tensor, axis: int, num_rows: int | None = None) -> Slot:
    return Slot(name, parameter.detach(), tuple(parameter.shape), axis, num_rows)
