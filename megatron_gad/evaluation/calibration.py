"""Whether a discriminator is as often right as its own scores say."""

import torch
from torch import Tensor


def expected_accuracy(margins: Tensor) -> Tensor:
    """Return the chance of being right that a discriminator gives itself, pair by pair.

        sigmoid(|margin|)

    It takes the response that scores higher for the teacher's. The mean equals the accuracy if the
    scores are calibrated. The mean of sigmoid(margin) would be lower: its sign gives away which
    response is the teacher's, so it is 1 - sigmoid(|margin|) for each pair that is read wrong.

    margins: teacher's score less student's, of any shape.
    """
    return torch.sigmoid(margins.abs())
