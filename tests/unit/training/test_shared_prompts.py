"""A prompt that is computed once for all its responses teaches what it teaches once for each."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.checkpoint import Residents, load_model, save_checkpoint
from megatron_gad.training.checkpoint_files import iteration_folder
from megatron_gad.training.packing import pack_rows
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.settings import TrainerSettings
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, PairBatch
from tests.hf_reference import HfScorer, HfStudent, reference_gradients
from tests.kernel_by_hand import gather_keys
from tests.tiny import make_hf_folder
from tests.tiny_training import (
    gradients,
    make_discriminator,
    make_student,
    pair_rows,
    student_batch,
    with_copies,
    with_equal_prompts,
)

V = 97
POLICY = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))
BRADLEY_TERRY = partial(discriminator_loss, kind="bradley_terry")
# Groups of four: uneven responses, of which two are empty; a prompt of one token; a long prompt.
GROUPS = (
    *((5, 4), (5, 0), (5, 1), (5, 7)),
    *((1, 3), (1, 6), (1, 0), (1, 2)),
    *((23, 2), (23, 5), (23, 1), (23, 3)),
)
SHARED = ComputeConfig(micro_batch_size=12, pack_sequences=True, share_prompts=True)
# By rows, whole groups or across them, and by tokens, of which a group has up to 34.
BOUNDS = {
    "all": {"micro_batch_size": 12},
    "groups cut": {"micro_batch_size": 3},
    "row by row": {"micro_batch_size": 1},
    "by tokens": {"max_tokens_per_microbatch": 34},
    "by fewer tokens": {"max_tokens_per_microbatch": 29},
}
FAMILIES = {
    "qwen2": {},
    "tied": {"tie": True},
    "llama": {"family": "llama"},
    "experts": {"family": "qwen3_moe"},
    "yarn": {
        "family": "mistral",
        "head_dim": 16,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
}


def groups() -> Batch:
    return with_equal_prompts(student_batch(V, rows=GROUPS), 4)


def pairs() -> PairBatch:
    return with_equal_prompts(pair_rows(V, 2, GROUPS), 4)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("shared"), **FAMILIES[request.param])


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        error = (ours[name] - value).norm().item() / max(1e-9, value.norm().item())
        assert error <= relative, f"{name}: {error:.2g}"


def tokens_seen(trainer: Trainer) -> list[int]:
    """A list that grows by the tokens of each forward."""
    seen: list[int] = []
    trainer.modules_to_read()[0].register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0].numel())
    )
    return seen


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_the_students_gradients_are_those_of_whole_rows(
    place: Parallel, folder: Path, bound: dict[str, Any]
) -> None:
    compute = replace(SHARED, **bound)
    shared = make_student(folder, place, compute=compute)
    whole = make_student(folder, place, compute=replace(compute, share_prompts=False))
    output, expected = (each.train(groups(), POLICY, 0.8) for each in (shared, whole))
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    torch.testing.assert_close(output.rows, expected.rows)
    assert_same(gradients(shared), gradients(whole), 2e-6)
    expected_loss, truth = reference_gradients(HfStudent(folder), groups(), POLICY, 0.8)
    assert output.metrics["loss"] == pytest.approx(expected_loss, rel=1e-5)
    assert_same(gradients(shared), truth, 1e-5)


@pytest.mark.parametrize("bound", ["all", "by fewer tokens"])
def test_with_gathered_keys_gradients_are_those_of_whole_rows(
    place: Parallel, folder: Path, bound: str
) -> None:
    compute = replace(SHARED, **BOUNDS[bound])
    alone = replace(compute, share_prompts=False)
    shared, whole = (make_student(folder, place, compute=each) for each in (compute, alone))
    masks, causal = gather_keys(shared), gather_keys(whole)
    output, expected = (each.train(groups(), POLICY, 0.8) for each in (shared, whole))
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    torch.testing.assert_close(output.rows, expected.rows)
    assert_same(gradients(shared), gradients(whole), 2e-6)
    _, truth = reference_gradients(HfStudent(folder), groups(), POLICY, 0.8)
    assert_same(gradients(shared), truth, 1e-5)
    assert all("padding_causal_bottom_right" in of_layer for of_layer in masks)
    assert {name for of_layer in causal for name in of_layer} == {"padding_causal"}
    judges = [make_discriminator(folder, place, compute=each) for each in (compute, alone)]
    for each in judges:
        gather_keys(each)
        judge(each, pairs(), "bradley_terry", split_groups=True)
    assert_same(gradients(judges[0]), gradients(judges[1]), 2e-6)


def test_a_model_with_gathered_keys_reads_what_it_and_the_local_one_saved(
    place: Parallel, tmp_path: Path
) -> None:
    """Transformer Engine's attention has a state that Megatron does not save."""
    folder = make_hf_folder(tmp_path)
    local, gathering, loaded = (make_student(folder, place, compute=SHARED) for _ in range(3))
    local.train(groups(), POLICY)
    for each in (gathering, loaded):
        gather_keys(each)
    for iteration, saved, taken in ((1, local, gathering), (2, gathering, loaded)):
        residents = Residents({"student": saved})
        save_checkpoint(tmp_path, iteration, residents, {}, place, keep_last=0)
        load_model(iteration_folder(tmp_path, iteration) / "student", taken)
        expected = dict(local.hf_weights())
        assert all(torch.equal(value, expected[name]) for name, value in taken.hf_weights())


