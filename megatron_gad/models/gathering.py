"""Shared prompts with an attention kernel that takes every sequence's keys for itself.

Transformer Engine's does. It has been read, and not been run with what this module gives it: there
was no GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_gad.models.attention import PackedLengths, RotaryTable
from megatron_gad.models.autograd import Rotate


class KernelMask(Enum):
    """The mask that Megatron's AttnMaskType lacks. Its attention passes masks on by their names."""

    padding_causal_bottom_right = auto()


class GatheringAttention(MegatronModule):
    """Rotary embedding, a copy of the keys that each sequence attends to, and a kernel."""

    def __init__(
        self,
        rotary: RotaryTable,
        kernel: Callable[..., torch.nn.Module],
        config: TransformerConfig,
        **arguments: Any,
    ) -> None:
        """Build; all arguments but the first two are those that Megatron's Attention passes.

        kernel: class of Megatron's TEDotProductAttention, or one that is called like it.
        """
        super().__init__(config=config)
        self.rotary = rotary
        # As "self", the slowest of Transformer Engine's backends masks keys by queries' lengths.
        arguments = {**arguments, "attention_type": "cross"}
        # It lets a checkpoint lack its FP8 state under a name that ends like this.
        self.core_attention = kernel(config=config, **arguments)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend from every token to itself and to those before it in its row.

        Args:
            query: [tokens, heads, head_dim].
            key: [tokens, groups, head_dim].
            value: as key.
            attention_mask: must be None.
            attn_mask_type: mask of a kernel's call if every sequence stands for itself.
            attention_bias: must be None.
            packed_seq_params: PackedLengths.

        Returns:
            [tokens, heads * head_dim].
        """
        assert attention_mask is None and attention_bias is None
        packed = packed_seq_params
        assert isinstance(packed, PackedLengths), type(packed)
        tables = self.rotary.packed(packed, query)
        query, key = (Rotate.apply(tensor, *tables) for tensor in (query, key))
        if not any(packed.starts):
            return self._call(query, key, value, attn_mask_type, packed)
        # So that the copies are not kept for the backward pass.
        arguments = query, key, value, packed
        result: Any = checkpoint(self._attend_gathered, *arguments, use_reentrant=False)
        return result

    def _attend_gathered(
        self, query: Tensor, key: Tensor, value: Tensor, packed: PackedLengths
    ) -> Tensor:
        # The gradient of index_select adds in any order on a GPU, that of [] in the same one.
        key, value = key[packed.seen], value[packed.seen]
        return self._call(query, key, value, KernelMask.padding_causal_bottom_right, packed)

    def _call(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Enum | None, packed: PackedLengths
    ) -> Tensor:
        return self.core_attention(
            query, key, value, None, attn_mask_type=mask, packed_seq_params=packed
        )


def with_gathered_keys(
    block: TransformerBlockSubmodules, rotary: RotaryTable
) -> TransformerBlockSubmodules:
    """Return the specification of a stage's layers with its attention inside GatheringAttention.

    The model must not rotate queries and keys itself.
    """
    layers = [_gathering(layer, rotary) for layer in block.layer_specs or []]
    return replace(block, layer_specs=layers)


def _gathering(layer: Any, rotary: RotaryTable) -> Any:
    """Return the specification of a layer like that; Megatron's one is left as it is."""
    inside = layer.submodules
    parts = inside.self_attention.submodules
    wrapped = partial(GatheringAttention, rotary, parts.core_attention)
    attention = replace(inside.self_attention, submodules=replace(parts, core_attention=wrapped))
    return replace(layer, submodules=replace(inside, self_attention=attention))
