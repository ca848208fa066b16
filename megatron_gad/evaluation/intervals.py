"""How far a mean may be trusted: over prompts by the bootstrap, over seeds by Student's t."""

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


def seeds_interval(values: Sequence[float]) -> Interval:
    """Return the mean over training seeds with its 95 % interval, taking runs as normal.

        mean +- t(n - 1) * s / sqrt(n),   s the unbiased standard deviation

    Over 31 seeds the t of 31 is used, which errs on the wide side.

    Raises:
        ValueError: fewer than two seeds, which say nothing about their spread.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds; give the results of 2 or more")
    count = len(values)
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _T_QUANTILES[min(count - 1, len(_T_QUANTILES)) - 1] * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)
