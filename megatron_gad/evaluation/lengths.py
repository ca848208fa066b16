"""How long responses are, beside the teacher's: length is what adversarial training drifts in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_gad.evaluation.ngram_f1 import split_words


@dataclass(frozen=True)
class LengthSummary:
    """Lengths in words, a punctuation mark counting as one.

    median, p90: the values that half and nine tenths of the responses do not exceed, interpolated
        between neighbours.
    """

    mean: float
    median: float
    p90: float
    longest: int


def summarise_lengths(texts: Sequence[str]) -> LengthSummary:
    """Return the lengths of texts in words.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("no texts; give at least one response")
    lengths = np.array([len(split_words(text)) for text in texts])
    return LengthSummary(
        mean=float(lengths.mean()),
        median=float(np.quantile(lengths, 0.5)),
        p90=float(np.quantile(lengths, 0.9)),
        longest=int(lengths.max()),
    )


def length_ratio(responses: Sequence[str], references: Sequence[str]) -> float:
    """Return total words of the responses over total words of the references.

    The ratio of totals, not the mean of ratios, which one short reference would rule.

    Raises:
        ValueError: the references hold no word.
    """
    total = sum(len(split_words(text)) for text in references)
    if total == 0:
        raise ValueError("the references hold no word, so there is no length to compare with")
    return sum(len(split_words(text)) for text in responses) / total
