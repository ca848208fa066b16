"""The step itself: AdamW, decay, clipping, schedules, and what a new stage forgets."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer
from tests.hf_reference import HfScorer, HfStudent, adamw, reference_gradients
from tests.tiny_training import (
    make_discriminator,
    make_student,
    parameters,
    student_batch,
    weights,
)

V = 97
BF16 = ComputeConfig(bf16=True)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


@pytest.mark.parametrize("clip_grad", [0.0, 0.2])
@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied", "llama"])
def test_steps_equal_those_of_torch_adamw(
    place: Parallel, request: pytest.FixtureRequest, name: str, clip_grad: float
) -> None:
    folder = request.getfixturevalue(name)
    batch, lr, weight_decay = student_batch(V), 1e-3, 0.1
    student = make_student(folder, place, lr=lr, weight_decay=weight_decay, clip_grad=clip_grad)
    reference = HfStudent(folder)
    optimizer = adamw(reference, lr, weight_decay)
    for _ in range(3):
        loss, gradients = reference_gradients(reference, batch, supervised_loss)
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
        if clip_grad:
            torch.nn.utils.clip_grad_norm_(reference.parameters.values(), clip_grad)
        optimizer.step()
        output = student.train(batch, supervised_loss)
        assert output.metrics["loss"] == pytest.approx(loss, rel=2e-5)
        assert norm > 0.3
        assert output.metrics["grad_norm"] == pytest.approx(norm, rel=2e-5)
    expected = {name: value.detach() for name, value in reference.parameters.items()}
    # Three steps move a weight by up to 3e-3. AdamW makes a whole step of a gradient that is
    # almost 0, rounding errors included, so single weights may differ by more.
    assert largest_difference(weights(student), expected) < 3e-5
    differences = [(weights(student)[name] - w).abs().flatten() for name, w in expected.items()]
    assert torch.cat(differences).mean() < 1e-8


def test_matrices_decay_and_norms_and_biases_do_not(place: Parallel, qwen2: Path) -> None:
    """Without a gradient a step is nothing but decay: w (1 - lr wd)."""
    nothing = student_batch(V, rows=((3, 0), (2, 0)))
    student = make_student(qwen2, place, lr=0.1, weight_decay=0.5)
    discriminator = make_discriminator(qwen2, place, lr=0.1, weight_decay=0.5)
    scored = HfScorer(qwen2).parameters
    before = weights(student)
    student.train(nothing, supervised_loss)
    for name, value in weights(student).items():
        kept = 1.0 if value.dim() == 1 else 0.95
        torch.testing.assert_close(value, before[name] * kept, atol=0, rtol=1e-6)
    factors = [group["weight_decay"] for group in discriminator.optimizer_to_read().param_groups]
    assert sorted(factors) == [0.0, 0.5]
    decayed = {
        id(parameter)
        for group in discriminator.optimizer_to_read().param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    assert {p.dim() > 1 for p in parameters(discriminator) if id(p) in decayed} == {True}
    assert sum(p.dim() > 1 for p in parameters(discriminator)) == len(decayed)
    assert scored["score.weight"].dim() == 2


def test_clipping_bounds_the_global_norm(place: Parallel, qwen2: Path) -> None:
    student = make_student(qwen2, place, clip_grad=0.2)
    norm = student.train(student_batch(V), supervised_loss).metrics["grad_norm"]
    assert norm > 0.3
    clipped = torch.cat([p.main_grad.flatten() for p in parameters(student)]).norm().item()
    assert clipped == pytest.approx(0.2, rel=1e-5)


def rates(place: Parallel, folder: Path, steps: int, total: int, **options: Any) -> list[float]:
    """The learning rates of the first steps, as they are reported and as they are used."""
    student = make_student(folder, place, **options)
    student.begin_stage(lr=0.01, total_steps=total)
    batch = student_batch(V, rows=((2, 2),))
    reported = []
    for _ in range(steps):
        reported.append(student.train(batch, supervised_loss).metrics["lr"])
        assert {group["lr"] for group in student.optimizer_to_read().param_groups} == {reported[-1]}
    return reported


def test_a_constant_rate_is_there_from_the_first_step(place: Parallel, qwen2: Path) -> None:
    assert rates(place, qwen2, 3, total=2) == [0.01, 0.01, 0.01]


def test_warm_up_is_linear(place: Parallel, qwen2: Path) -> None:
    found = rates(place, qwen2, 6, total=10, lr_warmup_steps=4)
    assert found == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_a_cosine_ends_at_its_minimum(place: Parallel, qwen2: Path) -> None:
    options: dict[str, Any] = {"lr_decay_style": "cosine", "lr_warmup_steps": 2, "min_lr": 0.002}
    found = rates(place, qwen2, 7, total=6, **options)
    half = math.sqrt(0.5) / 2
    # From 0.01 after two steps to 0.002 after six: min + (max - min) (1 + cos(pi k / 4)) / 2.
    falling = [0.002 + 0.008 * part for part in (0.5 + half, 0.5, 0.5 - half, 0.0)]
    assert found == pytest.approx([0.005, 0.01, *falling, 0.002])


def test_a_schedule_goes_on_where_it_was(place: Parallel, qwen2: Path) -> None:
    options: dict[str, Any] = {"lr_decay_style": "cosine", "lr_warmup_steps": 2, "min_lr": 0.002}
    found = rates(place, qwen2, 6, total=6, **options)
    student = make_student(qwen2, place, **options)
    student.begin_stage(lr=0.01, total_steps=6)
    student.schedule.resume(num_steps=3)
    batch = student_batch(V, rows=((2, 2),))
    rest = [student.train(batch, supervised_loss).metrics["lr"] for _ in range(3)]
    assert rest == found[3:]
    assert student.schedule.num_steps == 6


def test_a_stage_may_have_a_rate_below_the_configured_minimum(place: Parallel, qwen2: Path) -> None:
    student = make_student(qwen2, place, lr=0.01, min_lr=0.005, lr_decay_style="cosine")
    student.begin_stage(lr=0.001, total_steps=4)
    batch = student_batch(V, rows=((2, 2),))
    assert student.train(batch, supervised_loss).metrics["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize("compute", [ComputeConfig(), BF16], ids=["fp32", "bf16"])
def test_a_reset_optimizer_steps_like_a_new_one(
    place: Parallel, qwen2: Path, compute: ComputeConfig
) -> None:
    batch, other = student_batch(V), student_batch(V, rows=((2, 7), (3, 3)))
    used = make_student(qwen2, place, compute=compute)
    for _ in range(3):
        used.train(other, supervised_loss)
    new = make_student(qwen2, place, compute=compute)
    new.load_hf_weights(used.hf_weights())
    used.load_hf_weights(new.hf_weights())
    used.begin_stage(0.01, total_steps=1, reset_optimizer=True)
    for _ in range(2):
        ours, expected = (t.train(batch, supervised_loss).metrics for t in (used, new))
        assert ours == expected
    assert largest_difference(weights(used), weights(new)) == 0.0


def test_a_new_stage_keeps_the_moments_unless_told_to_forget(place: Parallel, qwen2: Path) -> None:
    batch, other = student_batch(V), student_batch(V, rows=((2, 7), (3, 3)))
    results = []
    for begins, resets in ((False, False), (True, False), (True, True)):
        student = make_student(qwen2, place, lr=0.01)
        student.train(other, supervised_loss)
        if begins:
            student.begin_stage(0.01, total_steps=1, reset_optimizer=resets)
        student.train(batch, supervised_loss)
        results.append(weights(student))
    assert largest_difference(results[0], results[1]) == 0.0
    assert largest_difference(results[0], results[2]) > 1e-3


def test_in_bf16_a_reset_keeps_updates_that_bf16_cannot_show(place: Parallel, qwen2: Path) -> None:
    """Four steps of 1e-5 move a weight of 0.1 by less than bf16 can: they live in the main copy."""
    student = make_student(qwen2, place, compute=BF16, lr=1e-5, weight_decay=0.0)
    batch = student_batch(V)
    for _ in range(4):
        student.train(batch, supervised_loss)
    before = main_weights(student)
    student.begin_stage(1e-5, total_steps=1, reset_optimizer=True)
    for ours, expected in zip(main_weights(student), before, strict=True):
        assert torch.equal(ours, expected)
    assert any(
        not torch.equal(main, p.float())
        for main, p in zip(before, parameters(student), strict=True)
    )


def main_weights(trainer: Trainer) -> list[Tensor]:
    """Copies of the float32 weights behind the parameters."""
    return [p.main_param.detach().clone() for p in parameters(trainer)]


def test_bf16_trains_and_adds_up_updates_below_its_resolution(place: Parallel, qwen2: Path) -> None:
    batch = student_batch(V)
    student = make_student(qwen2, place, compute=BF16, lr=1e-5, weight_decay=0.0)
    assert {p.dtype for p in parameters(student)} == {torch.bfloat16}
    start = main_weights(student)
    losses = [student.train(batch, supervised_loss).metrics["loss"] for _ in range(20)]
    assert losses[-1] < losses[0] - 0.02
    for main, before in zip(main_weights(student), start, strict=True):
        assert main.dtype == torch.float32
        # AdamW at a nearly constant gradient goes on by lr a step.
        moved = (main - before).abs()
        assert moved.max() < 21e-5
        assert moved.max() > 15e-5
    for p in parameters(student):
        assert torch.equal(p.main_param.bfloat16(), p.detach())


def test_bf16_falls_as_float32_does(place: Parallel, qwen2: Path) -> None:
    batch = student_batch(V)
    losses = {}
    for compute in (ComputeConfig(), BF16):
        student = make_student(qwen2, place, compute=compute, lr=3e-3)
        losses[compute.bf16] = [
            student.train(batch, supervised_loss).metrics["loss"] for _ in range(12)
        ]
    assert losses[False][-1] < losses[False][0] - 1.5
    assert losses[True] == pytest.approx(losses[False], rel=0.03)
