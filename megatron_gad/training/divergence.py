"""How far a student's distributions are from a teacher's, over a sharded vocabulary.

Logits of both models are there for a chunk of tokens at a time, and computed again for the
gradient, as in vocab_parallel.py.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gad.config.further_stages import Divergence
from megatron_gad.training.vocab_parallel import (
    VocabShard,
    head_gradients,
    largest_logits,
    log_sum_and_mean,
    scaled_logits,
    taken_values,
)


@dataclass(frozen=True)
class Taught:
    """What a student's head needs of a teacher, on a rank of the last pipeline stage.

    states: [N, H] hidden states that predict response tokens, on the host; of any float type.
    weight: [columns, H] of the teacher's output layer: this rank's columns of the student's
        vocabulary, the same float type, on the device.
    kind: of divergence.
    """

    states: Tensor
    weight: Tensor
    kind: Divergence


class Compared(NamedTuple):
    """Of some tokens, each [N] float32. Only the divergence has a gradient.

    logprobs, entropy: of the student. divergence: from the teacher.
    """

    logprobs: Tensor
    entropy: Tensor
    divergence: Tensor


def compare_with_teacher(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    taught: Taught,
    shard: VocabShard,
    temperature: float,
    chunk_size: int,
) -> Compared:
    """Compare p = softmax(hidden @ weight^T / temperature) with the teacher's q.

        reverse_kl      sum p (log p - log q)
        forward_kl      sum q (log q - log p)
        jensen_shannon  (sum p (log p - log m) + sum q (log q - log m)) / 2, m = (p + q) / 2

    q is at temperature 1, over the ids of the student.

    hidden: [N, H_s]. weight: [V / TP, H_s]. targets: [N] int64, for the log-probabilities.
    taught: with the state of each of the N tokens.
    """
    args = (hidden, weight, targets, taught, shard, temperature, chunk_size)
    return Compared(*_Divergence.apply(*args))


class _Divergence(torch.autograd.Function):
    """Chunk by chunk of tokens; per token no more is kept than two normalisers and one mean."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, *fixed: Any) -> tuple[Tensor, ...]:
        targets, taught, shard, temperature, chunk_size = fixed
        found: list[tuple[Tensor, ...]] = []
        parts = (hidden, targets, taught.states)
        for some, target, states in zip(*(x.split(chunk_size) for x in parts), strict=True):
            logp, log_z, entropy = _log_softmax(some, weight, shard, temperature)
            logq, log_z_teacher, _ = _teacher_logq(states, taught, shard, hidden.device)
            taken = taken_values(logp, target, shard)
            divergence, inner = _sums(logp, logq, taught.kind, shard)
            found.append((taken, entropy, divergence, log_z, log_z_teacher, inner))
        columns = zip(*found, strict=True)
        logprobs, entropy, divergence, *kept = (torch.cat(column) for column in columns)
        ctx.save_for_backward(hidden, weight, *kept)
        ctx.taught, ctx.shard, ctx.temperature = taught, shard, temperature
        ctx.chunk_size, ctx.main_grad = chunk_size, getattr(weight, "main_grad", None)
        ctx.mark_non_differentiable(logprobs, entropy)
        return logprobs, entropy, divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, *kept = ctx.saved_tensors
        taught, shard = ctx.taught, ctx.shard
        parts = (taught.states, *kept, gradients[2] / ctx.temperature)
        chunks = list(zip(*(part.split(ctx.chunk_size) for part in parts), strict=True))

        def slope_of(index: int, some: Tensor) -> Tensor:
            states, log_z, log_z_teacher, inner, upstream = chunks[index]
            logp = scaled_logits(some, weight, shard, ctx.temperature).sub_(log_z[:, None])
            states = states.to(hidden.device)
            logq = scaled_logits(states, taught.weight, shard, 1.0).sub_(log_z_teacher[:, None])
            return _slope(logp, logq, inner, taught.kind).mul_(upstream[:, None])

        found = head_gradients(hidden, weight, ctx.main_grad, shard, ctx.chunk_size, slope_of)
        return *found, None, None, None, None, None


def _log_softmax(
    hidden: Tensor, weight: Tensor, shard: VocabShard, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this rank's columns of the log-probabilities, [N, V]; normalisers and entropy, [N]."""
    values = scaled_logits(hidden, weight, shard, temperature)
    top = largest_logits(values, shard)
    values.sub_(top[:, None])
    log_sum, mean = log_sum_and_mean(values, shard)
    return values.sub_(log_sum[:, None]), top + log_sum, log_sum - mean


def _teacher_logq(
    states: Tensor, taught: Taught, shard: VocabShard, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    return _log_softmax(states.to(device), taught.weight, shard, 1.0)


def _sums(logp: Tensor, logq: Tensor, kind: Divergence, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return the divergence and what its gradient needs, each [N], over all shards.

    logp, logq: [N, V]. The second is the mean of the divergence's slope under p, but for a
    constant.
    """
    if kind == "reverse_kl":
        divergence = inner = (logp.exp() * (logp - logq)).sum(dim=1)
    elif kind == "forward_kl":
        divergence = inner = (logq.exp() * (logq - logp)).sum(dim=1)
    else:
        logm = torch.logaddexp(logp, logq) - math.log(2.0)
        inner = (logp.exp() * (logp - logm)).sum(dim=1) / 2
        divergence = inner + (logq.exp() * (logq - logm)).sum(dim=1) / 2
    both = torch.stack([divergence, inner])
    if shard.group is not None:
        dist.all_reduce(both, group=shard.group)
    return both[0], both[1]


def _slope(logp: Tensor, logq: Tensor, inner: Tensor, kind: Divergence) -> Tensor:
    """Return the gradient of the divergence by the student's scaled logits, [N, V] float32.

    With g the slope by p it is p (g - sum p g): g is log p - log q, or -q / p, or
    (log p - log m) / 2. inner: from ``_sums``.
    """
    if kind == "forward_kl":
        return logp.exp_().sub_(logq.exp_())
    if kind == "reverse_kl":
        slope = logp - logq
    else:
        slope = (logp - torch.logaddexp(logp, logq) + math.log(2.0)) / 2
    return slope.sub_(inner[:, None]).mul_(logp.exp_())
