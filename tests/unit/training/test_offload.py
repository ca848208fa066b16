"""A trainer that leaves the device frees it, and goes on as if it had stayed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import model_state, precision_of
from megatron_gad.planning.shapes import read_shape
from megatron_gad.training.offload import DeviceBytes
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.reference import Reference
from megatron_gad.training.trainer import Trainer
from tests.tiny_training import (
    make_discriminator,
    make_student,
    pair_rows,
    student_batch,
    training_state,
    weights,
)

V = 97
BRADLEY_TERRY = partial(discriminator_loss, kind="bradley_terry")
AWAY = DeviceBytes(weights=0, gradients=0, optimizer=0)


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"])
def compute(request: pytest.FixtureRequest) -> ComputeConfig:
    return ComputeConfig(bf16=request.param)


@pytest.fixture
def student(place: Parallel, qwen2: Path, compute: ComputeConfig) -> Trainer:
    """A student that took a step, so that it has moments."""
    student = make_student(qwen2, place, compute=compute, lr=1e-3)
    student.train(student_batch(V), supervised_loss)
    return student


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_sleep_frees_the_bytes_that_are_planned(
    student: Trainer, qwen2: Path, compute: ComputeConfig
) -> None:
    planned = model_state(read_shape(qwen2), Layout(), precision_of(compute.bf16, False), False)
    held = student.memory.device_bytes()
    assert held.weights == planned.weights
    assert held.gradients == pytest.approx(planned.gradients, rel=0.05)
    assert held.optimizer == pytest.approx(planned.optimizer, rel=0.05)
    student.sleep()
    assert student.memory.device_bytes() == AWAY
    assert student.memory.copied_bytes == held.weights + held.optimizer
    student.wake()
    assert student.memory.device_bytes() == held
    assert student.memory.copied_bytes == 2 * (held.weights + held.optimizer)


@pytest.mark.parametrize("is_scorer", [False, True])
def test_training_goes_on_bit_for_bit(
    place: Parallel, qwen2: Path, compute: ComputeConfig, is_scorer: bool
) -> None:
    make = make_discriminator if is_scorer else make_student
    batch = pair_rows(V) if is_scorer else student_batch(V)
    loss = BRADLEY_TERRY if is_scorer else supervised_loss
    results = []
    for rests in (lambda trainer: None, Trainer.sleep, lambda t: t.memory.release_gradients()):
        trainer, seen = make(qwen2, place, compute=compute, lr=1e-3), []
        for _ in range(3):
            rests(trainer)
            output = trainer.train(batch, loss)
            seen.append((output.metrics, output.rows.tolist()))
        results.append((seen, training_state(trainer)))
    for seen, state in results[1:]:
        assert seen == results[0][0]
        assert same(state, results[0][1])


@pytest.mark.parametrize(
    ("look", "needs_optimizer"),
    [
        (lambda student: student.logprobs(student_batch(V), 0.8), False),
        (lambda student: student.evaluate(student_batch(V), supervised_loss).rows, False),
        (lambda student: torch.cat([x.flatten() for x in weights(student).values()]), False),
        (lambda student: torch.cat([tensor.flatten() for tensor in student.snapshot()]), False),
        (lambda student: torch.cat([x.flatten() for x in training_state(student)]), True),
    ],
    ids=["logprobs", "evaluate", "hf_weights", "snapshot", "state"],
)
def test_use_brings_back_what_it_needs(
    student: Trainer, look: Callable[[Trainer], Tensor], needs_optimizer: bool
) -> None:
    held = student.memory.device_bytes()
    expected = look(student)
    student.sleep()
    assert torch.equal(look(student), expected)
    found = student.memory.device_bytes()
    assert found.weights == held.weights
    assert found.optimizer == (held.optimizer if needs_optimizer else 0)


def test_weights_may_stay_where_the_rest_leaves(student: Trainer) -> None:
    held = student.memory.device_bytes()
    student.sleep(keep_weights=True)
    assert student.memory.device_bytes() == DeviceBytes(held.weights, 0, 0)
    student.sleep()
    student.sleep(keep_weights=True)
    assert student.memory.device_bytes() == DeviceBytes(held.weights, 0, 0)


def test_what_did_not_change_is_copied_out_once(student: Trainer) -> None:
    held, batch = student.memory.device_bytes(), student_batch(V)
    student.sleep()
    student.logprobs(batch)
    student.sleep()
    # All of it out, the weights in, nothing out.
    assert student.memory.copied_bytes == 2 * held.weights + held.optimizer
    student.train(batch, supervised_loss)
    student.sleep()
    moved = held.weights + held.optimizer
    assert student.memory.copied_bytes == held.weights + 3 * moved


def test_the_reference_costs_no_copy_of_frozen_bytes(student: Trainer) -> None:
    batch = student_batch(V)
    reference = Reference(student, student.snapshot())
    kept = [tensor.clone() for tensor in reference.snapshot]
    expected = student.logprobs(batch, 0.8)
    student.train(batch, supervised_loss)
    after, own = training_state(student), student.logprobs(batch, 0.8)
    student.sleep()
    before = student.memory.copied_bytes
    assert torch.equal(reference.logprobs(batch, 0.8), expected)
    assert torch.equal(student.logprobs(batch, 0.8), own)
    # Asleep, the student has its weights on the host already: the reference's come in, then they.
    assert student.memory.copied_bytes - before == 2 * student.memory.device_bytes().weights
    assert same(reference.snapshot, kept)
    assert same(training_state(student), after)


def test_moments_that_are_forgotten_asleep_do_not_come_back(student: Trainer, qwen2: Path) -> None:
    held = student.memory.device_bytes()
    student.sleep()
    student.begin_stage(lr=1e-3, total_steps=1, reset_optimizer=True)
    student.wake()
    moments = 8 * held.gradients // 4
    assert student.memory.device_bytes().optimizer == pytest.approx(
        held.optimizer - moments, abs=4 * len(student.snapshot())
    )


def test_weights_that_are_loaded_asleep_count(
    student: Trainer, qwen2: Path, place: Parallel, compute: ComputeConfig
) -> None:
    fresh = make_student(qwen2, place, compute=compute)
    student.sleep()
    student.load_hf_weights(qwen2)
    student.sleep()
    assert same(student.snapshot(), fresh.snapshot())
