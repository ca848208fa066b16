"""Several rewards of a response become one."""

from typing import Literal

from torch import Tensor

from megatron_gad.algorithms.advantages import STD_FLOOR, group_advantages

Normalization = Literal["none", "group", "batch"]


def weighed_reward(
    values: Tensor, weight: float, clip: float, normalization: Normalization, batch: Tensor
) -> Tensor:
    """Return what a reward adds to the sum.

        weight clip((r - mean) / (std + 1e-6), -clip, clip)

    with mean and unbiased std of the group, or of the batch; without normalization of r itself. Of
    a group or batch of equal rewards nothing is left.

    values: [P, G] float32. clip: 0 for none. batch: [N] float32, the values of all responses of the
    step, on all data ranks; those that are not finite have no say. Returns [P, G] float32.
    """
    if normalization == "group":
        values = group_advantages(values, "grpo")
    elif normalization == "batch":
        known = batch[batch.isfinite()].double()
        centred = values.double() - known.mean()
        is_even = len(known) < 2 or bool((known == known[0]).all())
        values = (centred * 0 if is_even else centred / (known.std() + STD_FLOOR)).float()
    elif normalization != "none":
        raise ValueError(f"normalization = {normalization!r}; use 'none', 'group' or 'batch'")
    if clip > 0:
        values = values.clamp(-clip, clip)
    return weight * values
