"""Length-controlled win rates against scikit-learn, and against AlpacaEval's leaderboard."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from megatron_gad.evaluation.intervals import bootstrap_interval
from megatron_gad.evaluation.length_control import Compared, length_controlled
from tests.unit.evaluation.alpaca_eval import alpaca_eval_file, compared_models

REACHES_PARITY = "FuseChat-Llama-3.2-1B-Instruct"  # the one of about the reference's length
OF_ONE_MODEL = ("gpt-3.5-turbo-1106_concise", "gpt-3.5-turbo-1106", "gpt-3.5-turbo-1106_verbose")


def random_comparison(seed: int, count: int = 300, taste: float = 1.5) -> Compared:
    """A judge that likes length, and a model of the reference's quality whose answers are long."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(40.0, 60.0, size=count)
    chances = 1 / (1 + np.exp(-taste * np.tanh(differences / 60.0)))
    return Compared((generator.random(count) < chances).astype(float), differences)


def test_one_model_has_the_rate_of_a_logistic_regression_at_equal_length() -> None:
    compared = random_comparison(0)
    term = np.tanh(compared.length_differences / compared.length_differences.std(ddof=1))
    features = np.stack([np.ones_like(term), term], axis=1)
    fitted = LogisticRegression(C=100.0, fit_intercept=False, tol=1e-10).fit(
        features, compared.preferences
    )
    expected = 1 / (1 + np.exp(-fitted.coef_[0, 0]))
    (found,) = length_controlled([compared], np.random.default_rng(0))
    assert found.rate.mean == pytest.approx(expected, abs=1e-5)
    assert found.rate.low < expected < found.rate.high
    assert not found.extrapolates


def test_fractions_count_as_so_many_wins_and_rows_without_a_verdict_not_at_all() -> None:
    compared = random_comparison(1, count=60)
    chances = np.where(compared.preferences == 1, 0.8, 0.3)
    with_gaps = Compared(
        np.concatenate([chances, [np.nan] * 20]),
        np.concatenate([compared.length_differences, compared.length_differences[:20]]),
    )
    term = np.tanh(with_gaps.length_differences / with_gaps.length_differences.std(ddof=1))[:60]
    features = np.tile(np.stack([np.ones_like(term), term], axis=1), (2, 1))
    fitted = LogisticRegression(C=100.0, fit_intercept=False, tol=1e-10).fit(
        features, [1] * 60 + [0] * 60, sample_weight=[*chances, *(1 - chances)]
    )
    (found,) = length_controlled([with_gaps], np.random.default_rng(0))
    expected = 1 / (1 + np.exp(-fitted.coef_[0, 0]))
    assert found.rate.mean == pytest.approx(expected, abs=1e-5)
    assert found.rate.count == 60


def test_a_judge_that_only_likes_length_makes_equals_of_all() -> None:
    # A concise, a plain and a verbose model of the same quality: raw rates far apart.
    generator = np.random.default_rng(3)
    compared = []
    for shift in (-50.0, 0.0, 50.0):
        differences = generator.normal(shift, 60.0, size=4000)
        chances = 1 / (1 + np.exp(-3.0 * np.tanh(differences / 60.0)))
        compared.append(Compared((generator.random(4000) < chances).astype(float), differences))
    raw = [each.preferences.mean() for each in compared]
    rates = [each.rate.mean for each in length_controlled(compared, generator)]
    assert raw[2] - raw[0] > 0.4
    assert rates == pytest.approx([0.5] * 3, abs=0.04)


def test_equal_length_beyond_the_lengths_seen_is_flagged() -> None:
    longer = random_comparison(2)
    always = Compared(longer.preferences, np.abs(longer.length_differences) + 1.0)
    (found,) = length_controlled([always], np.random.default_rng(0))
    assert (found.share_longer, found.extrapolates) == (1.0, True)


def test_answers_of_one_length_leave_the_raw_rate() -> None:
    compared = Compared(np.array([1.0, 0.0, 1.0, 0.5] * 50), np.zeros(200))
    (found,) = length_controlled([compared], np.random.default_rng(0))
    assert found.rate.mean == pytest.approx(0.625, abs=1e-3)


def test_bad_input_is_named() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"\[2, 3\] prompts"):
        length_controlled([Compared(np.zeros(3), np.zeros(2))], generator)
    with pytest.raises(ValueError, match="without any verdict"):
        length_controlled([Compared(np.full(3, np.nan), np.zeros(3))], generator)
    with pytest.raises(ValueError, match=r"from 1\.0 to 2\.0"):
        length_controlled([Compared(np.array([1.0, 2.0]), np.zeros(2))], generator)


def test_the_win_rates_of_the_leaderboard_come_out() -> None:
    published = json.loads(alpaca_eval_file("published.json").read_text())
    compared = compared_models()
    assert [*compared] == [*published] and len(compared) == 8
    for model, each in compared.items():
        seen = each.preferences[~np.isnan(each.preferences)]
        raw = bootstrap_interval(list(seen), np.random.default_rng(0))
        assert 100 * raw.mean == pytest.approx(published[model]["win_rate"], abs=0.01)
        # The bootstrap's width is the published standard error's.
        width = 100 * (raw.high - raw.low) / (2 * 1.96)
        assert width == pytest.approx(published[model]["standard_error"], rel=0.1)


def test_length_controlled_rates_are_those_of_the_leaderboard_where_lengths_are_alike() -> None:
    published = json.loads(alpaca_eval_file("published.json").read_text())
    compared = compared_models()
    fits = length_controlled([*compared.values()], np.random.default_rng(0))
    rates = {model: 100 * fit.rate.mean for model, fit in zip(compared, fits, strict=True)}
    expected = published[REACHES_PARITY]["length_controlled_winrate"]
    assert rates[REACHES_PARITY] == pytest.approx(expected, abs=1.0)
    (alone,) = length_controlled([compared[REACHES_PARITY]], np.random.default_rng(0))
    assert 100 * alone.rate.mean == pytest.approx(expected, abs=1.0)
    controlled = [rates[model] for model in OF_ONE_MODEL]
    raw = [published[model]["win_rate"] for model in OF_ONE_MODEL]
    assert max(controlled) - min(controlled) < max(raw) - min(raw)
    extrapolated = {m for m, fit in zip(compared, fits, strict=True) if fit.extrapolates}
    assert extrapolated == {*OF_ONE_MODEL[:2], "alpaca-7b"}
