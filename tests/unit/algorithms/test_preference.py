"""The losses on two pairs, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from megatron_gad.algorithms.preference import preference_loss, sequence_logprobs
from megatron_gad.types import Batch, LanguageOutput

LOGPROBS = torch.tensor([[0.0, -1.0, -2.0], [0.0, -4.0, 7.0], [0.0, -1.0, -1.0], [0.0, -1.0, 7.0]])
BATCH = Batch(
    tokens=torch.zeros(4, 3, dtype=torch.int64),
    lengths=torch.tensor([3, 2, 3, 2]),
    response_mask=torch.tensor(
        [[False, True, True], [False, True, False], [False, True, True], [False, True, False]]
    ),
    ref_logprobs=torch.tensor(
        [[0.0, -4.0, -2.0], [0.0, -3.0, 7.0], [0.0, 0.0, -1.0], [0.0, -2.0, 7.0]]
    ),
)
# Gains over the reference: 3, -1 | -1, 1. Margins at beta 0.5: 2 and -1.


def _output(logprobs: torch.Tensor) -> LanguageOutput:
    return LanguageOutput(logprobs, torch.zeros_like(logprobs))


def test_sequence_logprobs_sum_the_response():
    expected = torch.tensor([-3.0, -4.0, -2.0, -1.0])
    torch.testing.assert_close(sequence_logprobs(LOGPROBS, BATCH.response_mask), expected)


def test_dpo_of_two_pairs_by_hand():
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = preference_loss(_output(logprobs), BATCH, "dpo", beta=0.5)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)

    assert loss.total.item() == pytest.approx(math.log1p(math.exp(-2)) + math.log1p(math.exp(1)))
    assert loss.count.item() == 2.0
    assert loss.metrics["accuracy"][0].item() == 1.0
    assert loss.metrics["margin"][0].item() == pytest.approx(2.0 - 1.0)
    # d/d logprob of the preferred response: -beta sigmoid(-margin)
    win, lose = 0.5 / (1 + math.exp(2)), 0.5 / (1 + math.exp(-1))
    expected = torch.tensor([[0, -win, -win], [0, win, 0], [0, -lose, -lose], [0, lose, 0]])
    torch.testing.assert_close(gradient, expected)


def test_simpo_of_two_pairs_by_hand():
    logprobs = LOGPROBS.clone().requires_grad_()
    # Without a reference; the target margin is half of beta.
    batch = replace(BATCH, ref_logprobs=None)
    loss = preference_loss(_output(logprobs), batch, "simpo", beta=2.0)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)

    # Means over response tokens: -1.5, -4 | -1, -1. Margins: 5 and 0, less the target of 1.
    assert loss.total.item() == pytest.approx(math.log1p(math.exp(-4)) + math.log1p(math.exp(1)))
    assert loss.metrics["accuracy"][0].item() == 1.0
    assert loss.metrics["margin"][0].item() == pytest.approx(5.0)
    win, lose = 2 / (1 + math.exp(4)), 2 / (1 + math.exp(-1))
    expected = torch.tensor(
        [[0, -win / 2, -win / 2], [0, win, 0], [0, -lose / 2, -lose / 2], [0, lose, 0]]
    )
    torch.testing.assert_close(gradient, expected)


def test_a_student_equal_to_the_reference_pays_log_2():
    loss = preference_loss(_output(LOGPROBS), BATCH.with_ref_logprobs(LOGPROBS), "dpo", beta=0.1)
    assert (loss.total / loss.count).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("empty_row", [2, 3])
def test_a_pair_with_an_empty_response_does_not_count(empty_row):
    mask = BATCH.response_mask.clone()
    mask[empty_row] = False
    loss = preference_loss(_output(LOGPROBS), replace(BATCH, response_mask=mask), "dpo", beta=0.5)
    assert loss.count.item() == 1.0
    assert loss.total.item() == pytest.approx(math.log1p(math.exp(-2)))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"batch\.ref_logprobs is None.*with_ref_logprobs"):
        preference_loss(_output(LOGPROBS), replace(BATCH, ref_logprobs=None), "dpo", beta=0.1)
    odd = replace(BATCH, response_mask=BATCH.response_mask[:3])
    with pytest.raises(ValueError, match="3 rows; whole pairs"):
        preference_loss(_output(LOGPROBS[:3]), odd, "dpo", beta=0.1)
