"""What lengths alone say, by hand."""

import torch

from megatron_gad.evaluation.length_only import LengthSums, length_only, length_sums


def sums(differences: list[int], margins: list[float]) -> LengthSums:
    return length_sums(torch.tensor(differences), torch.tensor(margins))


def test_the_rule_comes_from_the_other_half() -> None:
    # Teacher's longer in 3 of 4 pairs; longer in 1 of 3, shorter in 2.
    first = sums([5, 1, 2, -9], [1.0, -1.0, 0.5, 2.0])
    second = sums([-3, 7, -1], [-2.0, -1.0, 3.0])
    # First half: "shorter" is right once in 4. Second half: "longer" is right once in 3.
    # First half: the rule names the teacher's in pair 4, the scores in 1, 3 and 4. They agree on 2
    # and 4. Second half: the rule names the teacher's in pair 2, the scores in 3. They agree on 1.
    assert length_only([first, second]) == {
        "length_only_accuracy": 2 / 7,
        "length_only_agreement": 3 / 7,
    }


def test_length_that_gives_all_away_is_right_whichever_way_it_goes() -> None:
    for sign in (1, -1):
        half = sums([3 * sign, 8 * sign], [1.0, 2.0])
        assert set(length_only([half, half]).values()) == {1.0}


def test_ties_and_guesses_count_half() -> None:
    # A tie of lengths, a tie of scores; the other half says nothing of the first.
    first, second = sums([0, 2, 2], [1.0, 0.0, 1.0]), sums([1, -1], [1.0, 1.0])
    found = length_only([first, second])
    # First half: three guesses. Second half: "longer" is right in one of two.
    assert found == {"length_only_accuracy": 2.5 / 5, "length_only_agreement": 2.5 / 5}
    found = length_only([first, first])
    assert found == {"length_only_accuracy": 5 / 6, "length_only_agreement": 4 / 6}
    assert set(length_only([first, LengthSums()]).values()) == {0.5}
