"""Shares of a batch have every item once and cost about the same."""

import random
from collections.abc import Sequence

import pytest

from megatron_gad.data.balance import balanced_shares, group_cost, prompt_cost
from megatron_gad.types import Group, Prompt, Rollout


def test_the_longest_goes_where_least_is() -> None:
    # 7 | 6 5, then 4 to the 7, 3 to either's 11: the first; 2 to the second.
    assert balanced_shares([5, 7, 6, 2, 4, 3], 2) == [[1, 4, 5], [0, 2, 3]]
    assert balanced_shares([5, 7, 6], 1) == [[0, 1, 2]]


def test_items_without_cost_are_spread_too() -> None:
    assert balanced_shares([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]


def shares_by_search(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Longest first to the least share: of equal ones to that of fewest items, then the first."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals = [0.0] * num_shares
    for item in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        least = 0
        for share in range(1, num_shares):
            if (totals[share], len(shares[share])) < (totals[least], len(shares[least])):
                least = share
        shares[least].append(item)
        totals[least] += costs[item]
    return [sorted(share) for share in shares]


@pytest.mark.parametrize("num_shares", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("most", [0, 3, 1000])
def test_shares_are_those_that_a_search_of_every_share_finds(num_shares: int, most: int) -> None:
    """All ranks and all runs share out alike, above all where costs are equal."""
    draws = random.Random(num_shares)
    for num_items in (0, 1, num_shares, 5 * num_shares + 1, 200):
        whole = [draws.randint(0, most) for _ in range(num_items)]
        parts = [cost / 7 for cost in whole]
        for costs in (whole, parts):
            assert balanced_shares(costs, num_shares) == shares_by_search(costs, num_shares)


@pytest.mark.parametrize("num_shares", [2, 4, 8])
def test_shares_are_even_on_a_realistic_mix(num_shares: int) -> None:
    draws = random.Random(num_shares)
    # Groups of eight responses for each of eight prompts a rank.
    costs = [
        sum(draws.lognormvariate(6, 0.8) for _ in range(8)) * draws.lognormvariate(0, 0.3)
        for _ in range(8 * num_shares)
    ]
    shares = balanced_shares(costs, num_shares)
    assert sorted(item for share in shares for item in share) == list(range(len(costs)))
    totals = [sum(costs[item] for item in share) for share in shares]
    assert max(totals) < 1.05 * sum(costs) / num_shares


def test_a_group_costs_the_tokens_of_both_models() -> None:
    prompt = Prompt(0, ({"role": "user", "content": "x"},), "y", ids=(1, 2, 3), teacher_ids=(4, 5))
    rollouts = (
        Rollout((6,), (-1.0,), "stop", 1, text_ids=(6,)),
        Rollout((6, 7, 8), (-1.0,) * 3, "stop", 1, text_ids=(6, 7)),
    )
    # The student: 4 + 6. The discriminator: 5, 4 and 5.
    assert group_cost(Group(prompt, rollouts)) == 10 + 14
    # With the prompt once for the student, for the discriminator, and for both.
    group = Group(prompt, rollouts)
    assert group_cost(group, student_shares=True) == 10 + 14 - 3
    assert group_cost(group, discriminator_shares=True) == 10 + 14 - 6
    assert group_cost(group, student_shares=True, discriminator_shares=True) == 10 + 14 - 9
    # Of texts that equal another, or the teacher's, nothing is added to what it reads.
    again = (rollouts[1], Rollout((4, 5), (-1.0,) * 2, "stop", 1, text_ids=(4, 5)))
    assert group_cost(Group(prompt, rollouts + again)) == 10 + 11 + 14
    assert prompt_cost(prompt) == 5
