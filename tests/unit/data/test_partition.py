"""Microbatches hold every row once, keep to their bound, and have little padding."""

import math
import random
from collections.abc import Sequence

import pytest

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.data.partition import MicrobatchBound, partition_units
from megatron_gad.training.settings import TrainerSettings

LENGTHS = [3, 9, 2, 8, 4]


def by_tokens(max_tokens: int, is_packed: bool = False, multiple_of: int = 1) -> MicrobatchBound:
    return MicrobatchBound(1, max_tokens, multiple_of, is_packed)


def by_rows(rows: int, is_packed: bool = False) -> MicrobatchBound:
    return MicrobatchBound(rows, is_packed=is_packed)


def partition_rows(lengths: Sequence[int], unit: int, bound: MicrobatchBound) -> list[list[int]]:
    """The rows of every microbatch; ``unit`` adjacent ones stay together."""
    rows = range(len(lengths))
    units = [rows[start : start + unit] for start in range(0, len(rows), unit)]
    parts = partition_units([[lengths[row] for row in unit] for unit in units], bound)
    return [[row for number in part for row in units[number]] for part in parts]


def test_a_bound_by_rows_sorts_padded_rows_and_keeps_the_order_of_packed_ones() -> None:
    assert partition_rows(LENGTHS, 1, by_rows(2)) == [[1, 3], [4, 0], [2]]
    assert partition_rows(LENGTHS, 1, by_rows(2, is_packed=True)) == [[0, 1], [2, 3], [4]]
    six = [1, 2, 3, 4, 5, 6]
    for rows in (2, 5):
        assert partition_rows(six, 3, by_rows(rows)) == [[3, 4, 5], [0, 1, 2]]
        assert partition_rows(six, 3, by_rows(rows, is_packed=True)) == [[0, 1, 2], [3, 4, 5]]
    assert partition_rows(six, 3, by_rows(7)) == [[3, 4, 5, 0, 1, 2]]
    assert partition_rows([4, 4, 4], 1, by_rows(2)) == [[0, 1], [2]]


def test_units_of_different_numbers_of_rows_keep_to_the_bound() -> None:
    units = [[3, 1], [9], [2, 2, 2, 2], [8], [4, 4]]
    # By rows, sorted by the longest; packed, in their order.
    assert partition_units(units, by_rows(4)) == [[1, 3, 4], [0], [2]]
    assert partition_units(units, by_rows(4, is_packed=True)) == [[0, 1], [2], [3, 4]]
    # 2 x 9, 4 x 4 and 4 x 2.
    assert partition_units(units, by_tokens(24)) == [[1, 3], [4, 0], [2]]
    # 9 + 8 + 4, then 8 + 8.
    assert partition_units(units, by_tokens(21, is_packed=True)) == [[1, 2, 0], [3, 4]]


def test_padded_rows_of_similar_length_meet() -> None:
    # 9 alone: with 8 it would be 2 x 9. Then 2 x 8, then 2 x 3.
    assert partition_rows(LENGTHS, 1, by_tokens(16)) == [[1], [3, 4], [0, 2]]


def test_packed_rows_fill_what_is_left() -> None:
    # 9 + 4, and 8 + 3 + 2.
    assert partition_rows(LENGTHS, 1, by_tokens(13, is_packed=True)) == [[1, 4], [3, 0, 2]]


def test_whole_groups_stay_together_in_their_order() -> None:
    lengths = [1, 2, 7, 6, 5, 1]
    # As wide as 7, 6 and 2; then 15 real tokens in two groups.
    assert partition_rows(lengths, 2, by_tokens(12)) == [[2, 3], [4, 5], [0, 1]]
    assert partition_rows(lengths, 2, by_tokens(20)) == [[2, 3], [4, 5, 0, 1]]
    assert partition_rows(lengths, 2, by_tokens(9, is_packed=True)) == [[2, 3], [4, 5, 0, 1]]


