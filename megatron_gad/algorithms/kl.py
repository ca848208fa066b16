"""Estimates of KL(policy || reference) from the log-probabilities of sampled tokens.

Source: J. Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.
"""

from typing import Literal

from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]

# exp(20) = 5e8 is far beyond any useful ratio and far below the overflow of float32.
LOG_RATIO_LIMIT = 20.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KlEstimator) -> Tensor:
    """Return a per-token estimate whose mean over samples of the policy is the KL, or near it.

    With d = ref_logprobs - logprobs:

        k1 = -d                 unbiased, noisy, can be negative
        k2 = d^2 / 2            biased, never negative
        k3 = exp(d) - d - 1     unbiased, never negative

    The values and the gradients promise different things. Averaged over samples of the policy,
    the gradient of k2 is that of KL(policy || reference); that of k3 is that of
    KL(reference || policy), near the first while the two are close; that of k1 is zero, so k1
    belongs into a reward or a report and not into a loss.

    Convention: in k3, d is cut to [-20, 20] so that exp stays finite; outside, the estimate is
    constant and has no gradient. The estimate itself is not cut (other codebases cut it at 10,
    which silences just the tokens that moved furthest).

    logprobs, ref_logprobs: the same shape, float32. Returns that shape, with the gradient of
    logprobs. Raises ValueError for unknown kinds.
    """
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        # expm1 keeps small values exact: exp(d) - 1 loses them to rounding in float32.
        bounded = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return bounded.expm1() - bounded
    raise ValueError(f"kl_estimator = {kind!r}; use 'k1', 'k2' or 'k3'")


def sequence_kl(
    logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor, kind: KlEstimator
) -> Tensor:
    """Return the estimate summed over every response, [B] float32 without gradient.

    What is subtracted from the reward of a response when the KL is part of the reward.

    logprobs, ref_logprobs: [B, T] float32. response_mask: [B, T] bool.
    """
    estimates = kl_estimate(logprobs.detach(), ref_logprobs, kind)
    return estimates.masked_fill(~response_mask, 0.0).sum(dim=-1)