@pytest.mark.parametrize("score", ["last_token", "sum"])
@pytest.mark.parametrize("split_groups", [False, True])
@pytest.mark.parametrize("bound", ["all", "groups cut", "by fewer tokens"])
def test_the_discriminators_gradients_are_those_of_whole_rows(
    place: Parallel, folder: Path, score: Any, split_groups: bool, bound: str
) -> None:
    compute = replace(SHARED, **BOUNDS[bound])
    shared = make_discriminator(folder, place, compute=compute, score=score)
    alone = replace(compute, share_prompts=False)
    whole = make_discriminator(folder, place, compute=alone, score=score)
    output, expected = (
        judge(each, pairs(), "bradley_terry", split_groups) for each in (shared, whole)
    )
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    torch.testing.assert_close(output.rows, expected.rows)
    assert_same(gradients(shared), gradients(whole), 2e-6)
    reference = HfScorer(folder, score)
    _, truth = reference_gradients(reference, pairs(), BRADLEY_TERRY)
    torch.testing.assert_close(output.rows, reference.read(pairs()).scores.detach())
    assert_same(gradients(shared), truth, 1e-5)


def test_rows_with_equal_prompts_have_it_once_among_the_tokens() -> None:
    """Rows ab|cd, e|f, ab|, ab|g: the second of a prompt's rows goes on where the first has it."""
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 0, 0], [1, 2, 7, 0]])
    lengths = torch.tensor([4, 2, 2, 3])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
    packed = pack_rows(Batch(tokens, lengths, mask), 4, torch.device("cpu"), shares_prompts=True)
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert packed.places.tolist() == [[0, 1, 2, 3], [4, 5, 0, 0], [0, 1, 0, 0], [0, 1, 6, 0]]
    assert packed.lengths.lengths == (4, 2, 1, 1)
    assert packed.lengths.starts == (0, 0, 2, 0)
    assert packed.lengths.sources[2] == 0
    alone = pack_rows(Batch(tokens, lengths, mask), 1, torch.device("cpu"))
    assert alone.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 1, 2, 1, 2, 7]]


