"""Attention of new tokens to blocks of keys and values, which several rows may share.

A block is read once for all rows that it belongs to: the samples of a prompt read its blocks
together. Each row's softmax runs over all its blocks, in float32.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from megatron_gad.engines.kv_cache import BlockPool

# The name under which transformers knows the attention of this file.
ATTENTION = "megatron_gad_blocks"


@dataclass(frozen=True)
class Reads:
    """A span of n blocks, and which of B rows read each.

    rows: [n, G] int64, the rows that read a block; B stands for nobody.
    is_empty: [n, 1, 1, BLOCK_TOKENS] bool, True where a block holds no token.
    """

    span: slice
    rows: Tensor
    is_empty: Tensor


class DecodingCache:
    """What the attention layers of a transformers model write and read for one new token a row.

    They hand the result of ``update`` on to ``attend`` as keys and values.
    """

    is_compileable = False

    def __init__(
        self, pool: BlockPool, blocks: Tensor, offsets: Tensor, reads: tuple[Reads, ...]
    ) -> None:
        """blocks, offsets: [B] int64, where each row's token goes.

        reads: of what is there then, the new tokens included.
        """
        self._pool = pool
        self._blocks = blocks
        self._offsets = offsets
        self._reads = reads

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Any, Any]:
        """Write the next token of every row. key_states, value_states: [B, heads, 1, size]."""
        keys, values = self._pool.layer(layer_idx)
        keys[self._blocks, :, self._offsets] = key_states[:, :, 0]
        values[self._blocks, :, self._offsets] = value_states[:, :, 0]
        held = HeldBlocks(keys, values, self._reads)
        return held, held


@dataclass(frozen=True)
class HeldBlocks:
    """The keys and values of a layer, [num_blocks, heads, BLOCK_TOKENS, size], and who reads."""

    keys: Tensor
    values: Tensor
    reads: tuple[Reads, ...]

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """Return [B, 1, query heads, size] for queries [B, query heads, 1, size].

        Each block gives its readers a part: the maximum of its scores, and the sums of
        exp(score - maximum) and of the values with these weights. A row's parts are then put to
        the maximum of all of them, and add up.
        """
        num_rows, query_heads, _, size = query.shape
        heads = self.keys.shape[1]
        queries = query.new_zeros(num_rows + 1, heads, query_heads // heads, size)
        queries[:-1] = query.view(num_rows, heads, -1, size)  # the last row is nobody's
        parts = [self._part(queries, reads, scaling) for reads in self.reads if len(reads.rows)]
        top, sums = (torch.cat(each) for each in zip(*parts, strict=True))
        rows = torch.cat([reads.rows.flatten() for reads in self.reads])
        maxima = top.new_full(queries.shape[:3], -torch.inf)
        maxima.scatter_reduce_(0, rows[:, None, None].expand_as(top), top, "amax")
        sums *= (top - maxima[rows]).exp_()[..., None]
        total = sums.new_zeros(*maxima.shape, size + 1).index_add_(0, rows, sums)[:-1]
        mean = total[..., :-1] / total[..., -1:]
        return mean.reshape(num_rows, 1, query_heads, size).to(query.dtype)

    def _part(self, queries: Tensor, reads: Reads, scaling: float) -> tuple[Tensor, Tensor]:
        """Return what blocks give their readers, as queries [B + 1, heads, Q, size] of them ask.

        Returns maxima [n * G, heads, Q], and sums [n * G, heads, Q, size + 1], of values and, last,
        of weights; both float32.
        """
        asked = queries[reads.rows].transpose(1, 2).flatten(2, 3)  # [n, heads, G * Q, size]
        keys, values = self.keys[reads.span], self.values[reads.span]
        scores = _product(asked, keys.transpose(-1, -2)).mul_(scaling)
        scores.masked_fill_(reads.is_empty, -torch.inf)
        top = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(top).exp_()
        sums = (_product(weights.to(values.dtype), values), weights.sum(dim=-1, keepdim=True))
        readers = (reads.rows.shape[1], queries.shape[2])
        by_row = (
            each.unflatten(2, readers).transpose(1, 2).flatten(0, 1)
            for each in (top, torch.cat(sums, dim=-1))
        )
        maxima, sums = by_row
        return maxima[..., 0], sums


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return float32 products of [n, heads, M, K] and [n, heads, K, N]; sums are in float32."""
    if left.dtype == torch.float32 or left.device.type == "cpu":
        return left.float() @ right.float()
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return product.unflatten(0, left.shape[:2])


def attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend to blocks if the cache gives some, else to the keys and values of whole prompts."""
    if isinstance(key, HeldBlocks):
        return key.attend(query, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )


AttentionInterface.register(ATTENTION, attention)


@cache
def cache_argument(model_class: type[nn.Module]) -> str:
    """Return the name of the argument through which a model's forward pass takes its cache.

    Older releases of transformers 5 say ``past_key_values``, newer ones ``cache``. A release that
    says ``cache`` takes the other name with a warning, before 5.40.
    """
    is_new = "cache" in inspect.signature(model_class.forward).parameters
    return "cache" if is_new else "past_key_values"
