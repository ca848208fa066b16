"""KL estimators: values by hand, and what their gradients mean, by enumeration."""

import math

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.kl import kl_estimate, sequence_kl

LN2 = math.log(2)
LOGPROBS = torch.tensor([0.5, 0.25, 0.2]).log()
REF_LOGPROBS = torch.tensor([0.5, 0.5, 0.1]).log()  # ratios 1, 2, 1/2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [0.0, -LN2, LN2]),
        ("k2", [0.0, LN2**2 / 2, LN2**2 / 2]),
        ("k3", [0.0, 1 - LN2, LN2 - 0.5]),
    ],
)
def test_three_tokens_by_hand(kind, expected):
    estimate = kl_estimate(LOGPROBS, REF_LOGPROBS, kind)
    torch.testing.assert_close(estimate, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_equals_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    ref_logprobs = -torch.rand(2, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, ref_logprobs, kind), logprobs)


def _enumerated(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean of the estimate and of its gradient over all classes; log policy and log reference."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    estimate = kl_estimate(policy, reference, kind)  # pyright: ignore[reportArgumentType]
    weights = policy.exp().detach()
    mean = (weights * estimate).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return mean.detach(), gradient, logits, reference


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    mean, _, logits, reference = _enumerated(kind)
    policy = logits.detach().log_softmax(0)
    torch.testing.assert_close(mean, (policy.exp() * (policy - reference)).sum())


def test_gradients_mean_what_the_docstring_says():
    _, k2_gradient, logits, reference = _enumerated("k2")
    policy = logits.log_softmax(0)
    reverse = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close(k2_gradient, torch.autograd.grad(reverse, logits)[0])

    _, k3_gradient, logits, reference = _enumerated("k3")
    policy = logits.log_softmax(0)
    forward = (reference.exp() * (reference - policy)).sum()
    torch.testing.assert_close(k3_gradient, torch.autograd.grad(forward, logits)[0])

    _, k1_gradient, _, _ = _enumerated("k1")
    torch.testing.assert_close(k1_gradient, torch.zeros_like(k1_gradient))


def test_k3_keeps_small_differences_in_float32():
    difference = torch.tensor([1e-3])
    estimate = kl_estimate(torch.zeros(1), difference, "k3")
    torch.testing.assert_close(estimate, torch.tensor([1e-6 / 2 + 1e-9 / 6]), rtol=1e-3, atol=0)


def test_k3_of_an_extreme_token_is_finite_and_without_gradient():
    logprobs = torch.tensor([-200.0, 0.0], requires_grad=True)
    estimate = kl_estimate(logprobs, torch.tensor([0.0, -200.0]), "k3")
    (gradient,) = torch.autograd.grad(estimate.sum(), logprobs)
    torch.testing.assert_close(estimate, torch.tensor([math.exp(20) - 21, math.exp(-20) + 19]))
    assert torch.equal(gradient, torch.zeros(2))


def test_sequence_kl_sums_each_response_without_gradient():
    nan = float("nan")
    logprobs = torch.tensor([[nan, -1.0, -2.0], [-3.0, nan, -1.0]], requires_grad=True)
    ref_logprobs = torch.tensor([[-1.0, -1.5, -4.0], [nan, nan, -1.25]])
    mask = torch.tensor([[False, True, True], [False, False, True]])
    divergence = sequence_kl(logprobs, ref_logprobs, mask, "k1")
    torch.testing.assert_close(divergence, torch.tensor([0.5 + 2.0, 0.25]))
    assert not divergence.requires_grad


def test_an_unknown_estimator_names_the_allowed_ones():
    with pytest.raises(ValueError, match=r"kl_estimator = 'k4'; use 'k1'"):
        kl_estimate(LOGPROBS, REF_LOGPROBS, "k4")  # pyright: ignore[reportArgumentType]
