"""The kinds of policy loss and of clips on three tokens that can be worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.policy import (
    PolicyOptions,
    clipped_surrogate,
    policy_loss,
    sequence_ratio,
)
from megatron_gad.types import Batch, LanguageOutput, Loss


def _row(values: list[float]) -> Tensor:
    """One row of a prompt token and three response tokens."""
    return torch.tensor([[0.0, *values]])


# Ratios 1.25, 1, 0.5.
LOGPROBS = _row([math.log(0.5), math.log(0.25), math.log(0.2)])
OLD = _row([math.log(0.4), math.log(0.25), math.log(0.4)])
BATCH = Batch(
    tokens=torch.zeros(1, 4, dtype=torch.int64),
    lengths=torch.tensor([4]),
    response_mask=torch.tensor([[False, True, True, True]]),
    old_logprobs=OLD,
    advantages=_row([1.0, -2.0, -1.0]),
)
GRPO = PolicyOptions(kl_coef=0.0)
GSPO = PolicyOptions(kl_coef=0.0, kind="gspo")
CISPO = PolicyOptions(kl_coef=0.0, kind="cispo")
GEOMETRIC_MEAN = (1.25 * 1.0 * 0.5) ** (1 / 3)


def _loss_and_gradient(options: PolicyOptions, batch: Batch = BATCH) -> tuple[Loss, Tensor]:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = policy_loss(LanguageOutput(logprobs, torch.zeros(1, 4)), batch, options)
    return loss, torch.autograd.grad(loss.total, logprobs)[0]


def _share(loss: Loss, name: str) -> float:
    total, count = loss.metrics[name]
    return (total / count).item()


def test_clip_higher_moves_the_upper_bound_alone():
    loss, gradient = _loss_and_gradient(replace(GRPO, clip_range_high=0.28))
    # min(1.25, 1.28) + min(-2, -2) + min(-0.5, -0.8) = -1.55
    assert loss.total.item() == pytest.approx(1.55)
    torch.testing.assert_close(gradient, _row([-1.25, 2.0, 0.0]))
    assert _share(loss, "clipped_share") == pytest.approx(1 / 3)


def test_dual_clip_bounds_what_a_negative_advantage_can_do():
    ratio = torch.tensor([5.0, 5.0, 2.0], requires_grad=True)
    advantages = torch.tensor([-2.0, 2.0, -2.0])
    objective, is_clipped = clipped_surrogate(ratio, advantages, (0.8, 1.2), dual_clip=3.0)
    torch.testing.assert_close(objective, torch.tensor([-6.0, 2.4, -4.0]))
    assert is_clipped.tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(objective.sum(), ratio)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, -2.0]))


def test_gspo_takes_the_ratio_of_the_response():
    loss, gradient = _loss_and_gradient(GSPO)
    # The geometric mean, 0.855, is within the clip: it multiplies 1 - 2 - 1.
    assert loss.total.item() == pytest.approx(2 * GEOMETRIC_MEAN)
    assert _share(loss, "ratio_mean") == pytest.approx(GEOMETRIC_MEAN)
    # d s / d logprob = s / 3 at every token.
    torch.testing.assert_close(gradient, _row([2 * GEOMETRIC_MEAN / 3] * 3))


def test_gspo_clips_whole_responses():
    batch = replace(BATCH, advantages=_row([-1.0, -1.0, -1.0]))
    loss, gradient = _loss_and_gradient(replace(GSPO, clip_range=0.1), batch)
    assert loss.total.item() == pytest.approx(3 * 0.9)
    assert _share(loss, "clipped_share") == 1.0
    assert torch.equal(gradient, torch.zeros(1, 4))


def test_gspo_as_published_weighs_every_response_the_same():
    """(arXiv 2507.18071, eq. 5): the mean over responses of min(s A, clip(s) A)."""
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    batch = Batch(
        tokens=torch.zeros(2, 4, dtype=torch.int64),
        lengths=torch.tensor([4, 2]),
        response_mask=mask,
        old_logprobs=torch.cat([OLD, _row([math.log(0.5), 0.0, 0.0])]),
        advantages=torch.where(mask, torch.tensor([[1.0], [-3.0]]), 0.0),
    )
    logprobs = torch.cat([LOGPROBS, _row([math.log(0.3), -7.0, -7.0])])
    options = replace(GSPO, aggregation="sequence_mean")
    loss = policy_loss(LanguageOutput(logprobs, torch.zeros(2, 4)), batch, options)
    # 0.3 / 0.5 = 0.6 is below the clip: min(0.6 * -3, 0.8 * -3) = -2.4
    assert loss.total.item() == pytest.approx(-GEOMETRIC_MEAN + 2.4)
    assert loss.count.item() == 2.0


def test_the_ratio_of_a_response_is_one_outside_its_tokens():
    ratio = sequence_ratio(LOGPROBS, LOGPROBS - 1.0, torch.zeros(1, 4, dtype=torch.bool))
    assert torch.equal(ratio, torch.ones(1, 4))


def test_cispo_keeps_a_gradient_at_every_token():
    loss, gradient = _loss_and_gradient(CISPO)
    # Weights min(ratio, 1.2) = 1.2, 1, 0.5, of A log pi.
    expected = 1.2 * math.log(0.5) - 2 * math.log(0.25) - 0.5 * math.log(0.2)
    assert loss.total.item() == pytest.approx(-expected)
    torch.testing.assert_close(gradient, _row([-1.2, 2.0, 0.5]))
    assert _share(loss, "clipped_share") == pytest.approx(1 / 3)


@pytest.mark.parametrize("options", [GRPO, GSPO, CISPO], ids=["grpo", "gspo", "cispo"])
def test_one_update_per_batch_is_the_plain_policy_gradient(options: PolicyOptions):
    """With equal advantages in a response, as groups give them."""
    advantages = _row([1.5, 1.5, 1.5])
    batch = replace(BATCH, old_logprobs=None, advantages=advantages)
    _, gradient = _loss_and_gradient(replace(options, clip_range=0.01), batch)
    torch.testing.assert_close(gradient, -advantages)
