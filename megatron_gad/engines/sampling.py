"""Next-token sampling: temperature, top-k, top-p, and draws that the request's seed decides."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

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
    softmax(logits / temperature) over the whole vocabulary, before top-k and top-p remove anything:
    the policy that the student is trained as. At temperature 0 they are of softmax(logits).
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        ids = logprobs.argmax(dim=-1)
    else:
        logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
        ids = draw(candidates(logprobs, sampling.top_k, sampling.top_p), uniforms)
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]


def candidates(logprobs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return probabilities with 0 for the tokens that top-k and top-p exclude, not renormalised.

    Top-k comes first and top-p counts its share of what is left: the likeliest tokens are kept
    until together they reach ``top_p``. Of equally likely tokens the smaller id comes first.

    logprobs: [B, V] float32. Returns [B, V] float64.
    """
    probabilities = logprobs.double().exp()
    if top_k == 0 and top_p == 1.0:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        ordered[:, top_k:] = 0.0
    cumulative = ordered.cumsum(dim=-1)
    mass_before = pad(cumulative[:, :-1], (1, 0))
    kept = torch.where(mass_before < top_p * cumulative[:, -1:], ordered, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, ids, kept)


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
    # uniform * total may round up to total, which would fall behind the last candidate.
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, total * 0))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
