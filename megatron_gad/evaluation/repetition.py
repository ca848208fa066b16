"""How much texts repeat: each other, and themselves."""

from collections.abc import Sequence

from megatron_gad.evaluation.ngram_f1 import split_words

REPEATED_N = 4


def distinct_ngrams(texts: Sequence[str], n: int) -> float | None:
    """Return the share of n-grams that are different ones, over all texts together.

    It falls with the number of texts and their length, so compare equal numbers of prompts (Li et
    al. 2016, arXiv 1510.03055). None if no text has n words.
    """
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def repetition(text: str) -> float:
    """Return the share of the text's runs of 4 words that occurred in it before; 0 if it is short.

    Text that loops is near 1.
    """
    ngrams = _ngrams(text, REPEATED_N)
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = split_words(text)
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