def test_rounding_up_counts() -> None:
    assert by_tokens(16, multiple_of=8).num_tokens([9, 3]) == 32
    assert by_tokens(16, is_packed=True, multiple_of=8).num_tokens([9, 3]) == 16
    assert partition_rows([5, 5, 5], 1, by_tokens(10)) == [[0, 1], [2]]
    assert partition_rows([5, 5, 5], 1, by_tokens(10, multiple_of=8)) == [[0], [1], [2]]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("unit", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 30, 100, 10_000])
def test_every_row_is_in_one_microbatch_that_keeps_to_the_bound(
    max_tokens: int, unit: int, is_packed: bool
) -> None:
    draws = random.Random(max_tokens)
    lengths = [draws.randint(1, 40) for _ in range(60)]
    bound = by_tokens(max_tokens, is_packed, multiple_of=2)
    parts = partition_rows(lengths, unit, bound)
    assert sorted(row for part in parts for row in part) == list(range(60))
    for part in parts:
        assert bound.num_tokens([lengths[row] for row in part]) <= max_tokens or len(part) == unit
        for i in range(0, len(part), unit):
            assert part[i] % unit == 0
            assert part[i : i + unit] == list(range(part[i], part[i] + unit))


GROUP_SIZE = 8


def realistic_groups(num_prompts: int) -> list[list[int]]:
    """Lengths of the rows of each group, the teacher's first.

    Responses are log-normal with cap 1536 and then of mean 400, prompts log-normal of mean 150.
    """
    draws = random.Random(0)

    def log_normal(mean: float, sigma: float, cap: int) -> int:
        length = draws.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
        return max(1, min(cap, round(length)))

    prompts = [log_normal(150, 0.7, 2048) for _ in range(num_prompts)]
    groups = [[log_normal(415, 0.8, 1536) for _ in range(1 + GROUP_SIZE)] for _ in prompts]
    assert 380 < sum(map(sum, groups)) / (9 * num_prompts) < 420
    assert 130 < sum(prompts) / num_prompts < 170
    return [[prompt + length for length in g] for prompt, g in zip(prompts, groups, strict=True)]


def padding_share(lengths: Sequence[int], unit: int, bound: MicrobatchBound) -> float:
    parts = partition_rows(lengths, unit, bound)
    computed = sum(bound.num_tokens([lengths[row] for row in part]) for part in parts)
    return 1 - sum(lengths) / computed


def test_padding_is_below_a_tenth_on_a_realistic_length_mix() -> None:
    """One data rank's 32 prompts, at the default settings first."""
    groups = realistic_groups(32)
    student = [length for group in groups for length in group[1:]]
    pairs = [length for group in groups for length in group]
    rows = 1 + GROUP_SIZE
    packed, padded = (
        TrainerSettings(ParallelConfig(context_parallel_size=size), ComputeConfig(), seed=0)
        for size in (1, 2)
    )
    for lengths, unit in ((student, 1), (pairs, rows)):
        assert padding_share(lengths, unit, packed.microbatch_bound()) == 0
    default = padded.microbatch_bound()
    assert padding_share(student, 1, default) == pytest.approx(0.023, abs=0.005)
    # A group has long rows and short ones: no choice of groups helps, packing or cutting does.
    assert padding_share(pairs, rows, default) == pytest.approx(0.52, abs=0.01)
    assert padding_share(pairs, 1, default) == pytest.approx(0.022, abs=0.005)

    fours = [student[i : i + 4] for i in range(0, len(student), 4)]
    in_order = sum(4 * max(lengths) for lengths in fours)
    assert 1 - sum(student) / in_order == pytest.approx(0.41, abs=0.01)

    assert padding_share(student, 1, by_tokens(8192)) == pytest.approx(0.055, abs=0.01)
    assert padding_share(pairs, rows, by_tokens(8192)) == pytest.approx(0.52, abs=0.01)
    assert padding_share(pairs, rows, by_tokens(8192, is_packed=True)) == 0
    assert padding_share(pairs, 1, by_tokens(8192)) == pytest.approx(0.052, abs=0.01)
