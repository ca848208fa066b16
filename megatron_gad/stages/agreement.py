"""Do the engine and the trainer hold the same student? Compared by log-probabilities of samples."""

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch

FP32_BOUND = 1e-3
# Where no bound stops the run: more than rounding in bf16 explains, as in the health table.
ALARM = 0.5

logger = logging.getLogger(__name__)


def gap_bound(configured: float | None, bf16: bool) -> float:
    """Return the largest gap to accept, in nats; 0 for any."""
    if configured is not None:
        return configured
    return 0.0 if bf16 else FP32_BOUND


def check_gap(
    student: Trainer, sampler: Sampler | None, logprobs: Tensor, batch: Batch, bound: float
) -> float:
    """Return max |trainer - engine| over response tokens of all data ranks, in nats.

    logprobs: [B, T] float32 of the trainer at the sampling temperature, from before any update.
    batch: carries the engine's rollout_logprobs.
    sampler: whose engine to compare weights with; None once the student has moved on from them.

    Raises RunStoppedError where the gap passes the bound, naming the tensor that differs most.
    Without a bound it warns of a gap that rounding does not explain.
    """
    assert batch.rollout_logprobs is not None
    difference = (logprobs - batch.rollout_logprobs).abs()
    gap = student.parallel.max_over_data(
        float(torch.where(batch.response_mask, difference, 0.0).max())
    )
    if bound and not gap <= bound:
        raise RunStoppedError(
            f"engine and trainer disagree by {gap:.3g} nats on a sampled token (bound {bound:g}, "
            f"rollout.logprob_gap_bound): {_reason(student, sampler)}"
        )
    if not bound and not gap <= ALARM and student.parallel.is_writer:
        logger.warning(
            "engine and trainer disagree by %.3g nats on a sampled token, more than rounding "
            "explains; rollout.logprob_gap_bound stops a run that does",
            gap,
        )
    return gap


def _reason(student: Trainer, sampler: Sampler | None) -> str:
    if sampler is None:
        return (
            "the first rollouts of the batch agreed, so the weights are the same and some tokens "
            "are computed differently (length, precision, masking?)"
        )
    return _worst_tensor(student, sampler)


def _worst_tensor(student: Trainer, sampler: Sampler) -> str:
    """Name the weight that differs most between trainer and engine."""
    engine = sampler.engine
    weights: Iterator[tuple[str, Tensor]] = student.hf_weights()
    worst = ("", 0.0)
    held = dict(engine.held_weights()) if engine is not None else {}
    for name, tensor in weights:
        if name in held:
            difference = float((held[name].float().cpu() - tensor.float().cpu()).abs().max())
            difference = math.inf if math.isnan(difference) else difference
            worst = max(worst, (name, difference), key=lambda pair: pair[1])
    worst, shows_weights = student.parallel.from_engine_rank((worst, bool(held)))
    if not shows_weights:
        return (
            "this engine does not show its weights; if sglang.verify_interval = 1 finds none that "
            "differ, the two compute differently (precision, template, masking?)"
        )
    if worst[0]:
        return f"{worst[0]} differs by up to {worst[1]:.3g} after the weight swap"
    return "all weights are equal, so the two compute differently (precision, template, masking?)"
