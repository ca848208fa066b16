"""What a reward adds to the sum, by hand."""

import math

import pytest
import torch

from megatron_gad.algorithms.rewards import weighed_reward

VALUES = torch.tensor([[1.0, 3.0], [-2.0, -2.0]])
BATCH = VALUES.flatten()


def test_weight_and_clip() -> None:
    added = weighed_reward(VALUES, 0.5, 2.0, "none", BATCH)
    torch.testing.assert_close(added, torch.tensor([[0.5, 1.0], [-1.0, -1.0]]))
    assert torch.equal(weighed_reward(VALUES, 1.0, 0.0, "none", BATCH), VALUES)


def test_normalization_over_the_group_leaves_nothing_of_equal_values() -> None:
    added = weighed_reward(VALUES, 2.0, 0.0, "group", BATCH)
    # -1, 1 by sqrt(2), the unbiased std.
    half = 2 / math.sqrt(2)
    torch.testing.assert_close(added, torch.tensor([[-half, half], [0.0, 0.0]]))


def test_normalization_over_the_batch_comes_before_the_clip() -> None:
    # Mean 0, squares 1 + 9 + 4 + 4 = 18, std sqrt(6).
    expected = VALUES / math.sqrt(6)
    torch.testing.assert_close(weighed_reward(VALUES, 1.0, 0.0, "batch", BATCH), expected)
    clipped = weighed_reward(VALUES, 1.0, 1.0, "batch", BATCH)
    torch.testing.assert_close(clipped, expected.clamp(-1, 1))
    spoilt = torch.cat([BATCH, torch.tensor([math.nan, math.inf])])
    torch.testing.assert_close(weighed_reward(VALUES, 1.0, 0.0, "batch", spoilt), expected)


def test_normalization_over_a_batch_of_equal_values_leaves_nothing() -> None:
    equal = torch.full((2, 2), 0.1)
    assert torch.equal(weighed_reward(equal, 1.0, 0.0, "batch", equal.flatten()), torch.zeros(2, 2))


def test_an_unknown_normalization_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="normalization = 'std'; use 'none', 'group' or 'batch'"):
        weighed_reward(VALUES, 1.0, 0.0, "std", BATCH)  # pyright: ignore[reportArgumentType]
