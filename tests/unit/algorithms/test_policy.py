"""The policy loss on three tokens that can be worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.policy import (
    PolicyOptions,
    clipped_surrogate,
    policy_loss,
    truncated_importance_weights,
)
from megatron_gad.types import Batch, LanguageOutput

MASK = torch.tensor([[False, True, True, True]])


def _row(values: list[float]) -> Tensor:
    """One row of a prompt token and three response tokens."""
    return torch.tensor([[0.0, *values]])


LOGPROBS = _row([math.log(0.5), math.log(0.25), math.log(0.2)])
OUTPUT = LanguageOutput(LOGPROBS, entropy=_row([0.1, 0.2, 0.6]))
# Ratios 1.25, 1, 0.5: the first and the last are beyond a clip of 0.2, on the sides that matter
# for their advantages.
BATCH = Batch(
    tokens=torch.zeros(1, 4, dtype=torch.int64),
    lengths=torch.tensor([4]),
    response_mask=MASK,
    rollout_logprobs=_row([math.log(0.2), math.log(0.25), math.log(0.8)]),
    ref_logprobs=_row([math.log(0.5), math.log(0.5), math.log(0.1)]),
    old_logprobs=_row([math.log(0.4), math.log(0.25), math.log(0.4)]),
    advantages=_row([1.0, -2.0, -1.0]),
)
NO_KL = PolicyOptions(kl_coef=0.0)


def _ratio(pair: tuple[Tensor, Tensor]) -> float:
    return (pair[0] / pair[1]).item()


def test_three_tokens_by_hand():
    loss = policy_loss(OUTPUT, BATCH, NO_KL)
    # min(1.25, 1.2) + min(-2, -2) + min(-0.5, -0.8) = -1.6
    assert loss.total.item() == pytest.approx(1.6)
    assert loss.count.item() == 3.0
    assert _ratio(loss.metrics["loss"]) == pytest.approx(1.6 / 3)
    assert _ratio(loss.metrics["clipped_share"]) == pytest.approx(2 / 3)
    assert _ratio(loss.metrics["ratio_mean"]) == pytest.approx(2.75 / 3)
    assert _ratio(loss.metrics["entropy"]) == pytest.approx(0.3)


def test_a_clipped_token_has_no_gradient():
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = policy_loss(replace(OUTPUT, logprobs=logprobs), BATCH, NO_KL)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    torch.testing.assert_close(gradient, _row([0.0, 2.0, 0.0]))


def test_the_clip_leaves_moves_against_the_advantage_alone():
    ratio = torch.tensor([1.5, 0.5])
    objective, is_clipped = clipped_surrogate(ratio, torch.tensor([-1.0, 1.0]), (0.8, 1.2))
    torch.testing.assert_close(objective, torch.tensor([-1.5, 0.5]))
    assert is_clipped.tolist() == [False, False]


def test_one_update_per_batch_is_the_plain_policy_gradient():
    logprobs = LOGPROBS.clone().requires_grad_()
    batch = replace(BATCH, old_logprobs=None)
    loss = policy_loss(replace(OUTPUT, logprobs=logprobs), batch, NO_KL)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    torch.testing.assert_close(gradient, _row([-1.0, 2.0, 1.0]))
    assert loss.total.item() == pytest.approx(2.0)
    assert _ratio(loss.metrics["ratio_mean"]) == 1.0
    assert _ratio(loss.metrics["clipped_share"]) == 0.0


def test_kl_is_added_with_its_weight_and_reported_without():
    with_kl = policy_loss(OUTPUT, BATCH, PolicyOptions(kl_coef=0.1))
    # k3 at ratios 1, 2, 1/2: 0 + (1 - ln 2) + (ln 2 - 1/2) = 1/2
    assert with_kl.total.item() == pytest.approx(1.6 + 0.1 * 0.5)
    assert _ratio(with_kl.metrics["kl"]) == pytest.approx(0.5 / 3)

    reported_only = policy_loss(OUTPUT, BATCH, NO_KL)
    assert reported_only.total.item() == pytest.approx(1.6)
    assert _ratio(reported_only.metrics["kl"]) == pytest.approx(0.5 / 3)


def test_without_a_reference_there_is_no_kl():
    loss = policy_loss(OUTPUT, replace(BATCH, ref_logprobs=None), PolicyOptions(kl_coef=0.1))
    assert loss.total.item() == pytest.approx(1.6)
    assert "kl" not in loss.metrics


def test_truncated_importance_weights_multiply_the_surrogate_but_not_the_kl():
    # trainer / engine = 2, 1, 0.5, the first cut to 1.5
    loss = policy_loss(OUTPUT, BATCH, PolicyOptions(kl_coef=0.1, tis_cap=1.5))
    assert loss.total.item() == pytest.approx(-1.2 * 1.5 + 2.0 + 0.8 * 0.5 + 0.1 * 0.5)
    assert _ratio(loss.metrics["tis_weight_mean"]) == pytest.approx((1.5 + 1.0 + 0.5) / 3)
    assert _ratio(loss.metrics["tis_capped_share"]) == pytest.approx(1 / 3)


def test_truncated_importance_weights_have_no_gradient():
    logprobs = LOGPROBS.clone().requires_grad_()
    weights = truncated_importance_weights(logprobs, torch.full_like(LOGPROBS, -200.0), cap=2.0)
    assert torch.equal(weights, torch.full_like(LOGPROBS, 2.0))
    assert not weights.requires_grad


def test_sequence_mean_weighs_responses_and_not_tokens():
    two_rows = Batch(
        tokens=torch.zeros(2, 4, dtype=torch.int64),
        lengths=torch.tensor([4, 2]),
        response_mask=torch.tensor([[False, True, True, True], [False, True, False, False]]),
        advantages=torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, -4.0, 0.0, 0.0]]),
    )
    output = LanguageOutput(torch.full((2, 4), -1.0), torch.zeros(2, 4))
    options = PolicyOptions(kl_coef=0.0, aggregation="sequence_mean")
    loss = policy_loss(output, two_rows, options)
    assert (loss.total.item(), loss.count.item()) == (-1.0 + 4.0, 2.0)
    by_token = policy_loss(output, two_rows, NO_KL)
    assert (by_token.total.item(), by_token.count.item()) == (-3.0 + 4.0, 4.0)


def test_an_extreme_ratio_stays_finite():
    batch = replace(BATCH, old_logprobs=_row([-300.0, -1.0, 0.0]))
    logprobs = _row([0.0, -1.0, -300.0]).requires_grad_()
    loss = policy_loss(LanguageOutput(logprobs, torch.zeros(1, 4)), batch, NO_KL)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    # min(e^20, 1.2) - 2 + min(-e^-20, -0.8) = -1.6
    assert loss.total.item() == pytest.approx(1.6)
    torch.testing.assert_close(gradient, _row([0.0, 2.0, 0.0]))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"batch\.advantages is None.*with_advantages"):
        policy_loss(OUTPUT, replace(BATCH, advantages=None), NO_KL)
    with pytest.raises(ValueError, match=r"tis_cap = 2\.0 .*batch\.rollout_logprobs is None"):
        policy_loss(OUTPUT, replace(BATCH, rollout_logprobs=None), PolicyOptions(tis_cap=2.0))
