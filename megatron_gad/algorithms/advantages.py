"""From the rewards of a group to the advantages of its responses."""

from typing import Literal

import torch
from torch import Tensor

from megatron_gad.algorithms.masking import masked_count

AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]

# Keeps a group of nearly equal rewards from being blown up to unit size; the value of the method.
STD_FLOOR = 1e-6


def group_advantages(rewards: Tensor, kind: AdvantageKind) -> Tensor:
    """Return the advantage of every response over the others of its group.

    All kinds ignore a constant added to a group's rewards: the discriminator's score has an
    unknown offset per prompt. With r the rewards of a group and m their mean:

        grpo     (r - m) / (std(r) + 1e-6), std with G - 1 in the denominator (arXiv 2402.03300)
        dr_grpo   r - m                                                       (arXiv 2503.20783)
        rloo      r - mean of the G - 1 others = (r - m) G / (G - 1)          (arXiv 2402.14740)

    rewards: [P, G] float, G >= 2. Returns [P, G] float32 without gradient, exactly 0 in a group
    whose rewards are all equal. Raises ValueError for groups of one and for unknown kinds.
    """
    # In float64 no float32 reward is so large that its square overflows.
    rewards = rewards.detach().double()
    group_size = rewards.shape[-1]
    if group_size < 2:
        raise ValueError(
            f"group_size = {group_size} leaves nothing to compare a response with; use 2 or more"
        )
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    if kind == "grpo":
        advantages = centred / (rewards.std(dim=-1, keepdim=True) + STD_FLOOR)
    elif kind == "dr_grpo":
        advantages = centred
    elif kind == "rloo":
        advantages = centred * (group_size / (group_size - 1))
    else:
        raise ValueError(f"advantage = {kind!r}; use 'grpo', 'dr_grpo' or 'rloo'")
    # The mean of equal rewards can be off by a rounding error, which would look like a
    # preference and be divided by a tiny std.
    are_equal = rewards.amax(dim=-1, keepdim=True) == rewards.amin(dim=-1, keepdim=True)
    return torch.where(are_equal, torch.zeros_like(advantages), advantages).float()


def length_sums(rewards: Tensor, lengths: Tensor) -> Tensor:
    """Return what the slope of the reward over log length is the ratio of, [2] float64.

        sum of (r - m) (x - mean x),  sum of (x - mean x)^2        x = log length, means of a group

    Sums of several data ranks add up. A group with a reward that is not finite has no say.

    rewards: [P, G] float32. lengths: [P, G], in tokens.
    """
    centred, centred_x = _centred(rewards), _centred(_log_lengths(lengths))
    is_finite = rewards.isfinite().all(dim=-1, keepdim=True)
    products = torch.where(is_finite, centred * centred_x, 0.0)
    squares = torch.where(is_finite, centred_x.square(), 0.0)
    return torch.stack([products.sum(), squares.sum()])


def without_length(rewards: Tensor, lengths: Tensor, slope: float) -> Tensor:
    """Return the rewards less what their group's lengths explain, [P, G] float32.

        r - slope (x - mean x)                                       x = log length, mean of a group

    With the slope from ``length_sums`` this is the residual of a regression with an intercept for
    every group. One slope serves all groups: that of a group alone would be fitted to its noise,
    and would explain a group of two to the end.

    rewards: [P, G] float32. lengths: [P, G], in tokens.
    """
    return (rewards.double() - slope * _centred(_log_lengths(lengths))).float()


def _log_lengths(lengths: Tensor) -> Tensor:
    return lengths.double().clamp(min=1).log()


def _centred(values: Tensor) -> Tensor:
    values = values.double()
    return values - values.mean(dim=-1, keepdim=True)


def zero_advantage_share(advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Return (groups that teach nothing, groups), the metric as a sum and a count.

    advantages: [P, G] float32.
    """
    is_zero = (advantages == 0).all(dim=-1)
    return masked_count(is_zero), masked_count(torch.ones_like(is_zero))
