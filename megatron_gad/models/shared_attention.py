"""Attention of packed sequences that go on from the beginnings of others, as responses do.

Nothing that is kept for the backward pass grows with how often a prompt is attended to: its keys
and values are there once, whatever stands behind them.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Span(NamedTuple):
    """A sequence among the keys, who of it attends, and what stands before all of it.

    begin, end: of its tokens. before_begin, before_end: of those before it; equal if there are
    none. first, last: of its queries, which are its last tokens', among all queries.
    """

    begin: int
    end: int
    before_begin: int
    before_end: int
    first: int
    last: int


def spans_of(
    lengths: Sequence[int],
    starts: Sequence[int],
    sources: Sequence[int],
    unread: Sequence[int] = (),
) -> list[Span]:
    """Return where each sequence is among the tokens; the arguments are those of PackedLengths."""
    ends = list(accumulate(lengths))
    begins = [end - length for end, length in zip(ends, lengths, strict=True)]
    skipped = unread or [0] * len(lengths)
    lasts = list(accumulate(n - left for n, left in zip(lengths, skipped, strict=True)))
    spans: list[Span] = []
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        before = begins[sources[row]]
        first = lasts[row - 1] if row else 0
        spans.append(Span(begin, end, before, before + starts[row], first, lasts[row]))
    return spans


def attend_shared(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float | None
) -> Tensor:
    """Attend from tokens to themselves, to those before them in their sequence, and before that.

    query: [Q, heads, head_dim], of the tokens that attend. key, value: [N, groups, head_dim], of
    all. Returns a tensor like query.
    scale: of the scores; None for 1 / sqrt(head_dim).
    """
    if query.device.type == "cpu":
        return _InParts.apply(query, key, value, spans, scale)
    result: Any = checkpoint(_by_gathering, query, key, value, spans, scale, use_reentrant=False)
    return result


def _by_gathering(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float | None
) -> Tensor:
    """Put the keys and values that a sequence attends to together, with one for every head."""
    # It imports a compiler, for seconds; a CPU does not come here.
    from torch.nn.attention.bias import causal_lower_right  # noqa: PLC0415

    num_heads = query.shape[1]
    key, value = (x.repeat_interleave(num_heads // x.shape[1], dim=1) for x in (key, value))
    parts = []
    for begin, end, before_begin, before_end, first, last in spans:
        seen = [torch.cat((x[before_begin:before_end], x[begin:end])) for x in (key, value)]
        parts.append(
            scaled_dot_product_attention(
                _batched(query[first:last]),
                *map(_batched, seen),
                attn_mask=causal_lower_right(last - first, len(seen[0])),
                scale=scale,
            )
        )
    return torch.cat([_unbatched(part) for part in parts])


class _InParts(torch.autograd.Function):
    """The backward pass takes the keys before a sequence, and its own, in two calls.

    With the result of the whole and the log of its sum of exponentials, torch's kernel computes
    from some of the keys their part of the gradient. So no keys are copied to be kept.
    Source: Liu et al., Ring Attention with Blockwise Transformers, 2023.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: Sequence[Span],
        scale: float | None,
    ) -> Tensor:
        result = torch.empty_like(query)
        log_sums = query.new_empty(
            query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32)
        )
        for begin, end, before_begin, before_end, first, last in spans:
            rows, seen = slice(first, last), [x[begin:end] for x in (key, value)]
            if before_end > before_begin:
                seen = [torch.cat((x[before_begin:before_end], x[begin:end])) for x in (key, value)]
            mask = _causal_mask(last - first, len(seen[0]), query)
            found, log_sum = _attend(
                _batched(query[rows]),
                *map(_batched, seen),
                is_causal=mask is None,
                attn_mask=mask,
                scale=scale,
            )
            result[rows], log_sums[rows] = _unbatched(found), log_sum[0].t()
        ctx.save_for_backward(query, key, value, result, log_sums)
        ctx.spans, ctx.scale = spans, scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, log_sums = ctx.saved_tensors
        along = (gradients[0], query, key, value, result)

        def part(
            rows: slice, seen: slice, is_causal: bool, mask: Tensor | None = None
        ) -> list[Tensor]:
            upstream, q, k, v, out = (
                _batched(x[at]) for x, at in zip(along, (rows, rows, seen, seen, rows), strict=True)
            )
            log_sum = log_sums[rows].t()[None]
            found = _attend_backward(
                upstream, q, k, v, out, log_sum, 0.0, is_causal, attn_mask=mask, scale=ctx.scale
            )
            return [_unbatched(x) for x in found]

        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))
        for begin, end, _, _, first, last in ctx.spans:
            rows, own = slice(first, last), slice(begin, end)
            mask = _causal_mask(last - first, end - begin, query)
            d_query[rows], d_key[own], d_value[own] = part(rows, own, mask is None, mask)
        for _, _, before_begin, before_end, first, last in _behind_others(ctx.spans):
            rows, seen = slice(first, last), slice(before_begin, before_end)
            for total, at, added in zip(
                (d_query, d_key, d_value),
                (rows, seen, seen),
                part(rows, seen, is_causal=False),
                strict=True,
            ):
                total[at] += added
        return d_query, d_key, d_value, None, None


def _behind_others(spans: Sequence[Span]) -> list[Span]:
    """Return the spans with tokens before them; neighbours behind the same tokens are joined."""
    joined: list[Span] = []
    for span in spans:
        if span.before_begin == span.before_end:
            continue
        if joined and (*joined[-1][2:4], joined[-1].last) == (*span[2:4], span.first):
            joined[-1] = joined[-1]._replace(end=span.end, last=span.last)
        else:
            joined.append(span)
    return joined


def _causal_mask(num_queries: int, num_keys: int, like: Tensor) -> Tensor | None:
    """Return what is added to the scores of a sequence's last tokens; None if they are all."""
    if num_queries == num_keys:
        return None
    mask = like.new_full((num_queries, num_keys), float("-inf"))
    return mask.triu(num_keys - num_queries + 1)


def _batched(x: Tensor) -> Tensor:
    """[N, heads, head_dim] -> [1, heads, N, head_dim]."""
    return x.transpose(0, 1)[None]


def _unbatched(x: Tensor) -> Tensor:
    """[1, heads, N, head_dim] -> [N, heads, head_dim]."""
    return x[0].transpose(0, 1)
