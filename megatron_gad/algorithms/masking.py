"""Sums over the tokens of responses. A masked value never reaches the result, NaN included."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def zero_outside(values: Tensor, mask: Tensor) -> Tensor:
    """Return values with 0 where mask is False.

    Apply it to the inputs of a formula, not to its result: torch.where stops a NaN on the way
    forward, but the gradient of a formula at a NaN is NaN even where its result is discarded.

    values: any shape, float. mask: broadcastable to it, bool.
    """
    return torch.where(mask, values, torch.zeros_like(values))


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the values where mask is True, a scalar.

    values: any shape, float. mask: the same shape, bool.
    """
    return zero_outside(values, mask).sum()


def masked_count(mask: Tensor) -> Tensor:
    """Return how many entries of a bool mask are True, as a scalar float32."""
    return mask.sum().float()


def aggregate(
    token_values: Tensor, response_mask: Tensor, how: Aggregation, max_length: int = 0
) -> tuple[Tensor, Tensor]:
    """Return a sum over responses and the count that makes it a mean, each a scalar.

    Sums and counts of several microbatches add up to those of the batch, so that the mean does
    not depend on how the rows were split. token_mean: the sum over tokens, the number of tokens;
    a long response weighs more. sequence_mean: the sum over rows of the row's token mean, the
    number of rows that have a token; every response weighs the same. constant: the sum over rows of
    the row's token sum divided by ``max_length``, the number of rows that have a token; a token
    weighs the same in every response and in every batch (arXiv 2503.20783).

    token_values: [B, T] float. response_mask: [B, T] bool. max_length: read by "constant" alone.
    """
    if how == "token_mean":
        return masked_sum(token_values, response_mask), masked_count(response_mask)
    num_tokens = response_mask.sum(dim=-1)
    num_rows = masked_count(num_tokens > 0)
    row_sums = zero_outside(token_values, response_mask).sum(dim=-1)
    if how == "sequence_mean":
        return (row_sums / num_tokens.clamp(min=1)).sum(), num_rows
    if how == "constant":
        assert max_length > 0, max_length
        return row_sums.sum() / max_length, num_rows
    raise ValueError(f"aggregation = {how!r}; use 'token_mean', 'sequence_mean' or 'constant'")
