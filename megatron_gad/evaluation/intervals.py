"""How far a mean may be trusted: over prompts by the bootstrap, over seeds by Student's t.

A share stays between 0 and 1, and so do both ends of its interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 200


@dataclass(frozen=True)
class Interval:
    """A mean and the range that its true value is taken to lie in.

    low, high: nan if one value alone says nothing about the spread.
    count: number of prompts or seeds that it is the mean of.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_within_noise(self) -> bool:
        """Whether a difference of 0 is not ruled out; the mean is taken to be a difference."""
        return not (self.low > 0.0 or self.high < 0.0)


def bootstrap_interval(
    values: Sequence[float],
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
    num_resamples: int = 2000,
) -> Interval:
    """Return the mean over prompts with its percentile bootstrap interval.

    Prompts are drawn with replacement, as many as there are; the interval holds the middle
    ``confidence`` of the resampled means (Efron & Tibshirani 1993, chapter 13). It covers the
    choice of prompts, not the randomness of training: for that see ``seeds_interval``.

    values: one number per prompt.

    Raises:
        ValueError: no values, or confidence is not between 0 and 1.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(
            f"values of shape {sample.shape}; give one number per prompt, at least one"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}; use a number between 0 and 1, such as 0.95")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=num_resamples,
        batch=RESAMPLES_AT_ONCE,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), sample.size)


def paired_bootstrap_interval(
    values: Sequence[float],
    baseline: Sequence[float],
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
    num_resamples: int = 2000,
) -> Interval:
    """Return the interval of mean(values) - mean(baseline) over the same prompts.

    Both numbers of a prompt are drawn together, so that prompts that are hard for both do not
    widen the interval.

    Raises:
        ValueError: not one baseline per value, or as in ``bootstrap_interval``.
    """
    if len(values) != len(baseline):
        raise ValueError(
            f"{len(values)} values and {len(baseline)} of the baseline; give both per prompt"
        )
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    return bootstrap_interval(differences, generator, confidence, num_resamples)


def count_interval(num_true: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the share of prompts that something holds for, with Wilson's interval.

    Unlike the bootstrap it has a width if the share is 0 or 1, which few prompts can come to by
    chance.

    Raises:
        ValueError: no prompts, or more that it holds for than there are.
    """
    if not 0 <= num_true <= count or count == 0:
        raise ValueError(f"{num_true} of {count} prompts; give a part of at least one")
    found = stats.binomtest(num_true, count).proportion_ci(confidence, method="wilson")
    return Interval(num_true / count, float(found.low), float(found.high), count)


def seeds_interval(shares: Sequence[float]) -> Interval:
    """Return the mean of a share over training seeds with its 95 % interval, inside [0, 1].

    Student's t on the scale of the log odds, carried back to shares:

        logit(m) +- t(n - 1) * s / (sqrt(n) m (1 - m)),   m the mean, s the unbiased std

    s / sqrt(n) is the standard error of m, and 1 / (m (1 - m)) the slope of the logit at m. This
    is the usual interval of a share from few clusters, here the seeds ("logit" in svyciprop of R's
    package survey). Equal shares give an interval of no width.

    shares: one number between 0 and 1 per seed, such as an accuracy.

    Raises:
        ValueError: fewer than two seeds, which say nothing about their spread, or a number that
            is no share.
    """
    outside = [share for share in shares if not 0.0 <= share <= 1.0]
    if outside:
        raise ValueError(f"{outside} are not shares; give numbers from 0 to 1, not per cent")
    plain = seeds_mean_interval(shares)
    mean = plain.mean
    if plain.low == plain.high:
        return plain
    half = (plain.high - mean) / (mean * (1.0 - mean))
    centre = logit(mean)
    return Interval(mean, float(expit(centre - half)), float(expit(centre + half)), plain.count)


def seeds_mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of any number over training seeds with its 95 % interval of Student's t.

    Raises:
        ValueError: fewer than two seeds, which say nothing about their spread.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds; give the results of 2 or more")
    count = len(values)
    if min(values) == max(values):
        return Interval(values[0], values[0], values[0], count)
    mean = math.fsum(values) / count
    half = stats.t.ppf(0.5 + CONFIDENCE / 2.0, count - 1) * float(stats.sem(values))
    return Interval(mean, float(mean - half), float(mean + half), count)
