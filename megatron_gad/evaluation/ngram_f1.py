"""How much of the teacher's wording a response repeats: F1 of shared n-grams.

A student that copies the teacher's phrases scores high even where it answers worse, so this stands
beside a judge's score and does not replace it (arXiv 2511.10643 reports n = 1 to 6).
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, as they are written."""
    return _WORD.findall(text)


def ngram_f1(response: Sequence[Hashable], reference: Sequence[Hashable], n: int) -> float | None:
    """Return the harmonic mean of precision and recall over n-grams, in [0, 1].

    An n-gram counts as often as it occurs in both. Since precision is shared / in response and
    recall is shared / in reference,

        F1 = 2 * shared / (in response + in reference)

    None where both sides are shorter than n, so that there is nothing to compare.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"n = {n}; use 1 or more words in an n-gram")
    left, right = _ngrams(response, n), _ngrams(reference, n)
    total = left.total() + right.total()
    return 2.0 * (left & right).total() / total if total else None


def mean_ngram_f1(
    responses: Sequence[str], references: Sequence[str], largest_n: int = 6
) -> dict[int, float]:
    """Return n -> mean F1 over the pairs of texts, for n from 1 to largest_n.

    Pairs that are shorter than n on both sides are left out; nan where none remains.

    Raises:
        ValueError: not one response per reference.
    """
    if len(responses) != len(references):
        raise ValueError(
            f"{len(responses)} responses and {len(references)} references; give one per prompt"
        )
    pairs = [
        (split_words(response), split_words(reference))
        for response, reference in zip(responses, references, strict=True)
    ]
    means: dict[int, float] = {}
    for n in range(1, largest_n + 1):
        scores = [score for pair in pairs if (score := ngram_f1(*pair, n)) is not None]
        means[n] = sum(scores) / len(scores) if scores else math.nan
    return means


def _ngrams(words: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
