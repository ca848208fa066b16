"""Attention of packed sequences, called as Megatron's TEDotProductAttention is.

It is written after the documentation of Transformer Engine's DotProductAttention (2.9 to 2.11) for
qkv_format "thd", and reads what that reads: Megatron's fields of the packed sequences.
"""

from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_gad.models.gathering import GatheringAttention
from megatron_gad.training.trainer import Trainer


def may_lack_state(_module: torch.nn.Module, keys: Any) -> None:
    """Forgive what Transformer Engine forgives when a model is loaded."""
    for key in [*keys.missing_keys]:
        if "core_attention._extra_state" in key:
            keys.missing_keys.remove(key)


class KernelByHand(torch.nn.Module):
    """Softmax of the scores, sequence by sequence and head by head, in float64.

    masks: names of the masks that it was called with.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_unused: Any,
    ) -> None:
        super().__init__()
        assert attention_type == "cross", "keys of other lengths than the queries"
        self.scale = softmax_scale
        self.masks: list[str] = []

        self.register_load_state_dict_post_hook(may_lack_state)

    def get_extra_state(self) -> Tensor:
        """What Transformer Engine keeps for FP8."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it, if a checkpoint has it."""
        assert state.numel() == 0

    def sharded_state_dict(self, *_unused: Any, **_further: Any) -> dict[str, Any]:
        """What Megatron saves: nothing."""
        return {}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: Any,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend. query: [tokens, heads, head_dim]. key, value: [keys, groups, head_dim]."""
        packed, kept = packed_seq_params, query.dtype
        assert packed is not None and packed.qkv_format == "thd"
        assert packed.cu_seqlens_q_padded is None and packed.cu_seqlens_kv_padded is None
        ends_q, ends_kv = packed.cu_seqlens_q, packed.cu_seqlens_kv
        assert ends_q.dtype == ends_kv.dtype == torch.int32
        assert ends_q[-1] == len(query) and ends_kv[-1] == len(key) == len(value)
        assert packed.max_seqlen_q == ends_q.diff().max()
        assert packed.max_seqlen_kv == ends_kv.diff().max()
        # Megatron renames "causal" for packed sequences.
        name: str = attn_mask_type.name
        name = "padding_causal" if name == "causal" else name
        self.masks.append(name)
        query, key, value = query.double(), key.double(), value.double()
        spans = zip(pairwise(ends_q.tolist()), pairwise(ends_kv.tolist()), strict=True)
        parts = [
            self._attend(query[begin:end], key[first:last], value[first:last], name)
            for (begin, end), (first, last) in spans
        ]
        return torch.cat(parts).flatten(start_dim=1).to(kept)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: str) -> Tensor:
        """Attend within a sequence; a causal mask is aligned as its name says."""
        from_the_end = len(key) - len(query)
        shift = {"padding_causal": 0, "padding_causal_bottom_right": from_the_end}[mask]
        allowed = torch.ones(len(query), len(key)).tril(shift).bool()
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        heads_of_a_group = query.shape[1] // key.shape[1]
        results = []
        for head in range(query.shape[1]):
            group = head // heads_of_a_group
            scores = (query[:, head] @ key[:, group].t() * scale).masked_fill(~allowed, -torch.inf)
            results.append(scores.softmax(-1) @ value[:, group])
        return torch.stack(results, dim=1)


def gather_keys(trainer: Trainer) -> list[list[str]]:
    """Give every layer the attention that is put around Transformer Engine's.

    Returns a list of each of this rank's layers that grows by the masks of its calls.
    """
    masks = []
    for layer in (each for chunk in trainer.modules_to_read() for each in chunk.decoder.layers):
        local = layer.self_attention.core_attention
        layer.self_attention.core_attention = GatheringAttention(
            local.rotary,
            KernelByHand,
            local.config,
            layer_number=layer.layer_number,
            attn_mask_type=AttnMaskType.causal,
            attention_type="self",
            softmax_scale=local.softmax_scale,
        )
        masks.append(layer.self_attention.core_attention.core_attention.masks)
    return masks