def test_results_have_places_among_those_that_are_read() -> None:
    """Of rows ab|cd, e|f, ab|, ab|g, what predicts a response: b and c, e, nothing, b."""
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 0, 0], [1, 2, 7, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
    batch = Batch(tokens, torch.tensor([4, 2, 2, 3]), mask)
    reads = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    packed = pack_rows(batch, 4, torch.device("cpu"), shares_prompts=True, reads=reads)
    assert packed.lengths.unread == (1, 0, 0, 0)
    assert packed.lengths.read is not None
    # All but a, with the g and the padding that are the only tokens of their sequences.
    assert packed.lengths.read.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert packed.places[reads].tolist() == [0, 1, 3, 0]


def tokens_of_layers(trainer: Trainer) -> list[list[int]]:
    """For each layer a list that grows by the tokens that reach its MLP."""
    layers: Any = trainer.modules_to_read()[0].decoder.layers
    counts: list[list[int]] = [[] for _ in layers]
    for layer, seen in zip(layers, counts, strict=True):
        layer.mlp.register_forward_pre_hook(
            lambda _module, arguments, seen=seen: seen.append(len(arguments[0]))
        )
    return counts


@pytest.mark.parametrize(
    ("shares", "tokens", "of_student", "of_discriminator"),
    [
        # The last token of each prompt with all 34 of the responses. The discriminator's: one of
        # a row, and two prompts' last token and what stands behind it, for rows without response.
        (True, 63, 3 + 34, 5 + 1 + 1 + 4 + 1 + 1 + 4),
        # Of two rows nothing is read, and one token is kept.
        (False, 150, 10 + 34 + 2, 12),
    ],
)
def test_the_last_layer_computes_what_is_read(
    place: Parallel,
    tmp_path: Path,
    shares: bool,
    tokens: int,
    of_student: int,
    of_discriminator: int,
) -> None:
    folder, compute = make_hf_folder(tmp_path), replace(SHARED, share_prompts=shares)
    student = make_student(folder, place, compute=compute)
    counts = tokens_of_layers(student)
    student.train(groups(), POLICY)
    assert counts == [[tokens], [of_student]]
    discriminator = make_discriminator(folder, place, compute=compute)
    counts = tokens_of_layers(discriminator)
    judge(discriminator, pairs(), "bradley_terry", split_groups=False)
    assert counts == [[tokens], [of_discriminator]]


def test_the_bound_counts_a_shared_prompt_once(place: Parallel, tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    bounded = replace(SHARED, max_tokens_per_microbatch=34)
    student = make_student(folder, place, compute=bounded)
    seen = tokens_seen(student)
    output = student.train(groups(), POLICY)
    # Groups of 5 + 12, 1 + 11 and 23 + 11 tokens; the first two fit into one microbatch of 34.
    assert seen == [34, 29]
    assert output.trained_tokens == 63
    # Of the rows' 3 x 5 + 3 x 1 + 3 x 23 more tokens nothing was computed.
    assert output.shared_prompt_share == pytest.approx(87 / 150)
    assert output.padding_share == 0
    # A bound below a group's tokens cuts it, and each part has the prompt: 23 + 7 and 23 + 4.
    cut = make_student(folder, place, compute=replace(SHARED, max_tokens_per_microbatch=30))
    seen = tokens_seen(cut)
    assert cut.train(groups(), POLICY).shared_prompt_share == pytest.approx(64 / 150)
    assert sorted(seen) == [27, 29, 30]
    alone = make_student(folder, place, compute=replace(bounded, share_prompts=False))
    assert alone.train(groups(), POLICY).shared_prompt_share == 0


def test_a_bound_by_rows_holds_as_many_tokens_as_whole_rows(
    place: Parallel, tmp_path: Path
) -> None:
    """Two rows of up to 23 + 5: 56 tokens hold the groups of 34 + 17 and leave 12 for the next."""
    folder = make_hf_folder(tmp_path)
    student = make_student(folder, place, compute=replace(SHARED, micro_batch_size=2))
    seen = tokens_seen(student)
    assert student.train(groups(), POLICY).shared_prompt_share == pytest.approx(87 / 150)
    assert seen == [34 + 17, 12]
    # Where no two rows have the same prompt, rows are counted.
    batch = student_batch(V, rows=GROUPS[:4])
    seen.clear()
    assert student.train(batch, POLICY).shared_prompt_share == 0
    assert seen == [9 + 5, 6 + 12]


def test_rows_that_are_left_out_of_the_loss_share_their_prompt_too(
    place: Parallel, tmp_path: Path
) -> None:
    # Without a bias of keys: its gradient is what rounding leaves of sums that cancel.
    folder = make_hf_folder(tmp_path, family="llama")
    batch = groups().without_rows(torch.tensor([False, False, False, True] * 3))
    shared = make_student(folder, place, compute=SHARED)
    whole = make_student(folder, place, compute=replace(SHARED, share_prompts=False))
    seen = tokens_seen(shared)
    output, expected = (each.train(batch, POLICY, 0.8) for each in (shared, whole))
    assert seen == [63]
    assert output.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
    assert_same(gradients(shared), gradients(whole), 2e-6)


def test_the_discriminator_reads_a_prompt_once_and_equal_texts_once(
    place: Parallel, tmp_path: Path
) -> None:
    copied = with_copies(pairs(), {3: 1, 6: 5})
    discriminator = make_discriminator(make_hf_folder(tmp_path), place, compute=SHARED)
    seen = tokens_seen(discriminator)
    output = judge(discriminator, copied, "bradley_terry", split_groups=False)
    # 5 + 4 + 0 + 1, 1 + 3 + 6 + 2 and 23 + 11; each row alone 9 + 5 + 6, 4 + 7 + 3 and 4 x 23 + 11.
    assert seen == [10 + 12 + 34]
    assert output.shared_prompt_share == pytest.approx(1 - 56 / (20 + 14 + 103))


@pytest.mark.parametrize(
    ("layout", "compute", "reason"),
    [
        ({}, {}, ""),
        ({}, {"share_prompts": False}, "compute.share_prompts = false"),
        ({"context_parallel_size": 2}, {}, "context parallelism cuts every row"),
        ({}, {"pack_sequences": False}, "rows are not packed"),
        ({}, {"transformer_impl": "transformer_engine", "bf16": True}, "Transformer Engine's"),
        ({}, {"transformer_impl": "transformer_engine"}, "rows are not packed"),
        (
            {},
            {"transformer_impl": "transformer_engine", "bf16": True, "share_prompts": True},
            "",
        ),
    ],
)
def test_prompts_are_shared_where_attention_takes_it(
    layout: dict[str, Any], compute: dict[str, Any], reason: str
) -> None:
    settings = TrainerSettings(ParallelConfig(**layout), ComputeConfig(**compute), seed=0)
    assert settings.shares_prompts == (not reason)
    assert settings.why_prompts_repeat.startswith(reason)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputing_activations_keeps_the_gradient_bit_for_bit(
    place: Parallel, tmp_path: Path, recompute: Any, gathers: bool
) -> None:
    folder = make_hf_folder(tmp_path)
    plain = make_student(folder, place, compute=SHARED)
    again = make_student(folder, place, compute=replace(SHARED, recompute_granularity=recompute))
    for each in (plain, again) if gathers else ():
        gather_keys(each)
    assert plain.train(groups(), POLICY).metrics == again.train(groups(), POLICY).metrics
    assert_same(gradients(again), gradients(plain), 0.0)
