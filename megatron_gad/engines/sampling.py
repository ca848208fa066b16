"""Next-token sampling: temperature, and draws that the request's seed decides."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_gad.engines.base import SamplingConfig


def uniform_draws(seeds: Sequence[int], num_draws: int) -> Tensor:
    """Return the uniform numbers that decide every token of every response, drawn up front.

    A row depends on its seed alone, and a shorter row is the beginning of a longer one, so neither
    the batch nor the length cap changes what a request gets.

    Returns [len(seeds), num_draws] float64 in [0, 1).
    """
    draws = np.empty((len(seeds), num_draws))
    for row, seed in enumerate(seeds):
        np.random.Generator(np.random.Philox(key=seed)).random(out=draws[row])
    return torch.from_numpy(draws)


def sample_tokens(
    logits: Tensor, uniforms: Tensor, sampling: SamplingConfig
) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    logits: [B, V] of any float dtype.
    uniforms: [B] float64 in [0, 1); unused at temperature 0.

    Returns token ids [B] int64 and their logprobs [B] float32. The logprobs are those of
    softmax(logits / temperature) over the whole vocabulary: the policy that the student is trained
    as. At temperature 0 they are of softmax(logits).
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        ids = logprobs.argmax(dim=-1)
    else:
        logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
        ids = draw(logprobs.double().exp(), uniforms)
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw by inverting the cumulative distribution over the vocabulary in the order of its ids.

    Unlike the Gumbel trick this is continuous in the weights: a rounding difference of size e
    between two batch layouts changes a draw with a probability of order e. float64, because the
    sum runs over the whole vocabulary.

    weights: [B, V] float64, not negative, not all 0. uniforms: [B] float64 in [0, 1).
    Returns [B] int64; a token of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # uniform * total may round up to total, which would fall behind the last token.
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, total * 0))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
