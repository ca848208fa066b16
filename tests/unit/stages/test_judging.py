"""The discriminator's turn, in one pass and with split groups."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import group_advantages
from megatron_gad.algorithms.discriminator import discriminator_loss, split_scores
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.types import Loss, PairBatch, ScorerOutput
from tests.hf_reference import HfScorer, adamw, reference_gradients
from tests.tiny import make_hf_folder
from tests.tiny_training import (
    GROUP_SIZE,
    PAIR_ROWS,
    gradients,
    make_discriminator,
    pair_rows,
    weights,
    with_copies,
)

V = 61
KINDS = ["bradley_terry", "cross_entropy"]
ROWS = 1 + GROUP_SIZE


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("qwen2"), vocab_size=V)


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], relative: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value - second[name]).abs().max() <= relative * value.abs().max() + 1e-12, name


def long_way(output: ScorerOutput, batch: PairBatch, kind: str) -> Loss:
    """Each pair on two rows of its own: the teacher's response is there once per rollout."""
    teacher, student = output.scores[0::2], output.scores[1::2]
    if kind == "bradley_terry":
        losses = -torch.nn.functional.logsigmoid(teacher - student)
    else:
        real = torch.nn.functional.binary_cross_entropy_with_logits
        labels = torch.ones_like(teacher)
        losses = (
            real(teacher, labels, reduction="none") + real(student, 0 * labels, reduction="none")
        ) / 2
    return Loss(losses.sum(), torch.tensor(float(len(losses))))


def pairs_on_rows(pairs: PairBatch) -> PairBatch:
    """Repeat the teacher's row before every rollout that trains."""
    rows = []
    for start in range(0, len(pairs.lengths), ROWS):
        for row in range(start + 1, start + ROWS):
            rows += [start, row] if pairs.trained[row] else []
    return PairBatch(
        pairs.tokens[rows], pairs.lengths[rows], pairs.response_mask[rows], pairs.trained[rows], 1
    )


