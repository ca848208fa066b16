"""Whatever bounds the microbatches of the trainer, a step computes the same."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.preference import preference_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.settings import TrainerSettings
from megatron_gad.training.trainer import Trainer
from tests.tiny_training import (
    gradients,
    make_discriminator,
    make_student,
    pair_rows,
    student_batch,
)

V = 97
POLICY = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))
BRADLEY_TERRY = partial(discriminator_loss, kind="bradley_terry")
WHOLE = ComputeConfig(micro_batch_size=8, pack_sequences=False)


def assert_same_gradients(ours: Trainer, theirs: Trainer) -> None:
    """Equal but for the order of float32 sums."""
    expected = gradients(theirs)
    for name, value in gradients(ours).items():
        scale = expected[name].abs().max().item()
        assert (value - expected[name]).abs().max().item() <= 1e-6 + 2e-6 * scale, name


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 12, 24, 1000])
def test_a_bound_by_tokens_changes_nothing_of_the_students_step(
    place: Parallel, qwen2: Path, max_tokens: int, is_packed: bool
) -> None:
    batch = student_batch(V)
    whole = make_student(qwen2, place, compute=WHOLE)
    compute = ComputeConfig(max_tokens_per_microbatch=max_tokens, pack_sequences=is_packed)
    bounded = make_student(qwen2, place, compute=compute)
    expected, output = whole.train(batch, POLICY), bounded.train(batch, POLICY)
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    # Rows come back in the order of the batch, although they are sorted by length.
    torch.testing.assert_close(output.rows, expected.rows, atol=5e-6, rtol=5e-6)
    assert_same_gradients(bounded, whole)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 24, 1000])
def test_pairs_that_a_loss_reads_together_stay_together(
    place: Parallel, qwen2: Path, max_tokens: int, is_packed: bool
) -> None:
    batch = replace(student_batch(V), rows_per_unit=2)
    loss = partial(preference_loss, kind="simpo", beta=2.0)
    whole = make_student(qwen2, place, compute=WHOLE)
    compute = ComputeConfig(max_tokens_per_microbatch=max_tokens, pack_sequences=is_packed)
    bounded = make_student(qwen2, place, compute=compute)
    expected, output = whole.train(batch, loss), bounded.train(batch, loss)
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    assert_same_gradients(bounded, whole)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 40, 1000])
@pytest.mark.parametrize("split_groups", [False, True])
def test_a_bound_by_tokens_changes_nothing_of_the_discriminators_step(
    place: Parallel, qwen2: Path, split_groups: bool, max_tokens: int, is_packed: bool
) -> None:
    pairs = pair_rows(V, num_trained=2)
    whole = make_discriminator(qwen2, place, compute=WHOLE)
    compute = ComputeConfig(max_tokens_per_microbatch=max_tokens, pack_sequences=is_packed)
    bounded = make_discriminator(qwen2, place, compute=compute)
    expected = judge(whole, pairs, "bradley_terry", split_groups=False)
    output = judge(bounded, pairs, "bradley_terry", split_groups)
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    torch.testing.assert_close(output.rows, expected.rows, atol=5e-6, rtol=5e-6)
    assert_same_gradients(bounded, whole)


def test_the_model_never_runs_over_more_tokens_than_the_bound(place: Parallel, qwen2: Path) -> None:
    compute = ComputeConfig(max_tokens_per_microbatch=24, pack_sequences=False)
    student = make_student(qwen2, place, compute=compute)
    seen: list[tuple[int, ...]] = []
    hook = student.modules_to_read()[0].register_forward_pre_hook(
        lambda _module, arguments: seen.append(tuple(arguments[0].shape))
    )
    output = student.evaluate(student_batch(V), POLICY)
    hook.remove()
    # Lengths 7, 6, 2, 4, 11, 3, 11 and 10, sorted.
    assert seen == [(2, 11), (2, 10), (4, 6)]
    assert output.padding_share == pytest.approx(1 - 54 / 66)


@pytest.mark.parametrize(
    ("layout", "compute", "is_packed"),
    [
        ({}, {}, True),
        ({}, {"pack_sequences": False}, False),
        ({"context_parallel_size": 2}, {}, False),
        ({}, {"transformer_impl": "transformer_engine"}, False),
        ({}, {"transformer_impl": "transformer_engine", "bf16": True}, True),
    ],
)
def test_sequences_are_packed_where_attention_takes_it(
    layout: dict[str, Any], compute: dict[str, Any], is_packed: bool
) -> None:
    settings = TrainerSettings(ParallelConfig(**layout), ComputeConfig(**compute), seed=0)
    assert settings.is_packed == is_packed


@pytest.mark.parametrize(("recipe", "own_tokens"), [("tensorwise", 32), ("blockwise", 128)])
def test_a_rank_has_as_many_tokens_as_fp8_takes(recipe: Any, own_tokens: int) -> None:
    compute = ComputeConfig(bf16=True, fp8_format="hybrid", fp8_recipe=recipe)
    alone = TrainerSettings(ParallelConfig(), compute, seed=0)
    assert alone.length_multiple() == 32
    layout = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    assert TrainerSettings(layout, compute, seed=0).length_multiple() == 2 * own_tokens


@pytest.mark.parametrize(("is_packed", "expected"), [(False, 1 - 54 / 88), (True, 0.0)])
def test_the_padding_share_counts_what_is_computed_for_nothing(
    place: Parallel, qwen2: Path, is_packed: bool, expected: float
) -> None:
    compute = replace(WHOLE, pack_sequences=is_packed)
    student = make_student(qwen2, place, compute=compute)
    assert student.train(student_batch(V), POLICY).padding_share == pytest.approx(expected)
