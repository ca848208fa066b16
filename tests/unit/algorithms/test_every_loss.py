"""Promises that every loss keeps: any split gives the same result, masked values are not there."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.divergence import divergence_loss, sampled_divergence_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.preference import preference_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.types import Batch, LanguageOutput, Loss, PairBatch, ScorerOutput

NUM_ROWS, NUM_TOKENS, GROUP_SIZE = 24, 7, 2
NAN = float("nan")


@dataclass(frozen=True)
class LossCase:
    """A loss with a batch of 24 rows that may be cut between units of rows_per_unit rows."""

    loss_fn: Callable[..., Loss]
    batch: Batch | PairBatch
    values: Tensor
    rows_per_unit: int


def _numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _batch() -> Batch:
    """Rows with 0 to 5 response tokens, and all that a loss may want."""
    lengths = 2 + torch.arange(NUM_ROWS) % (NUM_TOKENS - 1)
    positions = torch.arange(NUM_TOKENS)
    shape = (NUM_ROWS, NUM_TOKENS)
    return Batch(
        tokens=torch.zeros(shape, dtype=torch.int64),
        lengths=lengths,
        response_mask=(positions >= 2) & (positions < lengths[:, None]),
        rollout_logprobs=_numbers(*shape, seed=1),
        ref_logprobs=_numbers(*shape, seed=2),
        old_logprobs=_numbers(*shape, seed=3),
        advantages=_numbers(*shape, seed=4),
    )


def _pair_batch() -> PairBatch:
    is_trained = torch.arange(NUM_ROWS) % 5 != 1
    is_trained[:: 1 + GROUP_SIZE] = True
    return PairBatch(
        tokens=torch.zeros(NUM_ROWS, 1, dtype=torch.int64),
        lengths=torch.ones(NUM_ROWS, dtype=torch.int64),
        response_mask=torch.ones(NUM_ROWS, 1, dtype=torch.bool),
        trained=is_trained,
        group_size=GROUP_SIZE,
    )


def _language_case(loss_fn: Callable[..., Loss], rows_per_unit: int = 1) -> LossCase:
    return LossCase(loss_fn, _batch(), _numbers(NUM_ROWS, NUM_TOKENS, seed=0), rows_per_unit)


def _scorer_case(kind: str) -> LossCase:
    loss_fn = partial(discriminator_loss, kind=kind)  # pyright: ignore[reportArgumentType]
    return LossCase(loss_fn, _pair_batch(), _numbers(NUM_ROWS, seed=0), 1 + GROUP_SIZE)


def _divergences(output: LanguageOutput, batch: Batch) -> Loss:
    """The values are taken for divergences in place of log-probabilities."""
    return divergence_loss(replace(output, divergence=output.logprobs), batch)


POLICY = PolicyOptions(kl_coef=0.1, tis_cap=1.5)
CASES = {
    "supervised": _language_case(supervised_loss),
    "policy": _language_case(partial(policy_loss, options=POLICY)),
    "policy, sequence mean": _language_case(
        partial(policy_loss, options=replace(POLICY, aggregation="sequence_mean"))
    ),
    "policy, constant": _language_case(
        partial(policy_loss, options=replace(POLICY, aggregation="constant", max_length=9))
    ),
    "policy, clip-higher, dual clip": _language_case(
        partial(policy_loss, options=replace(POLICY, clip_range_high=0.4, dual_clip=1.5))
    ),
    "gspo": _language_case(partial(policy_loss, options=replace(POLICY, kind="gspo"))),
    "cispo": _language_case(partial(policy_loss, options=replace(POLICY, kind="cispo"))),
    "policy, k2": _language_case(partial(policy_loss, options=replace(POLICY, kl_estimator="k2"))),
    "dpo": _language_case(partial(preference_loss, kind="dpo", beta=0.3), rows_per_unit=2),
    "simpo": _language_case(partial(preference_loss, kind="simpo", beta=0.3), rows_per_unit=2),
    "divergence": _language_case(_divergences),
    "sampled divergence": _language_case(sampled_divergence_loss),
    "bradley_terry": _scorer_case("bradley_terry"),
    "cross_entropy": _scorer_case("cross_entropy"),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
# These two have a gradient that is not of their value: test_policy_kinds.py, test_divergence.py.
OTHER_GRADIENTS = {"cispo", "sampled divergence"}
SLOPES = {name: case for name, case in CASES.items() if name not in OTHER_GRADIENTS}


def _take(batch: Any, rows: slice) -> Any:
    """The rows of a batch, as the trainer cuts it."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    cut = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **cut)


