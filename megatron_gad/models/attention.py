"""Attention between the QKV and the output projection, where Transformer Engine is not used.

Megatron's own module allocates every score, and refuses packed sequences and context parallelism.
This one takes all three on any device, and rotates queries and keys itself, because only here both
their positions and a table shared by the layers are at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_gad.models.autograd import Rotate
from megatron_gad.models.shared_attention import attend_shared, spans_of


@dataclass
class PackedLengths(PackedSeqParams):
    """Megatron's description of packed sequences, and their lengths on the host.

    Transformer Engine takes Megatron's fields, which are on the device. To read the lengths from
    there, the host would wait for the device in every layer.

    A sequence may go on from the beginning of an earlier one, whose tokens it then lacks: responses
    to one prompt have it once. Megatron's fields count these tokens among the keys.

    lengths: tokens of each sequence.
    starts: position of each sequence's first token; so many tokens of another stand before it.
    sources: number of that other sequence, which begins at position 0; not read if starts is 0.
    unread: tokens at each sequence's beginning of which the last layer computes keys and values
        only, because nobody reads its result there; empty if it computes everything.
    read: int64, the other tokens' places, on the device; None if unread is empty.
    """

    lengths: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    read: Tensor | None = None

    @cached_property
    def seen(self) -> Tensor:
        """Which tokens each sequence attends to, one sequence behind the other, [keys] int64."""
        parts = [
            torch.arange(*bounds)
            for begin, end, *before, _, _ in spans_of(self.lengths, self.starts, self.sources)
            for bounds in (before, (begin, end))
        ]
        return torch.cat(parts).to(self.cu_seqlens_q.device)


def packed_lengths(
    lengths: Sequence[int],
    device: torch.device,
    starts: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    unread: Sequence[int] = (),
) -> PackedLengths:
    """Describe sequences of these lengths, one behind the other, on a device.

    starts, sources: see PackedLengths; None: every sequence stands for itself. unread: see there.
    """
    alone = (0,) * len(lengths)
    starts = alone if starts is None else tuple(starts)
    num_keys = [start + length for start, length in zip(starts, lengths, strict=True)]
    return PackedLengths(
        qkv_format="thd",
        cu_seqlens_q=_ends(lengths, device),
        cu_seqlens_kv=_ends(num_keys, device),
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(num_keys),
        lengths=tuple(lengths),
        starts=starts,
        sources=alone if sources is None else tuple(sources),
        unread=tuple(unread),
        read=_read_places(lengths, unread).to(device) if unread else None,
    )


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _read_places(lengths: Sequence[int], unread: Sequence[int]) -> Tensor:
    """Return the places of all tokens but the first ``unread`` ones of each sequence."""
    parts = torch.arange(sum(lengths)).split(list(lengths))
    return torch.cat([part[skipped:] for part, skipped in zip(parts, unread, strict=True)])


class RotaryTable:
    """Cosines and sines by position, computed once for all layers of a model."""

    def __init__(self, inverse_frequencies: Tensor) -> None:
        """Take the angle per position of every rotated pair, [head_dim / 2] float32."""
        self.inverse_frequencies = inverse_frequencies
        self._up_to = lru_cache(maxsize=8)(self._compute)
        self._packed = lru_cache(maxsize=8)(self._join)

    def at(
        self, num_positions: int, like: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what Rotate takes for positions 0, 1, ..., or for some of them.

        Args:
            num_positions: how many there are.
            like: a tensor of the device and dtype to return.
            positions: int64 [T], each below num_positions; None for all in their order.

        Returns:
            cos and sin, [T, 1, head_dim] each.
        """
        # Rounded up to a power of two, so that batches of many lengths share few tables.
        size = 1 << (num_positions - 1).bit_length()
        cos, sin = self._up_to(size, like.device, like.dtype)
        if positions is None:
            return cos[:num_positions], sin[:num_positions]
        return cos[positions], sin[positions]

    def packed(self, packed: PackedLengths, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for packed sequences, each with positions of its own.

        The layers of a model share what this returns, as they keep it for their backward.
        """
        spans = tuple(zip(packed.starts, packed.lengths, strict=True))
        return self._packed(spans, like.device, like.dtype)

    def _join(
        self, spans: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        like = torch.empty(0, device=device, dtype=dtype)
        cos, sin = self.at(max(map(sum, spans)), like)
        parts = [(cos[at : at + length], sin[at : at + length]) for at, length in spans]
        cos, sin = (torch.cat(tables) for tables in zip(*parts, strict=True))
        return cos, sin

    def _compute(
        self, num_positions: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(num_positions).float(), self.inverse_frequencies)
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return cos.unsqueeze(1).to(device, dtype), sin.unsqueeze(1).to(device, dtype)


class CoreAttention(MegatronModule):
    """Rotary embedding and causal attention over torch's scaled_dot_product_attention."""

    def __init__(
        self,
        rotary: RotaryTable,
        config: TransformerConfig,
        *,
        is_last: bool = False,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_unused: object,
    ) -> None:
        """Build; the arguments behind ``is_last`` are those that Megatron's Attention passes.

        is_last: belongs to a LastLayer, and attends from the tokens that are read only.
        """
        super().__init__(config=config)
        self.rotary = rotary
        self.is_last = is_last
        self.softmax_scale = softmax_scale
        self.cp_group = None
        if config.context_parallel_size > 1:
            assert pg_collection is not None, "context parallelism needs its process group"
            self.cp_group = pg_collection.cp

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
        """Attend from every position to itself and the ones before it.

        Args:
            query: [T, B, heads, head_dim], or packed [tokens, heads, head_dim].
            key: as query, with the number of query groups for heads.
            value: as key.
            attention_mask: bool, broadcastable to [B, heads, T, T], True where attention is
                forbidden (Megatron's convention); None for causal attention.
            attn_mask_type: not used.
            attention_bias: must be None.
            packed_seq_params: the PackedLengths of packed sequences.

        Returns:
            [T, B, heads * head_dim], or packed [tokens, heads * head_dim]; of the last layer, only
            those of the packed tokens that are read.
        """
        assert attention_bias is None, "attention_bias is not supported"
        if packed_seq_params is not None:
            return self._attend_packed(query, key, value, packed_seq_params)
        if self.cp_group is not None:
            return self._attend_context_parallel(query, key, value)
        query, key = _rotate(query, key, self.rotary.at(query.size(0), query))
        allowed = None if attention_mask is None else ~attention_mask
        return self._attend(query, key, value, allowed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        """Attend causally, or where allowed: bool, broadcastable to [B, heads, T, keys]."""
        if query.is_cuda and (allowed is not None or query.dtype == torch.float32):
            # Of torch's kernels that take these, the one with query groups allocates every score.
            key, value = (one_per_head(tensor, query.size(2)) for tensor in (key, value))
        context = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=allowed,
            is_causal=allowed is None,
            scale=self.softmax_scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return context.permute(2, 0, 1, 3).flatten(start_dim=2)

    def _attend_packed(
        self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams
    ) -> Tensor:
        """Attend within each packed sequence, and to the tokens that stand before it."""
        assert self.cp_group is None, "packed sequences under context parallelism are not supported"
        assert isinstance(packed, PackedLengths), type(packed)
        query, key = _rotate(
            query.unsqueeze(1), key.unsqueeze(1), self.rotary.packed(packed, query)
        )
        read = packed.read if self.is_last else None
        if any(packed.starts):
            unread = () if read is None else packed.unread
            spans = spans_of(packed.lengths, packed.starts, packed.sources, unread)
            query = query if read is None else query[read]
            tensors = query.squeeze(1), key.squeeze(1), value
            return attend_shared(*tensors, spans, self.softmax_scale).flatten(start_dim=1)
        lengths = list(packed.lengths)
        parts = zip(
            query.split(lengths), key.split(lengths), value.unsqueeze(1).split(lengths), strict=True
        )
        context = torch.cat([self._attend(*part, allowed=None) for part in parts]).squeeze(1)
        return context if read is None else context[read]

    def _attend_context_parallel(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from this rank's two chunks of the sequence to the keys of all ranks."""
        assert self.cp_group is not None
        positions = context_parallel_positions(query.size(0), self.cp_group.size())
        own = positions[self.cp_group.rank()]
        query, key = _rotate(query, key, self.rotary.at(positions.numel(), query, own))
        key = gather_from_sequence_parallel_region(key, group=self.cp_group)
        value = gather_from_sequence_parallel_region(value, group=self.cp_group)
        allowed = positions.flatten() <= own.unsqueeze(1)
        return self._attend(query, key, value, allowed.to(query.device))


def one_per_head(tensor: Tensor, num_heads: int) -> Tensor:
    """Repeat keys or values of query groups, [T, B, groups, head_dim], for each of the heads."""
    return tensor.repeat_interleave(num_heads // tensor.size(2), dim=2)


def _rotate(query: Tensor, key: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rotate [T, B, heads, head_dim] tensors by cos and sin, [T, 1, head_dim] each."""
    cos, sin = (table.unsqueeze(1) for table in tables)
    return Rotate.apply(query, cos, sin), Rotate.apply(key, cos, sin)


def context_parallel_positions(num_tokens: int, context_parallel_size: int) -> Tensor:
    """Return the sequence positions that each context parallel rank holds.

    Megatron cuts a sequence into 2 * size chunks; rank r holds chunks r and 2 * size - 1 - r, which
    gives every rank the same causal work.

    Args:
        num_tokens: tokens held by one rank, even.
        context_parallel_size: number of ranks.

    Returns:
        [context_parallel_size, num_tokens] int64.
    """
    chunks = torch.arange(num_tokens * context_parallel_size).chunk(2 * context_parallel_size)
    ranks = range(context_parallel_size)
    return torch.stack([torch.cat((chunks[r], chunks[-1 - r])) for r in ranks])
