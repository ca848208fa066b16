"""Expected against observed wins of scores whose calibration is known."""

import pytest
import torch

from megatron_gad.evaluation.calibration import expected_accuracy, wins_by_difference

NUM_PAIRS = 400_000


def ideal_margins(distance: float) -> torch.Tensor:
    """Return margins of the best possible scores of two normal distributions, [NUM_PAIRS].

    The teacher's texts are x ~ N(distance, 1), the student's x ~ N(0, 1). The score is the log of
    the ratio of the two densities at x. No other scores are calibrated better.
    """
    draw = torch.Generator().manual_seed(3)
    teacher = torch.randn(NUM_PAIRS, generator=draw, dtype=torch.float64) + distance
    student = torch.randn(NUM_PAIRS, generator=draw, dtype=torch.float64)
    return distance * (teacher - student)


@pytest.mark.parametrize("distance", [0.3, 1.0, 2.0])
def test_calibrated_scores_are_as_often_right_as_they_expect(distance: float) -> None:
    margins = ideal_margins(distance)
    by_theory = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(distance / 2**0.5))
    assert float((margins > 0).double().mean()) == pytest.approx(float(by_theory), abs=0.003)
    assert float(expected_accuracy(margins).mean()) == pytest.approx(float(by_theory), abs=0.003)
    # Scores twice as far apart are as often right, and expect more.
    assert float(expected_accuracy(2 * margins).mean()) > float(by_theory) + 0.02


def test_wins_of_pairs_with_about_the_same_difference() -> None:
    margins = torch.tensor([[0.0, 0.5, -0.9], [1.0, 2.9, -1.5], [3.0, 8.0, -0.25]])
    sums = wins_by_difference(margins)
    assert {name: sums[f"pairs_{name}"] for name in ("0_to_1", "1_to_3", "from_3")} == {
        "0_to_1": (4.0, 9.0),
        "1_to_3": (3.0, 9.0),
        "from_3": (2.0, 9.0),
    }
    # By hand: 0 is a tie, 0.5 right, -0.9 and -0.25 wrong.
    assert sums["observed_0_to_1"] == (1.5, 4.0)
    assert sums["observed_1_to_3"] == (2.0, 3.0)
    assert sums["observed_from_3"] == (2.0, 2.0)
    # 1 / (1 + exp(-x)) of 0, 0.5, 0.9, 0.25; of 1, 2.9, 1.5; of 3, 8.
    assert sums["expected_0_to_1"] == pytest.approx((0.5 + 0.622459 + 0.710950 + 0.562177, 4.0))
    assert sums["expected_1_to_3"] == pytest.approx((0.731059 + 0.947846 + 0.817574, 3.0))
    assert sums["expected_from_3"] == pytest.approx((0.952574 + 0.999665, 2.0))


@pytest.mark.parametrize("name", ["0_to_1", "1_to_3", "from_3"])
def test_calibrated_scores_win_as_expected_at_every_difference(name: str) -> None:
    sums = wins_by_difference(ideal_margins(1.5))
    (expected, count), (observed, _) = sums[f"expected_{name}"], sums[f"observed_{name}"]
    # Five standard errors of a share of that many independent pairs.
    assert observed / count == pytest.approx(expected / count, abs=2.5 / count**0.5)
