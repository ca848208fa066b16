"""Advantages relative to a group, against numbers worked out by hand."""

import math

import pytest
import torch

from megatron_gad.algorithms.advantages import (
    group_advantages,
    length_sums,
    without_length,
    zero_advantage_share,
)

KINDS = ("grpo", "dr_grpo", "rloo")
# Mean 3, deviations -2, -1, 0, 3: squares sum to 14, unbiased variance 14 / 3.
REWARDS = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
DEVIATIONS = torch.tensor([[-2.0, -1.0, 0.0, 3.0]])


def test_grpo_divides_by_the_unbiased_std():
    expected = DEVIATIONS / (math.sqrt(14 / 3) + 1e-6)
    torch.testing.assert_close(group_advantages(REWARDS, "grpo"), expected)


def test_grpo_keeps_a_group_of_nearly_equal_rewards_small():
    # A floor of 1e-6 under a spread of that size: std = 1e-6 sqrt(14 / 3).
    expected = DEVIATIONS / (math.sqrt(14 / 3) + 1)
    advantages = group_advantages(1e-6 * REWARDS, "grpo")
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-6)


def test_dr_grpo_only_centres():
    torch.testing.assert_close(group_advantages(REWARDS, "dr_grpo"), DEVIATIONS)


def test_rloo_subtracts_the_mean_of_the_others():
    others = torch.tensor([[11 / 3, 10 / 3, 3.0, 2.0]])
    torch.testing.assert_close(group_advantages(REWARDS, "rloo"), REWARDS - others)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_do_not_see_each_other(kind):
    other = torch.tensor([[100.0, -3.0, 0.5, 7.0]])
    both = group_advantages(torch.cat([REWARDS, other]), kind)
    assert torch.equal(both[:1], group_advantages(REWARDS, kind))
    assert torch.equal(both[1:], group_advantages(other, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_subtracting_the_teachers_score_changes_nothing(kind):
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    teacher_scores = torch.linspace(-4, 4, 5)
    torch.testing.assert_close(
        group_advantages(rewards - teacher_scores[:, None], kind),
        group_advantages(rewards, kind),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_give_exactly_zero(kind, dtype):
    # The mean of seven times 0.1 is not 0.1 in the type that it has.
    rewards = torch.full((2, 7), 0.1, dtype=dtype)
    assert torch.equal(group_advantages(rewards, kind), torch.zeros(2, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_that_is_no_number_stays_visible(kind):
    rewards = torch.tensor([[float("nan"), 1.0], [1.0, 2.0]])
    advantages = group_advantages(rewards, kind)
    assert advantages[0].isnan().all()
    assert advantages[1].isfinite().all()


def test_a_huge_reward_is_compared_like_any_other():
    """Its square overflows float32, and grpo does not depend on the scale."""
    huge = group_advantages(torch.tensor([[3e38, 0.0, 0.0, 0.0]]), "grpo")
    torch.testing.assert_close(huge, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))


def test_rewards_do_not_get_a_gradient():
    rewards = REWARDS.double().requires_grad_()
    advantages = group_advantages(rewards, "grpo")
    assert not advantages.requires_grad
    assert advantages.dtype == torch.float32


def test_zero_advantage_share_counts_groups_that_teach_nothing():
    advantages = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0], [0.0, 0.5]])
    total, count = zero_advantage_share(advantages)
    assert (total.item(), count.item()) == (2.0, 4.0)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match=r"group_size = 1 .* use 2 or more"):
        group_advantages(torch.zeros(3, 1), "rloo")


def test_an_unknown_kind_names_the_allowed_ones():
    with pytest.raises(ValueError, match=r"advantage = 'gae'; use 'grpo'"):
        group_advantages(REWARDS, "gae")  # pyright: ignore[reportArgumentType]


# Log lengths 0, 1, 2 in both groups; rewards rise by 2 and by 1 a unit, on levels of their own.
LENGTHS = torch.tensor([[1.0, math.e, math.e**2], [math.e**2, 1.0, math.e]])
BY_LENGTH = torch.tensor([[5.0, 7.0, 9.0], [-8.0, -10.0, -9.0]])


def test_the_slope_over_log_length_is_fitted_to_all_groups_at_once():
    # Products of deviations: 2 * 2 * 1 and 2 * 1 * 1; squares: 2 and 2.
    torch.testing.assert_close(length_sums(BY_LENGTH, LENGTHS), torch.tensor([6.0, 4.0]).double())
    left = without_length(BY_LENGTH, LENGTHS, slope=1.5)
    expected = torch.tensor([[6.5, 7.0, 7.5], [-8.0 - 1.5, -10.0 + 1.5, -9.0]])
    torch.testing.assert_close(left, expected)


def test_what_is_left_of_the_rewards_has_no_slope_and_the_same_means():
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.randint(1, 90, (5, 4), generator=torch.Generator().manual_seed(1))
    products, squares = length_sums(rewards, lengths).tolist()
    left = without_length(rewards, lengths, products / squares)
    assert abs(products) > 0.5
    assert abs(float(length_sums(left, lengths)[0])) < 1e-5
    torch.testing.assert_close(left.mean(dim=1), rewards.mean(dim=1))


def test_a_group_with_a_reward_that_is_not_finite_leaves_the_slope_alone():
    spoilt = torch.cat([BY_LENGTH, torch.tensor([[1.0, math.inf, math.nan]])])
    lengths = torch.cat([LENGTHS, LENGTHS[:1]])
    assert torch.equal(length_sums(spoilt, lengths), length_sums(BY_LENGTH, LENGTHS))
