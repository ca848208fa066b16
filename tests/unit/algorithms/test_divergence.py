"""Losses from a teacher's probabilities, by hand and against the exact gradient."""

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.divergence import divergence_loss, sampled_divergence_loss
from megatron_gad.types import Batch, LanguageOutput

MASK = torch.tensor([[False, True, True], [False, True, False]])


def batch(teacher: Tensor, mask: Tensor = MASK) -> Batch:
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    return Batch(tokens, torch.full((len(mask),), mask.shape[1]), mask, ref_logprobs=teacher)


def test_three_divergences_by_hand() -> None:
    divergence = torch.tensor([[9.0, 0.5, 0.25], [9.0, 1.25, 9.0]], requires_grad=True)
    zeros = torch.zeros(2, 3)
    output = LanguageOutput(zeros, torch.tensor([[9.0, 1.0, 2.0], [9.0, 6.0, 9.0]]), divergence)
    loss = divergence_loss(output, batch(zeros))
    (gradient,) = torch.autograd.grad(loss.total, divergence)
    assert (loss.total.item(), loss.count.item()) == (2.0, 3.0)
    assert [value.item() for value in loss.metrics["entropy"]] == [9.0, 3.0]
    assert torch.equal(gradient, MASK.float())


def test_every_sampled_token_is_weighed_by_how_far_it_is_from_the_teacher() -> None:
    """The student gives three tokens -1, -2 and -3, the teacher -2, -1.5 and -3."""
    logprobs = torch.tensor([[7.0, -1.0, -2.0], [7.0, -3.0, 7.0]], requires_grad=True)
    teacher = torch.tensor([[5.0, -2.0, -1.5], [5.0, -3.0, 5.0]])
    loss = sampled_divergence_loss(LanguageOutput(logprobs, torch.zeros(2, 3)), batch(teacher))
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    assert (loss.total.item(), loss.count.item()) == (0.5, 3.0)
    assert loss.metrics["loss"][0].item() == 0.5
    # Down where the student is above the teacher, up where it is below.
    assert torch.equal(gradient, torch.tensor([[0.0, 1.0, -0.5], [0.0, 0.0, 0.0]]))


def test_its_mean_over_all_tokens_is_the_exact_reverse_kl_and_so_is_the_gradient() -> None:
    """Each of five tokens once, weighed by how often the student samples it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(5, generator=generator, dtype=torch.float64), dim=0)
    logp = torch.log_softmax(logits, dim=0)
    exact = (logp.exp() * (logp - teacher)).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    value, gradient = 0.0, torch.zeros(5, dtype=torch.float64)
    for token in range(5):
        output = LanguageOutput(logp[token].view(1, 1), torch.zeros(1, 1, dtype=torch.float64))
        given = batch(teacher[token].view(1, 1), torch.ones(1, 1, dtype=torch.bool))
        loss = sampled_divergence_loss(output, given)
        weight = float(logp[token].exp())
        value += weight * loss.total.item()
        (part,) = torch.autograd.grad(loss.total, logits, retain_graph=True)
        gradient += weight * part
    assert value == pytest.approx(exact.item(), abs=1e-12)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
