"""The student's loss in the adversarial stage: clipped policy gradient, KL to the reference."""

from dataclasses import dataclass
from typing import Literal

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

PolicyKind = Literal["grpo", "gspo", "cispo"]


@dataclass(frozen=True)
class PolicyOptions:
    """What ``policy_loss`` may be told.

    kind: which ratio is taken, and what is clipped; see ``policy_objective``.
    clip_range: the probability ratio is clipped to [1 - clip_range, 1 + clip_range].
    clip_range_high: the reach above 1, if it is not that below; None: clip_range.
    dual_clip: bound of the ratio at negative advantages; 0: none.
    kl_coef: weight of the KL to the reference in the loss; 0: none.
    kl_estimator: k1, k2 or k3.
    aggregation: mean over all tokens, over responses of their token means, or over responses of
        their token sums divided by max_length.
    max_length: the constant of aggregation "constant".
    tis_cap: cap of the truncated importance weights; 0: no such weights.
    """

    kind: PolicyKind = "grpo"
    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float = 0.0
    kl_coef: float = 0.001
    kl_estimator: KlEstimator = "k3"
    aggregation: Aggregation = "token_mean"
    max_length: int = 0
    tis_cap: float = 0.0

    @property
    def ratio_bounds(self) -> tuple[float, float]:
        """Where the ratio is clipped."""
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        return 1 - self.clip_range, 1 + high


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


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Return the geometric mean of a response's probability ratios, at each of its tokens.

        exp(mean over its tokens of logprobs - old_logprobs)          (arXiv 2507.18071, eq. 7)

    logprobs, old_logprobs: [B, T] float32, 0 outside the mask. response_mask: [B, T] bool. Returns
    [B, T] float32, 1 where there is no token.
    """
    num_tokens = response_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = (logprobs - old_logprobs).sum(dim=-1, keepdim=True) / num_tokens
    ratio = mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return torch.where(response_mask, ratio, torch.ones_like(logprobs))


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, bounds: tuple[float, float], dual_clip: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return PPO's objective per token, to be maximised, and where a clip took effect.

        min(ratio A, clip(ratio, low, high) A)                        (arXiv 1707.06347, eq. 7)
        max(the same, dual_clip A) at A < 0, if dual_clip > 0         (arXiv 1912.09729, eq. 5)

    ratio, advantages: [B, T] float32. bounds: (low, high). Returns [B, T] float32 and [B, T] bool.
    """
    unclipped = ratio * advantages
    clipped = ratio.clamp(*bounds) * advantages
    objective, is_clipped = torch.minimum(unclipped, clipped), clipped < unclipped
    if dual_clip > 0:
        least = dual_clip * advantages
        is_below = (advantages < 0) & (objective < least)
        objective, is_clipped = torch.where(is_below, least, objective), is_clipped | is_below
    return objective, is_clipped


def policy_objective(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Return the objective per token, to be maximised, and where a clip took effect.

        grpo     the clipped surrogate of the token's ratio           (arXiv 2402.03300)
        gspo     the same of the response's ratio                     (arXiv 2507.18071)
        cispo    min(ratio, high) A log pi, the first without gradient: every token keeps one
                                                                      (arXiv 2506.13585, eq. 4)

    cispo has no lower bound, as its authors ran it.

    logprobs: [B, T] float32 with gradient. ratio: [B, T] float32, of the kind. advantages: [B, T]
    float32. Returns [B, T] float32 and [B, T] bool.
    """
    if options.kind == "cispo":
        high = options.ratio_bounds[1]
        weights = ratio.detach().clamp(max=high)
        return weights * advantages * logprobs, ratio > high
    return clipped_surrogate(ratio, advantages, options.ratio_bounds, options.dual_clip)


def policy_loss(output: LanguageOutput, batch: Batch, options: PolicyOptions) -> Loss:
    """Return the loss whose descent raises the probability of responses with positive advantage.

        -objective w + kl_coef kl(policy, reference)                         summed over tokens

    with the objective of ``policy_objective``, and w the truncated importance weight if
    tis_cap > 0, else 1. The KL term is there if kl_coef > 0 and the batch carries ref_logprobs.
    Without old_logprobs in the batch this is its first and only update: the ratio is 1, and its
    gradient that of the log-probability.

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
    if options.kind == "gspo":
        ratio = sequence_ratio(logprobs, old_logprobs, mask)
    else:
        ratio = probability_ratio(logprobs, old_logprobs)
    advantages = zero_outside(batch.advantages, mask)
    objective, is_clipped = policy_objective(logprobs, ratio, advantages, options)
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
    total, count = aggregate(losses, mask, options.aggregation, options.max_length)
    return Loss(total, count, {"loss": (total.detach(), count), **metrics})


def _engine_weights(old_logprobs: Tensor, batch: Batch, cap: float) -> Tensor:
    if batch.rollout_logprobs is None:
        raise ValueError(
            f"tis_cap = {cap} needs the engine's log-probabilities, but batch.rollout_logprobs "
            "is None; use an engine that returns them, or tis_cap = 0"
        )
    rollout_logprobs = zero_outside(batch.rollout_logprobs, batch.response_mask)
    return truncated_importance_weights(old_logprobs, rollout_logprobs, cap)
