"""Length summaries counted by hand."""

import pytest

from megatron_gad.evaluation.lengths import length_ratio, summarise_lengths


def test_lengths_are_counted_in_words_and_marks() -> None:
    summary = summarise_lengths(["a b, c.", "one", "one two", ""])  # 5, 1, 2, 0
    assert summary.mean == 2.0
    assert summary.median == 1.5
    assert summary.p90 == pytest.approx(2 + 0.7 * 3)
    assert summary.longest == 5


def test_the_ratio_is_of_totals() -> None:
    assert length_ratio(["a b c", "a"], ["a b", "a b c d e f"]) == pytest.approx(4 / 8)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="no texts"):
        summarise_lengths([])
    with pytest.raises(ValueError, match="no word"):
        length_ratio(["a"], [""])
