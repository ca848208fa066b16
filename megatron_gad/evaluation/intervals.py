"""How far a mean may be trusted: over prompts by the bootstrap, over seeds by Student's t.

A share stays between 0 and 1, and so do both ends of its interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (any statistical table).
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and the range that its true value is taken to lie in."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float],
    generator: np.random.Generator,
    confidence: float = 0.95,
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
    means = np.empty(num_resamples)
    for index in range(num_resamples):
        means[index] = sample[generator.integers(sample.size, size=sample.size)].mean()
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def paired_bootstrap_interval(
    values: Sequence[float],
    baseline: Sequence[float],
    generator: np.random.Generator,
    confidence: float = 0.95,
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


def seeds_interval(shares: Sequence[float]) -> Interval:
    """Return the mean of a share over training seeds with its 95 % interval, inside [0, 1].

    Student's t on the scale of the log odds, carried back to shares:

        logit(m) +- t(n - 1) * s / (sqrt(n) m (1 - m)),   m the mean, s the unbiased std

    s / sqrt(n) is the standard error of m, and 1 / (m (1 - m)) the slope of the logit at m. This
    is the usual interval of a share from few clusters, here the seeds ("logit" in svyciprop of R's
    package survey). Equal shares give an interval of no width. Over 31 seeds the t of 31 is used,
    which errs on the wide side.

    shares: one number between 0 and 1 per seed, such as an accuracy.

    Raises:
        ValueError: fewer than two seeds, which say nothing about their spread, or a number that
            is no share.
    """
    if len(shares) < 2:
        raise ValueError(f"{len(shares)} seeds; give the results of 2 or more")
    outside = [share for share in shares if not 0.0 <= share <= 1.0]
    if outside:
        raise ValueError(f"{outside} are not shares; give numbers from 0 to 1, not per cent")
    count = len(shares)
    mean = math.fsum(shares) / count
    deviation = math.sqrt(math.fsum((share - mean) ** 2 for share in shares) / (count - 1))
    if deviation == 0.0:
        return Interval(mean, mean, mean)
    quantile = _T_QUANTILES[min(count - 1, len(_T_QUANTILES)) - 1]
    half = quantile * deviation / (math.sqrt(count) * mean * (1.0 - mean))
    centre = math.log(mean / (1.0 - mean))
    return Interval(mean, _share(centre - half), _share(centre + half))


def _share(log_odds: float) -> float:
    # tanh neither overflows nor leaves [-1, 1].
    return 0.5 + 0.5 * math.tanh(0.5 * log_odds)
