"""Sums over the tokens of responses. A masked value never reaches the result, NaN included."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean"]


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
    token_values: Tensor, response_mask: Tensor, how: Aggregation
) -> tuple[Tensor, Tensor]:
    """Return a sum over responses and the count that makes it a mean, each a scalar.

    Sums and counts of several microbatches add up to those of the batch, so that the mean does
    not depend on how the rows were split. token_mean: the sum over tokens, the number of tokens;
    a long response weighs more. sequence_mean: the sum over rows of the row's token mean, the
    number of rows that have a token; every response weighs the same.

    token_values: [B, T] float. response_mask: [B, T] bool.
    """
    if how == "token_mean":
        return masked_sum(token_values, response_mask), masked_count(response_mask)
    if how == "sequence_mean":
        num_tokens = response_mask.sum(dim=-1)
        row_sums = zero_outside(token_values, response_mask).sum(dim=-1)
        row_means = row_sums / num_tokens.clamp(min=1)
        return row_means.sum(), masked_count(num_tokens > 0)
    raise ValueError(f"aggregation = {how!r}; use 'token_mean' or 'sequence_mean'")
