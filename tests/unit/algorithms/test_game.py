"""The mathematics of the game, on responses few enough to enumerate.

A student that writes two tokens out of three: nine responses, exact expectations.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import group_advantages
from megatron_gad.algorithms.discriminator import bradley_terry, cross_entropy
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.types import Batch, LanguageOutput

RESPONSES = torch.tensor(list(product(range(3), repeat=2)))
NO_KL = PolicyOptions(kl_coef=0.0)


def _student() -> list[Tensor]:
    """Logits of the first token, [3], and of the second given the first, [3, 3]."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, generator=generator, dtype=torch.float64)
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return [first.requires_grad_(), second.requires_grad_()]


def _token_logprobs(student: list[Tensor], responses: Tensor) -> Tensor:
    """Log-probabilities in the layout of a batch with one prompt token, [B, 3]."""
    first, second = responses.unbind(dim=1)
    of_first = student[0].log_softmax(-1)[first]
    of_second = student[1].log_softmax(-1)[first, second]
    return torch.stack([torch.zeros_like(of_first), of_first, of_second], dim=1)


def _policy_gradient(student: list[Tensor], responses: Tensor, advantages: Tensor) -> list[Tensor]:
    """Descent direction of the policy loss summed over responses, advantages [B]."""
    logprobs = _token_logprobs(student, responses)
    mask = torch.tensor([False, True, True]).expand(logprobs.shape)
    batch = Batch(
        tokens=torch.zeros(logprobs.shape, dtype=torch.int64),
        lengths=torch.full((logprobs.shape[0],), 3),
        response_mask=mask,
        advantages=torch.where(mask, advantages[:, None], 0.0),
    )
    loss = policy_loss(LanguageOutput(logprobs, torch.zeros_like(logprobs)), batch, NO_KL)
    return [-gradient for gradient in torch.autograd.grad(loss.total, student)]


def _teacher_logprobs() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize("offset", [0.0, 17.0])
def test_the_best_discriminator_turns_the_policy_gradient_into_reverse_kl(offset):
    student, teacher = _student(), _teacher_logprobs()
    logprobs = _token_logprobs(student, RESPONSES).sum(dim=1)
    reverse_kl = (logprobs.exp() * (logprobs - teacher)).sum()
    exact = [-gradient for gradient in torch.autograd.grad(reverse_kl, student)]

    student_logprobs = _token_logprobs(student, RESPONSES).sum(dim=1).detach()
    scores = teacher - student_logprobs + offset
    # The expectation over the student: every response, weighted with its probability.
    from_scores = _policy_gradient(student, RESPONSES, student_logprobs.exp() * scores)
    torch.testing.assert_close(from_scores, exact)


@pytest.mark.parametrize(("kind", "scale"), [("rloo", 1.0), ("dr_grpo", 0.5)])
def test_group_advantages_give_the_exact_gradient_on_average(kind, scale):
    """Over all 81 groups of two: rloo is unbiased, dr_grpo is short of it by (G - 1) / G."""
    student, teacher = _student(), _teacher_logprobs()
    logprobs = _token_logprobs(student, RESPONSES).sum(dim=1).detach()
    # Rounded, so that the float32 of advantages does not blur the comparison.
    scores = (64 * (teacher - logprobs)).round() / 64
    exact = _policy_gradient(student, RESPONSES, logprobs.exp() * scores)

    groups = torch.tensor(list(product(range(9), repeat=2)))
    probabilities = logprobs.exp()[groups].prod(dim=1)
    advantages = group_advantages(scores[groups], kind).double()
    weighted = (probabilities[:, None] * advantages / 2).flatten()
    on_average = _policy_gradient(student, RESPONSES[groups.flatten()], weighted)
    torch.testing.assert_close(on_average, [scale * gradient for gradient in exact])


@pytest.mark.parametrize(
    ("loss_fn", "has_free_offset"), [(bradley_terry, True), (cross_entropy, False)]
)
def test_the_best_scores_are_the_log_ratio_of_teacher_and_student(loss_fn, has_free_offset):
    """Teacher 3:2:1 and student 1:1:4 over three classes: 6 x 6 pairs are the expectation."""
    teacher_classes = torch.tensor([0, 0, 0, 1, 1, 2])
    student_classes = torch.tensor([0, 1, 2, 2, 2, 2]).expand(6, 6)
    log_ratio = torch.tensor([3.0, 2.0, 1 / 4], dtype=torch.float64).log()
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores],
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        is_pair = torch.ones(6, 6, dtype=torch.bool)
        total, count = loss_fn(scores[teacher_classes], scores[student_classes], is_pair)
        (total / count).backward()
        return total / count

    optimizer.step(closure)
    found = scores.detach() - log_ratio
    offset = found.mean() if has_free_offset else torch.tensor(0.0, dtype=torch.float64)
    torch.testing.assert_close(found, offset.expand(3), atol=1e-5, rtol=0)
