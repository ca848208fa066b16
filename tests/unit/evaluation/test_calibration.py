"""Expected against observed wins of scores whose calibration is known."""

import pytest
import torch

from megatron_gad.evaluation.calibration import expected_accuracy

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
