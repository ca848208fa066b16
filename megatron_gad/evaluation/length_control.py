"""Win rates against one reference, raw, and as they would be with answers of its length.

The length-controlled rate is that of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): a
logistic regression explains every preference, and its length term is then set to 0,

    P(m wins on i) = sigmoid( quality_m + taste_m * tanh(d_mi / std_m) + slope_m * difficulty_i )
    rate_m = mean over i of sigmoid( quality_m + slope_m * difficulty_i )

d_mi is the length of the model's answer less that of the reference, std_m its standard deviation.
AlpacaEval has the difficulties from its leaderboard. Here those of a model come from the other
models that are compared: from the same regression of theirs, fitted with the difficulties unknown,
slopes and difficulties having standard normal priors. Its own verdicts have no part in them, since
a difficulty would else explain the chance in a verdict. A single model has no difficulty term.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from megatron_gad.evaluation.intervals import Interval

Numbers = NDArray[np.float64]

# Below this share of answers that are longer, or that are shorter, than the reference's, equal
# length is outside of the middle nine tenths of what was seen.
LEAST_ON_EACH_SIDE = 0.05
# Precision of the prior of quality and taste: a model that never wins has finite numbers.
WEAK = 1e-2
NEWTON_STEPS = 50
NUM_RESAMPLES = 500


@dataclass(frozen=True)
class Compared:
    """A model's answers beside those of the reference, prompt by prompt.

    preferences: [N] float64, 1 the model wins, 0 the reference, 0.5 a tie; nan: no verdict.
    length_differences: [N] float64, length of the model's answer less that of the reference.
    """

    preferences: Numbers
    length_differences: Numbers


@dataclass(frozen=True)
class LengthControlled:
    """The rate at equal length.

    rate: with its interval over prompts, given the difficulties.
    share_longer: share of the answers that are longer than the reference's.
    extrapolates: hardly any answer is longer, or shorter, so that the rate at equal length is
        about lengths that were not seen.
    """

    rate: Interval
    share_longer: float
    extrapolates: bool


def length_controlled(
    compared: Sequence[Compared], generator: np.random.Generator, confidence: float = 0.95
) -> list[LengthControlled]:
    """Return the length-controlled win rate, from 0 to 1, of every model.

    compared: the models, over the same prompts in the same order.

    Raises:
        ValueError: other numbers of prompts, a preference that is no share, or no verdict at all.
    """
    _check(compared)
    terms = [_length_term(each.length_differences) for each in compared]
    controlled: list[LengthControlled] = []
    for number, (each, term) in enumerate(zip(compared, terms, strict=True)):
        others = [*compared[:number], *compared[number + 1 :]]
        difficulties = _fit_difficulties(others, [*terms[:number], *terms[number + 1 :]], len(term))
        controlled.append(_control(each, term, difficulties, generator, confidence))
    return controlled


def _check(compared: Sequence[Compared]) -> None:
    sizes = {len(x) for each in compared for x in (each.preferences, each.length_differences)}
    if len(sizes) != 1:
        raise ValueError(f"{sorted(sizes)} prompts; give all models' numbers over the same ones")
    for each in compared:
        seen = each.preferences[~np.isnan(each.preferences)]
        if seen.size == 0:
            raise ValueError("a model without any verdict has no win rate; leave it out")
        if seen.min() < 0.0 or seen.max() > 1.0:
            raise ValueError(
                f"preferences from {seen.min()} to {seen.max()}; give 1 for a win of the model, 0 "
                "for a loss"
            )


def _length_term(differences: Numbers) -> Numbers:
    spread = differences.std(ddof=1) if differences.size > 1 else 0.0
    return np.tanh(differences / spread) if spread > 0.0 else np.zeros_like(differences)


def _fit_difficulties(
    compared: Sequence[Compared], terms: Sequence[Numbers], num_prompts: int
) -> Numbers:
    """Return the difficulty of every prompt for some models, [N]: the mode of the posterior."""
    num_models = len(compared)
    if num_models == 0:
        return np.zeros(num_prompts)
    preferences = np.stack([each.preferences for each in compared])
    is_seen = ~np.isnan(preferences)
    wins = np.where(is_seen, preferences, 0.0)
    term = np.stack(terms)

    def loss(flat: Numbers) -> tuple[float, Numbers]:
        quality, taste, slope = flat[: 3 * num_models].reshape(3, num_models)
        difficulty = flat[3 * num_models :]
        logits = quality[:, None] + taste[:, None] * term + slope[:, None] * difficulty
        errors = np.where(is_seen, expit(logits) - wins, 0.0)
        gradient = [
            errors.sum(1) + WEAK * quality,
            (errors * term).sum(1) + WEAK * taste,
            (errors * difficulty).sum(1) + slope,
            (errors * slope[:, None]).sum(0) + difficulty,
        ]
        likelihood = np.where(is_seen, np.logaddexp(0.0, logits) - wins * logits, 0.0).sum()
        prior = WEAK * (quality @ quality + taste @ taste) + slope @ slope + difficulty @ difficulty
        return float(likelihood + prior / 2.0), np.concatenate(gradient)

    # Slopes of 1 say that what is hard for one model is hard for all; at 0 nothing would move.
    begin = np.zeros(3 * num_models + num_prompts)
    begin[2 * num_models : 3 * num_models] = 1.0
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    return found.x[3 * num_models :]


def _control(
    compared: Compared,
    term: Numbers,
    difficulties: Numbers,
    generator: np.random.Generator,
    confidence: float,
) -> LengthControlled:
    is_seen = ~np.isnan(compared.preferences)
    wins = compared.preferences[is_seen]
    features = np.stack([np.ones_like(wins), term[is_seen], difficulties[is_seen]], axis=1)
    rate = _rate_at_equal_length(features, wins)
    rates = np.empty(NUM_RESAMPLES)
    for number in range(NUM_RESAMPLES):
        drawn = generator.integers(wins.size, size=wins.size)
        rates[number] = _rate_at_equal_length(features[drawn], wins[drawn])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(rates, [tail, 1.0 - tail])
    longer = float(np.mean(compared.length_differences > 0.0))
    shorter = float(np.mean(compared.length_differences < 0.0))
    return LengthControlled(
        rate=Interval(rate, float(low), float(high), wins.size),
        share_longer=longer,
        extrapolates=min(longer, shorter) < LEAST_ON_EACH_SIDE,
    )


def _rate_at_equal_length(features: Numbers, wins: Numbers) -> float:
    """Return the mean prediction without the length term, by Newton's method.

    features: [N, 3]: 1, length term, difficulty. wins: [N].
    """
    precision = np.array([WEAK, WEAK, 1.0])
    weights = np.zeros(3)
    for _ in range(NEWTON_STEPS):
        chances = expit(features @ weights)
        gradient = features.T @ (chances - wins) + precision * weights
        spread = chances * (1.0 - chances)
        curvature = features.T @ (features * spread[:, None]) + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    return float(expit(features[:, [0, 2]] @ weights[[0, 2]]).mean())