def _loss(case: LossCase, values: Tensor, rows: slice = slice(None)) -> Loss:
    taken = values[rows]
    if isinstance(case.batch, PairBatch):
        return case.loss_fn(ScorerOutput(taken), _take(case.batch, rows))
    return case.loss_fn(LanguageOutput(taken, taken.detach().square()), _take(case.batch, rows))


def _accumulate(case: LossCase, sizes: list[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, gradient and metrics of the batch from microbatches of these sizes, in units."""
    values = case.values.clone().requires_grad_()
    start, losses = 0, []
    for size in sizes:
        stop = start + size * case.rows_per_unit
        losses.append(_loss(case, values, slice(start, stop)))
        start = stop
    assert start == NUM_ROWS
    count = torch.stack([loss.count for loss in losses]).sum()
    total = torch.stack([loss.total for loss in losses]).sum() / count
    (gradient,) = torch.autograd.grad(total, values)
    metrics: dict[str, Tensor] = {}
    for name in losses[0].metrics:
        sums, counts = zip(*(loss.metrics[name] for loss in losses), strict=True)
        metrics[name] = torch.stack(sums).sum() / torch.stack(counts).sum()
    return total.detach(), gradient, metrics


@every_loss
def test_splitting_into_microbatches_changes_nothing(case):
    units = NUM_ROWS // case.rows_per_unit
    whole = _accumulate(case, [units])
    for sizes in ([units // 4] * 4, [1, units - 3, 2], [1] * units):
        torch.testing.assert_close(_accumulate(case, sizes), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", SLOPES.values(), ids=SLOPES.keys())
def test_gradient_equals_finite_differences(case):
    values = case.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _loss(case, x).total, values)


@every_loss
def test_masked_nan_never_leaks(case):
    kept = case.batch.trained if isinstance(case.batch, PairBatch) else case.batch.response_mask

    def poison(value: Any) -> Any:
        is_numbers = isinstance(value, Tensor) and value.is_floating_point()
        return torch.where(kept, value, NAN) if is_numbers else value

    poisoned_batch = replace(
        case.batch,
        **{field.name: poison(getattr(case.batch, field.name)) for field in fields(case.batch)},
    )
    poisoned = replace(case, batch=poisoned_batch, values=poison(case.values))
    assert poisoned.values.isnan().any()
    result = _accumulate(poisoned, [NUM_ROWS // case.rows_per_unit])
    expected = _accumulate(case, [NUM_ROWS // case.rows_per_unit])
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert torch.equal(result[1][~kept], torch.zeros_like(result[1][~kept]))


@every_loss
def test_a_loss_is_float32_and_its_metrics_carry_no_gradient(case):
    values = case.values.float().requires_grad_()
    batch = replace(
        case.batch,
        **{
            field.name: value.float()
            for field in fields(case.batch)
            if isinstance(value := getattr(case.batch, field.name), Tensor)
            and value.is_floating_point()
        },
    )
    loss = _loss(replace(case, batch=batch), values)
    assert loss.total.requires_grad
    for value in (loss.total, loss.count, *(x for pair in loss.metrics.values() for x in pair)):
        assert value.dtype == torch.float32
        assert value.shape == ()
    assert not any(x.requires_grad for pair in loss.metrics.values() for x in pair)
