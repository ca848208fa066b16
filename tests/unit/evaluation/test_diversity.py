"""Diversity counted by hand."""

import math

import pytest

from megatron_gad.evaluation.diversity import self_bleu
from megatron_gad.evaluation.repetition import distinct_ngrams, repetition


def test_distinct_ngrams_are_counted_over_all_texts() -> None:
    texts = ["a b a b", "a b c"]  # pairs: ab ba ab, ab bc
    assert distinct_ngrams(texts, 1) == 3 / 7
    assert distinct_ngrams(texts, 2) == 3 / 5
    assert distinct_ngrams(["a"], 2) is None


def test_a_loop_repeats_itself_and_prose_does_not() -> None:
    # 12 words have 9 runs of four, of which "a b c a", "b c a b" and "c a b c" are different.
    assert repetition("a b c " * 4) == pytest.approx(1 - 3 / 9)
    assert repetition("one two three four five six") == 0.0
    assert repetition("") == 0.0


def test_self_bleu_is_the_mean_bleu_with_the_others_as_references() -> None:
    # Shorter by one of five words: all of it is in the other, brevity penalty exp(1 - 5 / 4).
    # Longer by one: 4/5 of the words, 3/4, 2/3 and 1/2 of the longer n-grams, geometric mean.
    shorter, longer = math.exp(-0.25), (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d", "a b c d e"]) == pytest.approx((shorter + longer) / 2)
    assert self_bleu(["the same words here"] * 3) == pytest.approx(1.0)
    assert self_bleu(["alone"]) is None
