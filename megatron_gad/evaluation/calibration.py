"""Whether a discriminator is as often right as its own scores say."""

import torch
from torch import Tensor

EDGES = (1.0, 3.0)  # of the score difference; its sign left out
BINS = ("0_to_1", "1_to_3", "from_3")


def expected_accuracy(margins: Tensor) -> Tensor:
    """Return the chance of being right that a discriminator gives itself, pair by pair.

        sigmoid(|margin|)

    It takes the response that scores higher for the teacher's. The mean equals the accuracy if the
    scores are calibrated. The mean of sigmoid(margin) would be lower: its sign gives away which
    response is the teacher's, so it is 1 - sigmoid(|margin|) for each pair that is read wrong.

    margins: teacher's score less student's, of any shape.
    """
    return torch.sigmoid(margins.abs())


def wins_by_difference(margins: Tensor) -> dict[str, tuple[float, float]]:
    """Return (sum, count) of what is expected and seen of pairs with about the same difference.

    pairs_*: share of the pairs. expected_*: accuracy that the scores expect of these. observed_*:
    their accuracy; a tie counts half. See BINS for the ends of the names.

    margins: teacher's score less student's, of any shape.
    """
    numbers = torch.bucketize(margins.abs(), torch.tensor(EDGES).to(margins), right=True)
    expected, right = expected_accuracy(margins), (margins.sign() + 1) / 2
    sums: dict[str, tuple[float, float]] = {}
    for number, name in enumerate(BINS):
        inside = numbers == number
        count = float(inside.sum())
        sums[f"pairs_{name}"] = (count, float(margins.numel()))
        sums[f"expected_{name}"] = (float(expected[inside].sum()), count)
        sums[f"observed_{name}"] = (float(right[inside].sum()), count)
    return sums
