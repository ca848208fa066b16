"""Which of a teacher's answers a student's samples are nearest to."""

import pytest

from megatron_gad.evaluation.coverage import Coverage, coverage

EAST = "go east along the old river road"
EAST_AGAIN = "go east along the old river road today"
WEST = "turn west over that narrow mountain pass"
STAY = "remain here until spring has come back"


def test_answers_in_nearly_the_same_words_are_one_cluster() -> None:
    assert coverage([EAST, EAST_AGAIN, WEST], [EAST]) == Coverage(2, 1, 1)


def test_a_student_of_one_answer_covers_one() -> None:
    collapsed = coverage([EAST, WEST, STAY], ["go east along the river"] * 3)
    assert collapsed == Coverage(3, 1, 3)
    assert collapsed.share == pytest.approx(1 / 3)


def test_a_student_of_many_answers_covers_as_many_as_it_gives() -> None:
    samples = ["go east on the road", "turn west over a pass", "remain here", "go east"]
    assert coverage([EAST, WEST, STAY], samples) == Coverage(3, 3, 3)
    assert coverage([EAST, WEST, STAY], samples[:2]) == Coverage(3, 2, 2)


def test_nothing_to_cover_is_refused() -> None:
    with pytest.raises(ValueError, match="0 answers of the teacher and 1 samples"):
        coverage([], ["a"])
