"""The two sides of the toy: a teacher with two modes, and a student that can only have one."""

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A teacher: a mixture of Gaussians over the classes 0..9.

    means, weights: one entry per mode, in classes and as shares of the teacher's answers.
    sigma: standard deviation of every mode, in classes.
    """

    means: tuple[float, ...]
    weights: tuple[float, ...]
    sigma: float


CASES = {
    "E": Case(means=(2.0, 6.0), weights=(0.75, 0.25), sigma=0.6),
    "F": Case(means=(3.0, 7.0), weights=(0.8, 0.2), sigma=0.5),
}


def gaussian_logprobs(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probabilities of softmax(-(k - mean)^2 / 2 std^2) over the classes k.

    mean, log_std: [...] float32. Returns [..., 10] float32.
    """
    distances = torch.arange(NUM_CLASSES) - mean[..., None]
    variance = (2 * log_std[..., None]).exp()
    return torch.log_softmax(-distances.square() / (2 * variance), dim=-1)


def teacher_logprobs(case: Case) -> Tensor:
    """Return the teacher's log-probabilities, [10] float32."""
    means = torch.tensor(case.means)
    modes = gaussian_logprobs(means, torch.full_like(means, case.sigma).log())
    weights = torch.tensor(case.weights)
    return torch.logsumexp(modes + weights.log()[:, None], dim=0)


def kl_divergence(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Return KL(p || q) in nats, [...], from the log-probabilities of p and q, [..., 10]."""
    return (logprobs.exp() * (logprobs - other_logprobs)).sum(dim=-1)
