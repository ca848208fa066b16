"""Intervals against closed forms."""

import math

import numpy as np
import pytest

from megatron_gad.evaluation.intervals import (
    bootstrap_interval,
    count_interval,
    paired_bootstrap_interval,
    seeds_interval,
    seeds_mean_interval,
)


def test_the_bootstrap_of_a_share_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 240 + [0.0] * 160
    interval = bootstrap_interval(values, np.random.default_rng(0), num_resamples=8000)
    half = 1.95996 * math.sqrt(0.6 * 0.4 / 400)
    assert interval.mean == 0.6
    assert interval.low == pytest.approx(0.6 - half, abs=0.004)
    assert interval.high == pytest.approx(0.6 + half, abs=0.004)


def test_the_bootstrap_of_two_values_has_its_three_possible_means() -> None:
    # Means of two draws from {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    wide = bootstrap_interval([0.0, 1.0], np.random.default_rng(1), confidence=0.9)
    narrow = bootstrap_interval([0.0, 1.0], np.random.default_rng(1), confidence=0.4)
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = list(np.random.default_rng(3).normal(size=50))
    first = bootstrap_interval(values, np.random.default_rng(7))
    assert first == bootstrap_interval(values, np.random.default_rng(7))
    assert first != bootstrap_interval(values, np.random.default_rng(8))


def test_pairing_removes_what_both_share() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.normal(scale=10.0, size=200)
    values, baseline = list(hardness + 1.0), list(hardness)
    paired = paired_bootstrap_interval(values, baseline, generator)
    assert paired.mean == pytest.approx(1.0)
    assert paired.high - paired.low < 1e-9
    with pytest.raises(ValueError, match="200 values and 199"):
        paired_bootstrap_interval(values, baseline[1:], generator)


def test_five_seeds_take_t_of_four_degrees_of_freedom_on_the_log_odds() -> None:
    # Mean 0.5, s = sqrt(0.1 / 4), t = 2.776, slope of the logit 4:
    # half width 2.776 * 0.15811 / 2.2361 * 4 = 0.78517; 1 / (1 + exp(0.78517)) = 0.31319.
    interval = seeds_interval([0.3, 0.4, 0.5, 0.6, 0.7])
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.31319, abs=1e-4)
    assert interval.high == pytest.approx(1 - 0.31319, abs=1e-4)


def test_an_interval_of_shares_that_are_close_together_is_that_of_students_t() -> None:
    shares = [0.6200, 0.6202, 0.6198, 0.6201, 0.6199]
    interval = seeds_interval(shares)
    half = 2.776 * np.std(shares, ddof=1) / math.sqrt(5)
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-3)
    assert interval.mean - interval.low == pytest.approx(half, rel=1e-3)


def test_no_interval_leaves_the_range_of_a_share() -> None:
    # Student's t alone would end at 0.937 + 2.776 * 0.0963 / 2.2361 = 1.057.
    interval = seeds_interval([0.765, 0.98, 0.98, 0.98, 0.98])
    assert 0.0 < interval.low < interval.mean < interval.high < 1.0
    for shares in ([1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1e-9], [0.0, 1.0]):
        interval = seeds_interval(shares)
        assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0


def test_equal_shares_have_an_interval_of_no_width() -> None:
    for share in (0.0, 0.25, 1.0):
        interval = seeds_interval([share] * 40)
        assert (interval.low, interval.mean, interval.high) == (share, share, share)


def test_one_seed_and_per_cent_are_refused() -> None:
    with pytest.raises(ValueError, match="1 seeds"):
        seeds_interval([0.5])
    with pytest.raises(ValueError, match=r"\[62\.0\] are not shares"):
        seeds_interval([0.5, 62.0])


def test_a_share_of_all_prompts_keeps_a_width() -> None:
    # Wilson's interval of n of n begins at n / (n + z * z).
    everything = count_interval(10, 10)
    assert (everything.mean, everything.count) == (1.0, 10)
    assert everything.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert everything.high == pytest.approx(1.0)
    # 4 of 10: (0.4 + z^2 / 20 +- z sqrt(0.024 + z^2 / 400)) / (1 + z^2 / 10).
    some = count_interval(4, 10)
    assert some.low == pytest.approx(0.16818, abs=1e-4)
    assert some.high == pytest.approx(0.68733, abs=1e-4)
    with pytest.raises(ValueError, match="11 of 10"):
        count_interval(11, 10)


def test_a_mean_over_seeds_is_that_of_students_t() -> None:
    # s = 1, t(2) = 4.30265: 4.30265 / sqrt(3).
    interval = seeds_mean_interval([-1.0, 0.0, 1.0])
    assert interval.count == 3
    assert interval.high == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert interval.low == pytest.approx(-interval.high)


def test_a_difference_is_noise_unless_its_interval_leaves_out_zero() -> None:
    generator = np.random.default_rng(0)
    worse = paired_bootstrap_interval([0.0, 0.1] * 50, [0.5, 0.4] * 50, generator)
    same = paired_bootstrap_interval([0.0, 1.0] * 50, [1.0, 0.0] * 50, generator)
    assert (worse.high < 0, worse.is_within_noise) == (True, False)
    assert (same.mean, same.is_within_noise) == (0.0, True)


def test_one_prompt_says_nothing_about_the_spread() -> None:
    interval = bootstrap_interval([0.7], np.random.default_rng(0))
    assert (interval.mean, interval.count) == (0.7, 1)
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert interval.is_within_noise


def test_bad_input_is_named() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], generator)
    with pytest.raises(ValueError, match=r"confidence = 95"):
        bootstrap_interval([1.0], generator, confidence=95)
