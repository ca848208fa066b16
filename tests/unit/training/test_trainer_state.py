"""What leaves a trainer as it was, and what puts other weights into it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.reference import Reference
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Loss
from tests.hf_reference import HfScorer, HfStudent
from tests.tiny import make_hf_folder
from tests.tiny_training import (
    make_discriminator,
    make_student,
    pair_rows,
    parameters,
    student_batch,
    training_state,
    weights,
)

V = 97
BRADLEY_TERRY = partial(discriminator_loss, kind="bradley_terry")


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"])
def compute(request: pytest.FixtureRequest) -> ComputeConfig:
    return ComputeConfig(bf16=request.param)


@pytest.fixture
def student(place: Parallel, qwen2: Path, compute: ComputeConfig) -> Trainer:
    """A student that took two steps."""
    student = make_student(qwen2, place, compute=compute, lr=1e-3)
    for _ in range(2):
        student.train(student_batch(V), supervised_loss)
    return student


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("other"), seed=7)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "look",
    [
        lambda student: student.logprobs(student_batch(V), 0.8),
        lambda student: student.evaluate(student_batch(V), supervised_loss).rows,
        lambda student: torch.cat([tensor.flatten() for _, tensor in student.hf_weights()]),
        lambda student: torch.cat([tensor.flatten() for tensor in student.snapshot()]),
    ],
    ids=["logprobs", "evaluate", "hf_weights", "snapshot"],
)
def test_looking_changes_nothing(student: Trainer, look: Callable[[Trainer], Tensor]) -> None:
    before = training_state(student)
    seen = look(student)
    assert not seen.requires_grad
    assert same(training_state(student), before)
    copied = seen.clone()
    student.train(student_batch(V), supervised_loss)
    assert torch.equal(seen, copied)


def test_looking_does_not_change_the_next_step(
    place: Parallel, qwen2: Path, compute: ComputeConfig
) -> None:
    batch, results = student_batch(V), []
    for looks in (False, True):
        student = make_student(qwen2, place, compute=compute)
        student.train(batch, supervised_loss)
        if looks:
            student.logprobs(batch)
            student.evaluate(batch, supervised_loss)
        student.train(batch, supervised_loss)
        results.append(training_state(student))
    assert same(*results)


def test_layers_are_in_training_only_where_a_backward_follows(place: Parallel, qwen2: Path) -> None:
    full = ComputeConfig(recompute_granularity="full")
    student, batch, seen = make_student(qwen2, place, compute=full), student_batch(V), set()
    for layer in student.modules_to_read()[0].decoder.layers:
        layer.register_forward_pre_hook(lambda layer, _: seen.add(layer.training))

    def seen_during(use: Callable[[], object]) -> set[bool]:
        seen.clear()
        use()
        return set(seen)

    def fails(*_: object) -> Loss:
        raise ValueError("no loss")

    assert seen_during(lambda: student.logprobs(batch)) == {False}
    with pytest.raises(ValueError, match="no loss"):
        student.evaluate(batch, fails)
    assert seen_during(lambda: student.train(batch, supervised_loss)) == {True}


def test_evaluation_reports_the_loss_that_training_would(student: Trainer) -> None:
    batch = student_batch(V)
    evaluated = student.evaluate(batch, supervised_loss)
    trained = student.train(batch, supervised_loss)
    assert set(trained.metrics) - set(evaluated.metrics) == {"grad_norm", "lr", "skipped_steps"}
    assert evaluated.metrics["loss"] == trained.metrics["loss"]
    assert torch.equal(evaluated.rows, trained.rows)


def test_scores_are_those_of_the_pass_that_trains(
    place: Parallel, qwen2: Path, compute: ComputeConfig
) -> None:
    pairs = pair_rows(V)
    discriminator = make_discriminator(qwen2, place, compute=compute)
    before = weights(discriminator)
    scores = discriminator.scores(pairs)
    evaluated = discriminator.evaluate(pairs, BRADLEY_TERRY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in discriminator.hf_weights())
    trained = discriminator.train(pairs, BRADLEY_TERRY)
    assert torch.equal(evaluated.rows, scores) and torch.equal(trained.rows, scores)
    assert scores.dtype == torch.float32 and not scores.requires_grad
    if not compute.bf16:
        torch.testing.assert_close(scores, HfScorer(qwen2).read(pairs).scores.detach())
    assert (discriminator.scores(pairs) - scores).abs().max() > 0.01


@pytest.mark.parametrize("rows", [1, 3, 5, 8])
def test_rows_of_a_pair_batch_are_scored_in_any_split(
    place: Parallel, qwen2: Path, rows: int
) -> None:
    pairs = pair_rows(V)
    scorer = make_discriminator(qwen2, place, compute=ComputeConfig(micro_batch_size=rows))
    torch.testing.assert_close(scorer.scores(pairs), HfScorer(qwen2).read(pairs).scores.detach())


def test_weights_come_back_under_their_names(
    place: Parallel, qwen2: Path, compute: ComputeConfig
) -> None:
    student = make_student(qwen2, place, compute=compute)
    dtype = torch.bfloat16 if compute.bf16 else torch.float32
    exported = weights(student)
    expected = HfStudent(qwen2).parameters
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(exported[name], value.detach().to(dtype)), name


def test_loaded_weights_are_trained_from(
    place: Parallel, qwen2: Path, other_folder: Path, compute: ComputeConfig
) -> None:
    """The main copies follow: else the next step would bring the old weights back."""
    batch, results = student_batch(V), []
    for first in (qwen2, other_folder):
        student = make_student(first, place, compute=compute)
        student.load_hf_weights(other_folder)
        student.train(batch, supervised_loss)
        results.append(training_state(student))
    assert same(*results)


def test_a_swap_lends_the_weights_and_gives_them_back(student: Trainer) -> None:
    batch = student_batch(V)
    before, logprobs = training_state(student), student.logprobs(batch)
    snapshot = student.snapshot()
    kept = [tensor.clone() for tensor in snapshot]
    student.train(batch, supervised_loss)
    after = training_state(student)
    student.swap(snapshot)
    assert torch.equal(student.logprobs(batch), logprobs)
    student.swap(snapshot)
    assert same(training_state(student), after) and not same(after, before)
    assert same(snapshot, kept)


def test_the_reference_computes_with_its_own_weights(student: Trainer) -> None:
    batch = student_batch(V)
    reference = Reference(student, student.snapshot())
    expected = student.logprobs(batch, 0.8)
    student.train(batch, supervised_loss)
    after = training_state(student)
    assert torch.equal(reference.logprobs(batch, 0.8), expected)
    assert same(training_state(student), after)
    assert not torch.equal(student.logprobs(batch, 0.8), expected)


def test_restored_weights_are_those_of_the_snapshot(student: Trainer) -> None:
    batch = student_batch(V)
    snapshot = student.snapshot()
    logprobs = student.logprobs(batch)
    kept = [tensor.clone() for tensor in snapshot]
    student.train(batch, supervised_loss)
    student.restore(snapshot)
    assert same(student.snapshot(), kept)
    assert torch.equal(student.logprobs(batch), logprobs)
    for parameter in parameters(student):
        main = getattr(parameter, "main_param", parameter)
        assert torch.equal(main, parameter.float())
    # A step from there goes on from the restored weights.
    student.begin_stage(lr=1e-6, total_steps=1)
    student.train(batch, supervised_loss)
    for parameter, start in zip(parameters(student), kept, strict=True):
        main = getattr(parameter, "main_param", parameter)
        assert (main - start.float()).abs().max() < 1e-5
