"""Do the engine and the trainer hold the same student? Compared by log-probabilities of samples."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.rollout import BF16_GAP_ALARM, FP32_GAP_BOUND
from megatron_gad.config.run import RunConfig
from megatron_gad.data.batching import policy_batch
from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.training.reference import Reference
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Group, Metrics

# Half of the distance between 1 and the next number in bfloat16.
BF16_ROUNDING = 2.0**-8
# At least twice what benchmarks/logprob_gap.py finds for equal weights, on models of 2 to 8
# layers: per spread for even distributions, and what is left of it in sharp ones.
GAP_PER_SPREAD, GAP_OF_SHARP = 4.0, 12.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GapBound:
    """How far engine and trainer may be apart.

    largest: on any token, in nats; 0: any distance.
    rounding: of the precision; bounds the mean over tokens by ``mean_gap_bound``; 0: any mean.
    """

    largest: float = 0.0
    rounding: float = 0.0


@dataclass(frozen=True)
class Gap:
    """How far engine and trainer are apart over the sampled tokens of all data ranks, in nats."""

    largest: float
    mean: float


def gap_bound(configured: float | None, compute: ComputeConfig) -> GapBound:
    """Return the bound of the configuration, or else the one of the precision; FP8 has none."""
    if configured is not None:
        return GapBound(largest=configured)
    if not compute.bf16:
        return GapBound(largest=FP32_GAP_BOUND)
    return GapBound(rounding=0.0 if compute.fp8_format else BF16_ROUNDING)


def mean_gap_bound(
    rounding: float, num_layers: int, spread: float, probability: float, num_tokens: int
) -> float:
    """Return the largest mean gap, in nats, that rounding explains.

        u (1 + sqrt(L) (4 s + 12 p)) (1 + 3 / sqrt(n))

    Every layer rounds anew, and the errors add up like the steps of a random walk. They are parts
    of the logits, of which only the sampled tokens' log-probabilities are known. In even
    distributions, p near 0, those spread as the logits do; in sharp ones they spread less, and the
    gap comes from tokens between which the model is undecided. The constants are measured. The
    last factor allows for the scatter of a mean of few tokens.

    rounding: u. num_layers: L. spread: s, the standard deviation over tokens of the engine's
    log-probabilities. probability: p, the mean of its probabilities. num_tokens: n.
    """
    scale = 1.0 + math.sqrt(num_layers) * (GAP_PER_SPREAD * spread + GAP_OF_SHARP * probability)
    return rounding * scale * (1.0 + 3.0 / math.sqrt(max(num_tokens, 1)))


def check_gap(
    student: Trainer, sampler: Sampler | None, logprobs: Tensor, batch: Batch, bound: GapBound
) -> Gap:
    """Compare trainer and engine on the response tokens of all data ranks.

    logprobs: [B, T] float32 of the trainer at the sampling temperature, from before any update.
    batch: carries the engine's rollout_logprobs.
    sampler: whose engine to compare weights with; None once the student has moved on from them.

    Raises RunStoppedError where the gap passes the bound, naming the tensor that differs most.
    Without a bound on single tokens it warns of one that rounding does not explain.
    """
    assert batch.rollout_logprobs is not None
    engine = batch.rollout_logprobs[batch.response_mask].double()
    difference = (logprobs[batch.response_mask].double() - engine).abs()
    largest = student.parallel.max_over_data(float(difference.max()) if len(difference) else 0.0)
    values = (difference, engine, engine**2, engine.exp())
    sums = (float(len(engine)), *(float(each.sum()) for each in values))
    shares = student.parallel.gather_over_data(sums)
    num_tokens, *totals = (sum(column) for column in zip(*shares, strict=True))
    mean, first, second, probability = (total / max(num_tokens, 1.0) for total in totals)
    gap = Gap(largest, mean)
    _refuse_largest(student, sampler, gap, bound.largest)
    if bound.rounding:
        num_layers = student.hf_config.num_hidden_layers
        spread = math.sqrt(max(second - first**2, 0.0))
        allowed = mean_gap_bound(bound.rounding, num_layers, spread, probability, int(num_tokens))
        if not gap.mean <= allowed:
            raise RunStoppedError(
                f"engine and trainer disagree by {gap.mean:.3g} nats in the mean of {num_tokens:g} "
                f"sampled tokens; rounding explains {allowed:.3g} (a number for "
                "rollout.logprob_gap_bound bounds single tokens instead, 0 nothing): "
                f"{_reason(student, sampler)}"
            )
    return gap


def compare_first(run: Run, groups: Sequence[Group], earlier: Reference | None = None) -> Metrics:
    """Compare both on a few groups, which the engine sampled from the weights that both hold.

    earlier: the student's weights that the engine holds; default: those of the student as it is.
    """
    batch = policy_batch(groups)
    with run.turn("compare"):
        source = run.student if earlier is None else earlier
        logprobs = source.logprobs(batch, run.config.rollout.temperature)
    gap = check_gap(run.student, run.sampler, logprobs, batch, _bound(run.config))
    return {"engine/logprob_gap_max": gap.largest, "engine/logprob_gap_mean": gap.mean}


def compare_all(run: Run, logprobs: Tensor, batch: Batch, weights_lag: int) -> Metrics:
    """Compare both on the whole batch; older weights may differ by any amount.

    logprobs: [B, T] float32 of the trainer, from before its update.
    """
    bound = GapBound() if weights_lag else _bound(run.config)
    gap = check_gap(run.student, None, logprobs, batch, bound)
    name = "off_policy_gap" if weights_lag else "logprob_gap"
    return {f"engine/{name}_max": gap.largest, f"engine/{name}_mean": gap.mean}


def _bound(config: RunConfig) -> GapBound:
    return gap_bound(config.rollout.logprob_gap_bound, config.compute)


def _refuse_largest(student: Trainer, sampler: Sampler | None, gap: Gap, bound: float) -> None:
    if bound and not gap.largest <= bound:
        raise RunStoppedError(
            f"engine and trainer disagree by {gap.largest:.3g} nats on a sampled token (bound "
            f"{bound:g}, rollout.logprob_gap_bound): {_reason(student, sampler)}"
        )
    if not bound and not gap.largest <= BF16_GAP_ALARM and student.parallel.is_writer:
        logger.warning(
            "engine and trainer disagree by %.3g nats on a sampled token, more than rounding "
            "explains; rollout.logprob_gap_bound stops a run that does",
            gap.largest,
        )


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
