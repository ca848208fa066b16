"""Do the engine and the trainer hold the same student? Compared by log-probabilities of samples."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_gad.data.batching import policy_batch
from megatron_gad.rollout import Sampler
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Group

FP32_BOUND = 1e-3


def gap_bound(configured: float | None, bf16: bool) -> float:
    """Return the largest gap to accept, in nats; 0 for any."""
    if configured is not None:
        return configured
    return 0.0 if bf16 else FP32_BOUND


def largest_gap(logprobs: Tensor, batch: Batch) -> float:
    """Return max |trainer - engine| over response tokens of this data rank, in nats.

    logprobs: [B, T] float32 of the trainer at the sampling temperature, from before any update.
    """
    assert batch.rollout_logprobs is not None
    difference = (logprobs - batch.rollout_logprobs).abs()
    return float(torch.where(batch.response_mask, difference, 0.0).max())


def check_agreement(
    student: Trainer,
    sampler: Sampler,
    groups: Sequence[Group],
    temperature: float,
    bound: float,
) -> float:
    """Compare one rollout of each of the first groups; return the gap over all data ranks.

    Raises RuntimeError, naming the tensor that differs most, where the gap passes the bound.
    """
    first = [Group(group.prompt, group.rollouts[:1]) for group in groups[:4]]
    batch = policy_batch(first)
    gap = largest_gap(student.logprobs(batch, temperature), batch)
    gap = max(student.parallel.gather_over_data(gap))
    if bound and not gap <= bound:
        raise RuntimeError(
            f"engine and trainer disagree by {gap:.3g} nats on a sampled token (bound {bound:g}, "
            f"rollout.logprob_gap_bound): {_worst_tensor(student, sampler)}"
        )
    return gap


def _worst_tensor(student: Trainer, sampler: Sampler) -> str:
    """Name the weight that differs most between trainer and engine."""
    engine = sampler.engine
    weights: Iterator[tuple[str, Tensor]] = student.hf_weights()
    worst = ("", 0.0)
    held = dict(engine.held_weights()) if engine is not None else {}
    for name, tensor in weights:
        if name in held:
            difference = float((held[name].float().cpu() - tensor.float().cpu()).abs().max())
            worst = max(worst, (name, difference), key=lambda pair: pair[1])
    worst = student.parallel.from_engine_rank(worst)
    if worst[0]:
        return f"{worst[0]} differs by up to {worst[1]:.3g} after the weight swap"
    return "all weights are equal, so the two compute differently (precision, template, masking?)"
