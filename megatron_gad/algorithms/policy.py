"""The student's loss in the adversarial stage: clipped policy gradient, KL to the reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_gad.algorithms.kl import LOG_RATIO_LIMIT, KlEstimator, kl_estimate
from megatron_gad.algorithms.masking import (
    Aggregation,
    aggregate,
    masked_count,
    masked_sum,
    zero_outside,
)
from megatron_gad.types import Batch, LanguageOutput, Loss


@dataclass(frozen=True)
class PolicyOptions:
    """What ``policy_loss`` may be told.

    clip_range: the probability ratio is clipped to [1 - clip_range, 1 + clip_range].
    kl_coef: weight of the KL to the reference in the loss; 0: none.
    kl_estimator: k1, k2 or k3.
    aggregation: mean over all tokens, or over responses of their token means.
    tis_cap: cap of the truncated importance weights; 0: no such weights.
    """

    clip_range: float = 0.2
    kl_coef: float = 0.001
    kl_estimator: KlEstimator = "k3"
    aggregation: Aggregation = "token_mean"
    tis_cap: float = 0.0


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Return exp(logprobs - old_logprobs), with the exponent cut to [-20, 20] to stay finite.

    logprobs, old_logprobs: the same shape, float32.
    """
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def truncated_importance_weights(logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> Tensor:
    """Return min(trainer's probability / engine's probability, cap), without gradient.

    Weighting a token's loss with it corrects for an engine that does not sample from quite the
    distribution that the trainer computes; the cap bounds the variance
    (https://fengyao.notion.site/off-policy-rl, "truncated importance sampling").

    logprobs: [B, T] float32, the trainer's from before the update.
    rollout_logprobs: [B, T] float32, the engine's. Returns [B, T] float32 in (0, cap].
    """
    return probability_ratio(logprobs, rollout_logprobs).clamp(max=cap).detach()


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Return PPO's objective per token, to be maximised, and where the clip took effect.

        min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range) A)      (arXiv 1707.06347, eq. 7)

    ratio, advantages: [B, T] float32. Returns [B, T] float32 and [B, T] bool.
    """
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return torch.minimum(unclipped, clipped), clipped < unclipped


def policy_loss(output: LanguageOutput, batch: Batch, options: PolicyOptions) -> Loss:
    """Return the loss whose descent raises the probability of responses with positive advantage.

        -min(ratio A, clip(ratio) A) w + kl_coef kl(policy, reference)       summed over tokens

    with w the truncated importance weight where tis_cap > 0, else 1. The KL term is there where
    kl_coef > 0 and the batch carries ref_logprobs. Without old_logprobs in the batch this is its
    first and only update: the ratio is 1, and its gradient that of the log-probability.

    batch.advantages is needed, and batch.rollout_logprobs where tis_cap > 0. Raises ValueError
    where one is missing. Metrics are means over tokens, but for "loss": loss, entropy,
    clipped_share, ratio_mean; kl where the batch carries ref_logprobs; tis_weight_mean and
    tis_capped_share, the share of weights at the cap, where tis_cap > 0.
    """
    mask = batch.response_mask
    if batch.advantages is None:
        raise ValueError("batch.advantages is None; policy_loss needs batch.with_advantages(...)")
    logprobs = zero_outside(output.logprobs, mask)
    old = output.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    old_logprobs = zero_outside(old, mask)
    ratio = probability_ratio(logprobs, old_logprobs)
    advantages = zero_outside(batch.advantages, mask)
    objective, is_clipped = clipped_surrogate(ratio, advantages, options.clip_range)
    losses = -objective
    metrics = {
        "entropy": (masked_sum(output.entropy.detach(), mask), masked_count(mask)),
        "clipped_share": (masked_count(is_clipped & mask), masked_count(mask)),
        "ratio_mean": (masked_sum(ratio.detach(), mask), masked_count(mask)),
    }
    if options.tis_cap > 0:
        weights = _engine_weights(old_logprobs, batch, options.tis_cap)
        losses = losses * weights
        metrics["tis_weight_mean"] = (masked_sum(weights, mask), masked_count(mask))
        at_cap = (weights >= options.tis_cap) & mask
        metrics["tis_capped_share"] = (masked_count(at_cap), masked_count(mask))
    if batch.ref_logprobs is not None:
        ref_logprobs = zero_outside(batch.ref_logprobs, mask)
        kl = kl_estimate(logprobs, ref_logprobs, options.kl_estimator)
        metrics["kl"] = (masked_sum(kl.detach(), mask), masked_count(mask))
        if options.kl_coef > 0:
            losses = losses + options.kl_coef * kl
    total, count = aggregate(losses, mask, options.aggregation)
    return Loss(total, count, {"loss": (total.detach(), count), **metrics})


def _engine_weights(old_logprobs: Tensor, batch: Batch, cap: float) -> Tensor:
    if batch.rollout_logprobs is None:
        raise ValueError(
            f"tis_cap = {cap} needs the engine's log-probabilities, but batch.rollout_logprobs "
            "is None; use an engine that returns them, or tis_cap = 0"
        )
    rollout_logprobs = zero_outside(batch.rollout_logprobs, batch.response_mask)
    return truncated_importance_weights(old_logprobs, rollout_logprobs, cap)
