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


def zero_advantage_share(advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Return (groups that teach nothing, groups), the metric as a sum and a count.

    advantages: [P, G] float32.
    """
    is_zero = (advantages == 0).all(dim=-1)
    return masked_count(is_zero), masked_count(torch.ones_like(is_zero))
