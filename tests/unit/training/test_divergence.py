"""Divergences from a teacher on one shard, against all logits. All shards: test_training.py."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from megatron_gad.config.further_stages import Divergence
from megatron_gad.training.divergence import Taught, compare_with_teacher
from megatron_gad.training.vocab_parallel import VocabShard
from tests.memory import LargestTensor

N, H, H_TEACHER, V, PADDED = 9, 5, 7, 11, 16
SHARD = VocabShard(start=0, size=V)
KINDS: tuple[Divergence, ...] = ("reverse_kl", "forward_kl", "jensen_shannon")
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(N, H, generator=GENERATOR)
WEIGHT = torch.randn(PADDED, H, generator=GENERATOR)
STATES = torch.randn(N, H_TEACHER, generator=GENERATOR)
TEACHER_WEIGHT = torch.randn(V, H_TEACHER, generator=GENERATOR)
TARGETS = torch.randint(V, (N,), generator=GENERATOR)
UPSTREAM = torch.randn(N, generator=GENERATOR)

every_kind = pytest.mark.parametrize("kind", KINDS)


def by_torch(
    hidden: Tensor, weight: Tensor, kind: Divergence, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The student's table of log-probabilities and the divergences, from all logits."""
    logp = log_softmax(hidden @ weight[:V].t() / temperature, dim=-1)
    logq = log_softmax(STATES.to(hidden) @ TEACHER_WEIGHT.to(hidden).t(), dim=-1)

    def divergence(of: Tensor, to: Tensor) -> Tensor:
        return kl_div(to, of, reduction="none", log_target=True).sum(dim=-1)

    if kind == "reverse_kl":
        return logp, divergence(logp, logq)
    if kind == "forward_kl":
        return logp, divergence(logq, logp)
    logm = ((logp.exp() + logq.exp()) / 2).log()
    return logp, (divergence(logp, logm) + divergence(logq, logm)) / 2


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 4, 1024])
def test_values_and_gradients_equal_those_of_all_logits(
    kind: Divergence, temperature: float, chunk_size: int
) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    taught = Taught(STATES, TEACHER_WEIGHT, kind)
    found = compare_with_teacher(hidden, weight, TARGETS, taught, SHARD, temperature, chunk_size)
    ours = torch.autograd.grad((found.divergence * UPSTREAM).sum(), (hidden, weight))

    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logp, divergence = by_torch(hidden, weight, kind, temperature)
    theirs = torch.autograd.grad((divergence * UPSTREAM).sum(), (hidden, weight))
    expected = (
        logp.gather(1, TARGETS[:, None]).squeeze(1),
        -(logp.exp() * logp).sum(dim=-1),
        divergence,
    )
    for one, other in zip((*found, *ours), (*expected, *theirs), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.detach().double(), other.detach(), atol=2e-6, rtol=2e-6)
    assert not ours[1][V:].any()


@every_kind
def test_a_divergence_and_its_gradient_are_0_for_equal_distributions(kind: Divergence) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    taught = Taught(HIDDEN, WEIGHT[:V], kind)
    found = compare_with_teacher(hidden, WEIGHT, TARGETS, taught, SHARD, 1.0, 4)
    (gradient,) = torch.autograd.grad(found.divergence.sum(), hidden)
    assert found.divergence.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_two_tokens_by_hand() -> None:
    """The student has 3/4 and 1/4, the teacher 1/2 and 1/2."""
    weight = torch.tensor([[torch.tensor(3.0).log()], [0.0]])
    values = []
    for kind in KINDS:
        taught = Taught(torch.zeros(1, 1), torch.zeros(2, 1), kind)
        shard, target = VocabShard(0, 2), torch.tensor([0])
        found = compare_with_teacher(torch.ones(1, 1), weight, target, taught, shard, 1.0, 4)
        values.append(float(found.divergence))
    reverse = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    forward = 0.5 * torch.tensor(2 / 3).log() + 0.5 * torch.tensor(2.0).log()
    to_mean = 0.75 * torch.tensor(1.2).log() + 0.25 * torch.tensor(2 / 3).log()
    from_mean = 0.5 * torch.tensor(0.8).log() + 0.5 * torch.tensor(4 / 3).log()
    expected = [reverse, forward, (to_mean + from_mean) / 2]
    assert values == pytest.approx([float(each) for each in expected], abs=1e-6)


@every_kind
def test_a_teacher_that_is_sure_gives_finite_numbers(kind: Divergence) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    taught = Taught(1e4 * STATES, TEACHER_WEIGHT, kind)
    found = compare_with_teacher(hidden, WEIGHT, TARGETS, taught, SHARD, 1.0, 4)
    (gradient,) = torch.autograd.grad(found.divergence.sum(), hidden)
    assert found.divergence.isfinite().all() and gradient.isfinite().all()


def test_bf16_is_compared_in_float32() -> None:
    low = [x.to(torch.bfloat16) for x in (HIDDEN, WEIGHT, STATES, TEACHER_WEIGHT)]
    exact = [x.float() for x in low]
    results = []
    for hidden, weight, states, teacher in (low, exact):
        hidden = hidden.requires_grad_()
        taught = Taught(states, teacher, "reverse_kl")
        found = compare_with_teacher(hidden, weight, TARGETS, taught, SHARD, 1.0, 4)
        (gradient,) = torch.autograd.grad(found.divergence.sum(), hidden)
        assert found.divergence.dtype == torch.float32 and gradient.dtype == hidden.dtype
        results.append((found.divergence.detach(), gradient.float()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.05)


def test_no_tensor_is_larger_than_the_logits_of_a_chunk() -> None:
    hidden, weight = torch.randn(200, 4).requires_grad_(), torch.randn(500, 4).requires_grad_()
    taught = Taught(torch.randn(200, 3), torch.randn(500, 3), "jensen_shannon")
    targets = torch.randint(500, (200,))
    with LargestTensor() as largest:
        shard = VocabShard(0, 500)
        found = compare_with_teacher(hidden, weight, targets, taught, shard, 1.0, 8)
        found.divergence.sum().backward()
    assert largest.num_elements == 8 * 500


@every_kind
def test_nothing_to_compare_gives_no_gradient(kind: Divergence) -> None:
    hidden, weight = HIDDEN[:0].clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    taught = replace(Taught(STATES, TEACHER_WEIGHT, kind), states=STATES[:0])
    found = compare_with_teacher(hidden, weight, TARGETS[:0], taught, SHARD, 1.0, 4)
    found.divergence.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
