"""Losses and gradients of the trainer on one rank, against transformers and split invariance."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Loss
from tests.hf_reference import HfScorer, HfStudent, reference_gradients
from tests.memory import LargestTensor
from tests.tiny import make_hf_folder
from tests.tiny_training import (
    gradients,
    make_discriminator,
    make_student,
    pair_rows,
    parameters,
    student_batch,
    weights,
    widened,
)

V = 97
POLICY = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))
SEQUENCE_MEAN = partial(policy_loss, options=PolicyOptions(aggregation="sequence_mean"))
STUDENT_LOSSES = {"supervised": supervised_loss, "policy": POLICY, "sequence_mean": SEQUENCE_MEAN}
BRADLEY_TERRY = partial(discriminator_loss, kind="bradley_terry")


def assert_same(
    ours: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-6
) -> None:
    """Every tensor equal to within a part of its largest entry."""
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1e-9, value.abs().max().item())
        difference = (ours[name] - value).abs().max().item()
        assert difference <= relative * scale, f"{name}: {difference / scale:.2g} of {scale:.3g}"


def padded(rows: int) -> ComputeConfig:
    """Microbatches of so many rows, as wide as the longest."""
    return ComputeConfig(micro_batch_size=rows, pack_sequences=False)


@pytest.fixture(params=["qwen2", "qwen2_tied", "llama", "qwen3_moe"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("loss", STUDENT_LOSSES.values(), ids=STUDENT_LOSSES.keys())
def test_the_students_loss_and_gradients_equal_those_of_transformers(
    place: Parallel, folder: Path, loss: Callable[..., Loss]
) -> None:
    batch = student_batch(V)
    student = make_student(folder, place, compute=padded(3))
    output = student.train(batch, loss, temperature=0.8)
    expected_loss, expected = reference_gradients(HfStudent(folder), batch, loss, 0.8)
    assert output.metrics["loss"] == pytest.approx(expected_loss, rel=1e-5)
    assert_same(gradients(student), expected, relative=2e-5)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm().item()
    assert output.metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("loss_kind", ["bradley_terry", "cross_entropy"])
@pytest.mark.parametrize("kind", ["last_token", "sum", "mean"])
def test_the_discriminators_loss_and_gradients_equal_those_of_transformers(
    place: Parallel, folder: Path, kind: str, loss_kind: Any
) -> None:
    pairs = pair_rows(V, num_trained=2)
    loss = partial(discriminator_loss, kind=loss_kind)
    compute = padded(4)
    discriminator = make_discriminator(folder, place, compute=compute, score=kind)
    output = discriminator.train(pairs, loss)
    reference = HfScorer(folder, kind)
    expected_loss, expected = reference_gradients(reference, pairs, loss)
    assert output.metrics["loss"] == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(output.rows, reference.read(pairs).scores.detach())
    assert_same(gradients(discriminator), expected, relative=2e-5)


def test_the_supervised_loss_is_the_cross_entropy_of_all_response_tokens(
    place: Parallel, qwen2: Path
) -> None:
    batch = student_batch(V)
    reference = HfStudent(qwen2)
    labels = torch.where(batch.response_mask, batch.tokens, -100)
    expected = reference.model(batch.tokens, labels=labels).loss.item()
    output = make_student(qwen2, place).train(batch, supervised_loss)
    assert output.metrics["loss"] == pytest.approx(expected, rel=1e-6)


def test_rows_are_the_logprobs_from_before_the_update(place: Parallel, qwen2: Path) -> None:
    batch = student_batch(V)
    student = make_student(qwen2, place, compute=padded(3))
    before = student.logprobs(batch, temperature=0.8)
    rows = student.train(batch, POLICY, temperature=0.8).rows
    assert torch.equal(rows, before)
    expected = HfStudent(qwen2).read(batch, 0.8).logprobs.detach()
    torch.testing.assert_close(before, expected, atol=1e-5, rtol=1e-5)
    assert (student.logprobs(batch, temperature=0.8) - before).abs().max() > 0.01


@pytest.mark.parametrize("loss", STUDENT_LOSSES.values(), ids=STUDENT_LOSSES.keys())
@pytest.mark.parametrize(
    ("rows", "width"),
    [(2, 0), (3, 0), (1, 0), (8, 20), (3, 15)],
    ids=["even", "uneven", "single", "padded", "uneven and padded"],
)
def test_splitting_and_padding_keep_the_students_gradient(
    place: Parallel, qwen2: Path, loss: Callable[..., Loss], rows: int, width: int
) -> None:
    batch = student_batch(V)
    whole = make_student(qwen2, place, compute=padded(8))
    split = make_student(qwen2, place, compute=padded(rows))
    expected = whole.train(batch, loss)
    output = split.train(widened(batch, width) if width else batch, loss)
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6)
    torch.testing.assert_close(output.rows[:, : batch.tokens.shape[1]], expected.rows)
    assert_same(gradients(split), gradients(whole), relative=2e-6)
    # Where a gradient is almost 0, the first AdamW step turns its rounding into a step.
    assert_same(weights(split), weights(whole), relative=1e-4)


@pytest.mark.parametrize("kind", ["last_token", "sum", "mean"])
@pytest.mark.parametrize(("rows", "width"), [(4, 0), (1, 0), (8, 20)])
def test_splitting_and_padding_keep_the_discriminators_gradient(
    place: Parallel, qwen2: Path, kind: str, rows: int, width: int
) -> None:
    pairs = pair_rows(V)
    whole = make_discriminator(qwen2, place, compute=padded(8), score=kind)
    compute = padded(rows)
    split = make_discriminator(qwen2, place, compute=compute, score=kind)
    expected = whole.train(pairs, BRADLEY_TERRY)
    output = split.train(widened(pairs, width) if width else pairs, BRADLEY_TERRY)
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6)
    torch.testing.assert_close(output.rows, expected.rows)
    assert_same(gradients(split), gradients(whole), relative=2e-6)


@pytest.mark.parametrize("rows", [8, 3])
@pytest.mark.parametrize("loss", STUDENT_LOSSES.values(), ids=STUDENT_LOSSES.keys())
def test_packing_keeps_the_students_gradient(
    place: Parallel, folder: Path, loss: Callable[..., Loss], rows: int
) -> None:
    batch = student_batch(V)
    compute = ComputeConfig(micro_batch_size=rows, pack_sequences=True)
    packed = make_student(folder, place, compute=compute)
    output = packed.train(widened(batch, 20), loss, temperature=0.8)
    expected_loss, expected = reference_gradients(HfStudent(folder), batch, loss, 0.8)
    assert output.metrics["loss"] == pytest.approx(expected_loss, rel=1e-5)
    assert_same(gradients(packed), expected, relative=2e-5)


@pytest.mark.parametrize("kind", ["last_token", "sum", "mean"])
def test_packing_keeps_the_discriminators_scores_and_gradient(
    place: Parallel, folder: Path, kind: str
) -> None:
    pairs = pair_rows(V, num_trained=2)
    compute = ComputeConfig(micro_batch_size=8, pack_sequences=True)
    packed = make_discriminator(folder, place, compute=compute, score=kind)
    output = packed.train(pairs, BRADLEY_TERRY)
    reference = HfScorer(folder, kind)
    _, expected = reference_gradients(reference, pairs, BRADLEY_TERRY)
    torch.testing.assert_close(output.rows, reference.read(pairs).scores.detach())
    assert_same(gradients(packed), expected, relative=2e-5)


def test_packing_runs_the_model_over_real_tokens_only(place: Parallel, qwen2: Path) -> None:
    batch = widened(student_batch(V), 20)
    compute = ComputeConfig(micro_batch_size=8, pack_sequences=True)
    student = make_student(qwen2, place, compute=compute)
    seen: list[int] = []
    hook = student.modules_to_read()[0].register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0].numel())
    )
    student.logprobs(batch)
    hook.remove()
    assert seen == [int(batch.lengths.sum())]


@pytest.mark.parametrize(
    "recompute",
    [
        {"recompute_granularity": "selective"},
        {"recompute_granularity": "full"},
        {"recompute_granularity": "full", "recompute_num_layers": 2},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2},
    ],
    ids=["selective", "uniform 1", "uniform 2", "block 2"],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_recomputing_activations_keeps_the_gradient_bit_for_bit(
    place: Parallel, tmp_path: Path, recompute: dict[str, Any], bf16: bool
) -> None:
    folder = make_hf_folder(tmp_path, num_hidden_layers=4)
    batch = student_batch(V)
    plain = make_student(folder, place, compute=ComputeConfig(bf16=bf16))
    recomputing = make_student(folder, place, compute=ComputeConfig(bf16=bf16, **recompute))
    expected = plain.train(batch, POLICY)
    calls = count_forwards(recomputing)
    assert recomputing.train(batch, POLICY).metrics == expected.metrics
    assert_same(gradients(recomputing), gradients(plain), relative=0.0)
    num_microbatches = 2  # of four of the eight rows
    again = {"selective": 0, "full": 4}[recompute["recompute_granularity"]]
    if "recompute_method" in recompute:
        again = recompute["recompute_num_layers"]
    assert len(calls) == num_microbatches * (4 + again)


def count_forwards(trainer: Trainer) -> list[int]:
    """A list that grows with every forward of a layer."""
    calls: list[int] = []
    for layer in trainer.modules_to_read()[0].decoder.layers:
        layer.register_forward_pre_hook(lambda module, _: calls.append(module.layer_number))
    return calls


def test_gradients_of_the_step_before_are_gone(place: Parallel, qwen2: Path) -> None:
    batch = student_batch(V)
    once, twice = (make_student(qwen2, place, lr=0.0, min_lr=0.0) for _ in range(2))
    once.train(batch, POLICY)
    twice.train(batch, supervised_loss)
    twice.train(batch, POLICY)
    assert_same(gradients(twice), gradients(once), relative=0.0)


def test_a_batch_without_response_tokens_moves_nothing(place: Parallel, qwen2: Path) -> None:
    batch = student_batch(V, rows=((3, 0), (2, 0)))
    student = make_student(qwen2, place, weight_decay=0.0)
    before = weights(student)
    output = student.train(batch, supervised_loss)
    assert output.metrics["grad_norm"] == 0.0 and output.metrics["loss"] == 0.0
    assert_same(weights(student), before, relative=0.0)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_never_holds_the_logits_of_all_tokens(
    place: Parallel, tmp_path: Path, bf16: bool
) -> None:
    """What is left is as large as the logits of a chunk, or as the largest weight."""
    num_tokens, vocab_size = 8 * 60, 500
    folder = make_hf_folder(tmp_path, vocab_size=vocab_size)
    compute = ComputeConfig(micro_batch_size=8, bf16=bf16, logprob_chunk_size=16)
    student = make_student(folder, place, compute=compute)
    batch = student_batch(vocab_size, rows=((1, 59),) * 8)
    with LargestTensor() as largest:
        student.train(batch, supervised_loss)
    num_weights = sum(parameter.numel() for parameter in parameters(student))
    assert 16 * vocab_size <= largest.num_elements < num_tokens * vocab_size / 4
    assert num_weights < num_tokens * vocab_size / 4  # so that they hide nothing


@pytest.mark.parametrize("pack_sequences", [False, True])
def test_the_chunk_size_keeps_the_gradient(
    place: Parallel, folder: Path, pack_sequences: bool
) -> None:
    batch = student_batch(V)
    chunks = [
        ComputeConfig(logprob_chunk_size=size, pack_sequences=pack_sequences) for size in (1024, 5)
    ]
    whole, chunked = (make_student(folder, place, compute=compute) for compute in chunks)
    expected = whole.train(batch, POLICY, temperature=0.8)
    output = chunked.train(batch, POLICY, temperature=0.8)
    assert output.metrics == pytest.approx(expected.metrics, rel=1e-6)
    assert_same(gradients(chunked), gradients(whole), relative=2e-6)