@pytest.mark.parametrize("num_trained", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split_groups", [False, True])
def test_encoding_the_teacher_once_equals_encoding_it_per_pair(
    place: Parallel, folder: Path, kind: Any, num_trained: int, split_groups: bool
) -> None:
    pairs = pair_rows(V, num_trained)
    compute = ComputeConfig(micro_batch_size=3 if split_groups else 4)
    discriminator = make_discriminator(folder, place, compute=compute)
    output = judge(discriminator, pairs, kind, split_groups)
    loss = partial(long_way, kind=kind)
    mean, expected = reference_gradients(HfScorer(folder), pairs_on_rows(pairs), loss)
    assert output.metrics["loss"] == pytest.approx(mean, rel=1e-5)
    assert_close(expected, gradients(discriminator), relative=2e-5)


@pytest.mark.parametrize("num_trained", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["last_token", "sum", "mean"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_split_groups_change_neither_scores_nor_metrics_nor_weights(
    place: Parallel, folder: Path, kind: Any, num_trained: int, score: str, rows: int
) -> None:
    pairs = pair_rows(V, num_trained)
    whole = make_discriminator(folder, place, score=score, clip_grad=0.2)
    split = make_discriminator(
        folder,
        place,
        compute=ComputeConfig(micro_batch_size=rows),
        score=score,
        clip_grad=0.2,
    )
    for _ in range(2):
        expected = judge(whole, pairs, kind, split_groups=False)
        output = judge(split, pairs, kind, split_groups=True)
        torch.testing.assert_close(output.rows, expected.rows, atol=1e-5, rtol=1e-5)
        assert output.metrics == pytest.approx(expected.metrics, rel=2e-5, abs=1e-6)
        assert_close(gradients(whole), gradients(split), relative=2e-5)
    # AdamW makes a whole step of a gradient that is almost 0, so single entries may differ more.
    others = weights(split)
    differences = [(value - others[name]).abs().flatten() for name, value in weights(whole).items()]
    assert torch.cat(differences).mean() < 1e-6


@pytest.mark.parametrize("split_groups", [False, True])
def test_scores_are_taken_before_the_update(
    place: Parallel, folder: Path, split_groups: bool
) -> None:
    pairs = pair_rows(V)
    discriminator = make_discriminator(folder, place)
    before = discriminator.scores(pairs)
    output = judge(discriminator, pairs, "bradley_terry", split_groups)
    torch.testing.assert_close(output.rows, before)
    assert (discriminator.scores(pairs) - before).abs().max() > 0.01


def test_one_forward_of_every_group_gives_rewards_and_gradients(
    place: Parallel, folder: Path
) -> None:
    compute = ComputeConfig(micro_batch_size=5, pack_sequences=False)
    discriminator = make_discriminator(folder, place, compute=compute)
    rows: list[int] = []
    hook = discriminator.modules_to_read()[0].register_forward_hook(
        lambda module, inputs, output: rows.append(len(inputs[0]))
    )
    judge(discriminator, pair_rows(V), "bradley_terry", split_groups=False)
    hook.remove()
    assert rows == [ROWS, ROWS]


def test_rollouts_that_do_not_train_are_scored_and_teach_nothing(
    place: Parallel, folder: Path
) -> None:
    """Whatever stands in their rows, the update is the same."""
    pairs = pair_rows(V, num_trained=1)
    other_tokens = pairs.tokens.clone()
    other_tokens[~pairs.trained] = (other_tokens[~pairs.trained] + 1) % V
    results = []
    for batch in (pairs, replace(pairs, tokens=other_tokens)):
        discriminator = make_discriminator(folder, place)
        output = judge(discriminator, batch, "bradley_terry", split_groups=False)
        results.append((output, weights(discriminator)))
    (first, first_weights), (second, second_weights) = results
    assert first.metrics == second.metrics
    assert_close(first_weights, second_weights, relative=0.0)
    assert (first.rows - second.rows)[~pairs.trained].abs().min() > 1e-4


# Three equal rollouts, of which not all need train; a rollout that equals the teacher's response.
COPIES = {2: 1, 3: 1, 6: 4}


@pytest.mark.parametrize("num_trained", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split_groups", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_equal_texts_on_one_row_equal_a_row_for_each(
    place: Parallel, folder: Path, kind: Any, num_trained: int, split_groups: bool, rows: int
) -> None:
    pairs = with_copies(pair_rows(V, num_trained), COPIES)
    discriminator = make_discriminator(
        folder, place, compute=ComputeConfig(micro_batch_size=rows, pack_sequences=False)
    )
    output = judge(discriminator, pairs, kind, split_groups)
    loss = partial(long_way, kind=kind)
    mean, expected = reference_gradients(HfScorer(folder), pairs_on_rows(pairs), loss)
    assert output.metrics["loss"] == pytest.approx(mean, rel=1e-5)
    assert_close(expected, gradients(discriminator), relative=2e-5)
    alone = HfScorer(folder).read(pairs).scores.detach()
    torch.testing.assert_close(output.rows, alone, atol=1e-5, rtol=1e-5)
    teacher, student = split_scores(alone, GROUP_SIZE)
    margins = (teacher[:, None] - student)[:, :num_trained]
    assert output.metrics["margin"] == pytest.approx(float(margins.mean()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("score", ["last_token", "sum", "mean"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("pack_sequences", [False, True])
@pytest.mark.parametrize("split_groups", [False, True])
def test_equal_texts_get_equal_scores_to_the_bit(
    place: Parallel, folder: Path, score: Any, bf16: bool, pack_sequences: bool, split_groups: bool
) -> None:
    """Rows far apart and of all lengths, so that each would meet others in its microbatch."""
    pairs = with_copies(pair_rows(V, rows=PAIR_ROWS * 3), {r: 4 * (r // 4) for r in range(24)})
    compute = ComputeConfig(bf16=bf16, pack_sequences=pack_sequences, micro_batch_size=2)
    discriminator = make_discriminator(folder, place, compute=compute, score=score)
    before = discriminator.scores(pairs)
    judged = judge(discriminator, pairs, "bradley_terry", split_groups)
    for scores in (before, judged.rows):
        teacher, student = split_scores(scores, GROUP_SIZE)
        assert torch.equal(student, teacher[:, None].expand_as(student))
        assert not group_advantages(student, "grpo").any()
    assert len(set(teacher.tolist())) == 6
    # Every pair ties, and nothing can be learnt from it.
    assert (judged.metrics["accuracy"], judged.metrics["margin"]) == (0.5, 0.0)
    assert judged.metrics["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert judged.metrics["grad_norm"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("pack_sequences", [False, True])
def test_a_model_runs_over_equal_texts_once(
    place: Parallel, folder: Path, pack_sequences: bool
) -> None:
    pairs = with_copies(pair_rows(V), COPIES)
    compute = ComputeConfig(micro_batch_size=4, pack_sequences=pack_sequences)
    discriminator = make_discriminator(folder, place, compute=compute)
    shapes: list[tuple[int, ...]] = []
    hook = discriminator.modules_to_read()[0].register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape))
    )
    judged = judge(discriminator, pairs, "bradley_terry", split_groups=False)
    hook.remove()
    # Two and three texts: of 7 and 5 tokens, of 10, 7 and 3.
    assert sorted(shapes) == ([(1, 12), (1, 20)] if pack_sequences else [(2, 7), (3, 10)])
    assert judged.trained_tokens == 12 + 20


def test_a_step_equals_one_of_transformers(place: Parallel, folder: Path) -> None:
    pairs = pair_rows(V)
    discriminator = make_discriminator(folder, place, lr=1e-3, weight_decay=0.1)
    reference = HfScorer(folder)
    optimizer = adamw(reference, lr=1e-3, weight_decay=0.1)
    for _ in range(2):
        loss = partial(long_way, kind="bradley_terry")
        mean, _ = reference_gradients(reference, pairs_on_rows(pairs), loss)
        optimizer.step()
        output = judge(discriminator, pairs, "bradley_terry", split_groups=False)
        assert output.metrics["loss"] == pytest.approx(mean, rel=1e-4)
    for name, value in discriminator.hf_weights():
        torch.testing.assert_close(value, reference.parameters[name].detach(), atol=3e-5, rtol=0)


def test_scoring_alone_reports_the_same_and_learns_nothing(place: Parallel, folder: Path) -> None:
    pairs = pair_rows(V, num_trained=2)
    discriminator = make_discriminator(folder, place)
    before = weights(discriminator)
    scored = discriminator.evaluate(pairs, partial(discriminator_loss, kind="bradley_terry"))
    assert_close(before, weights(discriminator), relative=0.0)
    judged = judge(discriminator, pairs, "bradley_terry", split_groups=False)
    assert torch.equal(scored.rows, judged.rows)
    assert scored.metrics.items() < judged.metrics.items()
