"""n-gram overlap against examples counted by hand."""

import math

import pytest

from megatron_gad.evaluation.ngram_f1 import mean_ngram_f1, ngram_f1, split_words


def test_unigrams_count_as_often_as_they_occur_in_both() -> None:
    # Shared: the x1 (1 of 2 and 3), cat x1. 2 * 2 / (4 + 5).
    response = ["the", "cat", "the", "end"]
    reference = ["the", "cat", "sat", "on", "mat"]
    assert ngram_f1(response, reference, 1) == pytest.approx(4 / 9)


def test_bigrams_see_the_order() -> None:
    # a b, b c, c d against b a, a b, b c: two shared of three and three.
    assert ngram_f1(list("abcd"), list("babc"), 2) == pytest.approx(2 / 3)
    assert ngram_f1(list("abcd"), list("dcba"), 2) == 0.0


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    precision, recall = 2 / 2, 2 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert ngram_f1(list("ab"), list("abcdef"), 1) == pytest.approx(expected)


def test_one_empty_side_scores_zero_and_two_are_left_out() -> None:
    assert ngram_f1([], ["a"], 1) == 0.0
    assert ngram_f1([], [], 1) is None
    assert ngram_f1(["a"], ["a"], 2) is None
    assert ngram_f1(["a"], ["a", "b"], 2) == 0.0


def test_the_mean_is_over_pairs_and_leaves_out_what_is_too_short() -> None:
    means = mean_ngram_f1(["a b c.", "x"], ["a b c.", "y"], largest_n=5)
    assert means[1] == pytest.approx((1.0 + 0.0) / 2)
    assert means[2] == 1.0
    assert means[4] == 1.0
    assert math.isnan(means[5])
    assert list(mean_ngram_f1(["a"], ["a"])) == [1, 2, 3, 4, 5, 6]


def test_punctuation_marks_are_words_and_case_is_kept() -> None:
    assert split_words("So, it's Größe 10.") == ["So", ",", "it", "'", "s", "Größe", "10", "."]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="n = 0"):
        ngram_f1(["a"], ["a"], 0)
    with pytest.raises(ValueError, match="2 responses and 1 references"):
        mean_ngram_f1(["a", "b"], ["a"])
