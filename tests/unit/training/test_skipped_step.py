"""A step whose numbers are not finite leaves the trainer as it was."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Batch, LanguageOutput, Loss
from tests.tiny_training import (
    make_discriminator,
    make_student,
    pair_rows,
    parameters,
    student_batch,
    training_state,
)

V = 97
RATE = {"lr": 1e-3, "lr_warmup_steps": 4, "clip_grad": 0.2}


def loss_is_nan(output: LanguageOutput, batch: Batch) -> Loss:
    """A NaN that has no gradient."""
    loss = supervised_loss(output, batch)
    total = loss.total + math.nan
    return Loss(total, loss.count, {"loss": (total.detach(), loss.count)})


def gradient_overflows(output: LanguageOutput, batch: Batch) -> Loss:
    """A loss of 0 with gradients whose squares overflow."""
    loss = supervised_loss(output, batch)
    total = (loss.total - loss.total.detach()) * 1e30
    return Loss(total, loss.count, {"loss": (total.detach(), loss.count)})


def one_advantage_is_nan(output: LanguageOutput, batch: Batch) -> Loss:
    advantages = torch.ones(len(batch.tokens))
    advantages[0] = math.nan
    return policy_loss(output, batch.with_advantages(advantages), PolicyOptions())


@pytest.mark.parametrize("loss", [loss_is_nan, gradient_overflows, one_advantage_is_nan])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("distributed", [False, True])
def test_a_skipped_step_changes_nothing_bit_for_bit(
    place: Parallel, qwen2: Path, loss: Callable[..., Loss], bf16: bool, distributed: bool
) -> None:
    """And the step after it is the one that would have been taken without it."""
    layout = ParallelConfig(use_distributed_optimizer=distributed)
    make = partial(make_student, qwen2, place, layout, ComputeConfig(bf16=bf16), **RATE)
    student, never_broken = make(), make()
    for trainer in (student, never_broken):
        trainer.train(student_batch(V), supervised_loss)
    before = student.snapshot()
    skipped = student.train(student_batch(V), loss)
    assert skipped.is_skipped and skipped.metrics["skipped_steps"] == 1.0
    assert all(map(torch.equal, before, student.snapshot()))
    assert student.schedule.num_steps == 1
    ours = student.train(student_batch(V), supervised_loss)
    theirs = never_broken.train(student_batch(V), supervised_loss)
    assert not ours.is_skipped and ours.metrics == theirs.metrics
    assert ours.metrics["lr"] == pytest.approx(2 / 4 * RATE["lr"])
    if not distributed:
        assert all(map(torch.equal, training_state(student), training_state(never_broken)))
    assert all(map(torch.equal, student.snapshot(), never_broken.snapshot()))


def test_a_first_step_that_is_skipped_leaves_no_moments(place: Parallel, qwen2: Path) -> None:
    student = make_student(qwen2, place, **RATE)
    student.train(student_batch(V), loss_is_nan)
    student.train(student_batch(V), supervised_loss)
    fresh = make_student(qwen2, place, **RATE)
    fresh.train(student_batch(V), supervised_loss)
    assert all(map(torch.equal, training_state(student), training_state(fresh)))


@pytest.mark.parametrize("split_groups", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_score_that_is_not_finite_skips_the_discriminators_step(
    place: Parallel, qwen2: Path, split_groups: bool, value: float
) -> None:
    """Also that of a rollout that is scored and does not train."""
    pairs = pair_rows(V, num_trained=2)
    tokens, row = pairs.tokens.clone(), 3  # the third rollout of the first group
    assert not pairs.trained[row]
    rare = next(token for token in range(1, V) if not (tokens == token).any())
    tokens[row, int(pairs.lengths[row]) - 1] = rare
    pairs = replace(pairs, tokens=tokens)
    discriminator = make_discriminator(qwen2, place)
    discriminator.train(pairs, lambda output, _: Loss(output.scores.sum(), torch.tensor(1.0)))
    (embedding,) = [p for p in parameters(discriminator) if p.shape == (V, 32)]
    with torch.no_grad():
        embedding[rare] = value
    before = training_state(discriminator)
    judged = judge(discriminator, pairs, "bradley_terry", split_groups)
    assert torch.isfinite(judged.rows).tolist() == [index != row for index in range(8)]
    assert judged.is_skipped
    after = training_state(discriminator)
    assert all(
        a.nan_to_num(7.0).equal(b.nan_to_num(7.0)) for a, b in zip(before, after, strict=True)
    )
