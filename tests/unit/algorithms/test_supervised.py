"""Cross-entropy on responses, by hand."""

import math

import pytest
import torch

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.types import Batch, LanguageOutput


def test_three_tokens_by_hand():
    logprobs = torch.tensor([[0.0, 0.5, 0.25, 0.125], [0.0, 0.9, 0.5, 0.9]])
    logprobs[:, 1:] = logprobs[:, 1:].log()
    logprobs.requires_grad_()
    batch = Batch(
        tokens=torch.zeros(2, 4, dtype=torch.int64),
        lengths=torch.tensor([4, 3]),
        response_mask=torch.tensor([[False, False, True, True], [False, False, True, False]]),
    )
    entropy = torch.tensor([[9.0, 9.0, 0.5, 0.25], [9.0, 9.0, 0.75, 9.0]])
    loss = supervised_loss(LanguageOutput(logprobs, entropy), batch)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)

    assert loss.total.item() == pytest.approx((2 + 3 + 1) * math.log(2))
    assert loss.count.item() == 3.0
    assert torch.equal(gradient, -batch.response_mask.float())
    assert loss.metrics["loss"][0].item() == loss.total.item()
    assert loss.metrics["entropy"][0].item() == 1.5
    assert {pair[1].item() for pair in loss.metrics.values()} == {3.0}
