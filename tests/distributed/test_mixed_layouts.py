"""A student and a discriminator that lie differently over four ranks learn as on one rank."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.replay import ROLLOUTS_FOLDER, write_groups
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.distributed import mixed_worker
from tests.distributed.mixed_layouts import (
    COSTS,
    LAYOUTS,
    PROMPTS,
    SAMPLING,
    SHOWN,
    VOCAB_SIZE,
    Learned,
    Pair,
    group_of,
)
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the model, a tokenizer and rollouts."""
    folder = tmp_path_factory.mktemp("mixed")
    make_hf_folder(folder / "qwen2-tied", "qwen2", VOCAB_SIZE, tie=True, num_hidden_layers=4)
    make_tokenizer(folder / "tokenizer")
    write_groups(folder / ROLLOUTS_FOLDER, SAMPLING.name, map(group_of, PROMPTS))
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """What the worker found."""
    run_on_ranks(mixed_worker.main, 4, folder)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    """A world of one."""
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def expected(folder: Path, place: Parallel) -> list[Learned]:
    """What three steps on one rank give."""
    pair = Pair(folder / "qwen2-tied", (ParallelConfig(), ParallelConfig()), (place, place))
    return [pair.step() for _ in range(3)]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Equal to within a part of each tensor's largest entry."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max().item()
        scale = value.abs().max().item()
        assert difference <= relative * scale, f"{name}: {difference:.3g} of {scale:.3g}"


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_scores_losses_and_gradients_equal_those_of_one_rank(results, expected, layouts) -> None:
    for ours, theirs in zip(results["steps"][layouts], expected, strict=False):
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5, abs=5e-6)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)
    # Clipped ones, of the first step, so that the norm has to be right, too.
    assert_close(results["steps"][layouts][0].gradients, expected[0].gradients, relative=1e-5)


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_updated_weights_equal_those_of_one_rank(results, expected, layouts) -> None:
    found = results["steps"][layouts][1].weights
    # AdamW makes a whole step of a gradient that is almost 0, so single weights may differ more.
    assert_close(found, expected[1].weights, relative=5e-4)
    differences = [
        (found[name] - value).abs().flatten() for name, value in expected[1].weights.items()
    ]
    assert torch.cat(differences).mean() < 1e-8


def test_a_step_from_a_checkpoint_is_bit_for_bit_the_next_step(results) -> None:
    expected, resumed = results["after the checkpoint"], results["resumed"]["tp2, tp1"]
    assert resumed.metrics == expected.metrics
    assert_close(resumed.weights, expected.weights, relative=0.0)


def test_a_checkpoint_goes_on_in_other_layouts_of_both_models(results, expected) -> None:
    resumed = results["resumed"]["dp4, tp2-pp2"]
    assert resumed.metrics == pytest.approx(expected[2].metrics, rel=1e-5, abs=5e-6)
    assert_close(resumed.weights, expected[2].weights, relative=5e-4)


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_items_are_shared_out_by_cost_and_rows_come_back_to_where_items_came_from(
    results, layouts
) -> None:
    """The largest shares are the smallest that six items of these costs allow."""
    ranks = results["exchanges"][layouts]
    for rank in ranks:
        assert rank["back"] == [[item, twice] for item in rank["had"] for twice in (0, 1)]
    shares = {rank["target"]: rank["moved"] for rank in ranks}
    assert all(rank["moved"] == shares[rank["target"]] for rank in ranks)
    assert sorted(item for share in shares.values() for item in share) == list(range(6))
    assert all(share == sorted(share) for share in shares.values())
    largest = max(sum(COSTS[item] for item in share) for share in shares.values())
    assert largest == {1: 24, 2: 12, 4: 9}[len(shares)]


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_all_ranks_are_told_of_the_tokens_that_one_data_rank_reads(
    results, folder, place, layouts
) -> None:
    pair = Pair(folder / "qwen2-tied", (ParallelConfig(), ParallelConfig()), (place, place))
    (expected,) = pair.tokens(ChatCodec.from_folder(folder / "tokenizer", 64, 64))
    assert list(expected) == [PROMPTS[SHOWN].index]
    assert [len(tokens) for tokens in expected[9]] == [1, 2, 1]
    for told in results["tokens"][layouts]:
        assert told.keys() == expected.keys()
        for ours, theirs in zip(told[9], expected[9], strict=True):
            assert [text for text, _ in ours] == [text for text, _ in theirs]
            values = [value for _, value in theirs]
            assert [value for _, value in ours] == pytest.approx(values, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_the_rollouts_of_all_data_ranks_are_in_one_file(results, folder, layouts) -> None:
    """In the order of the prompts, and nothing else is written."""
    (path,) = (folder / "recorded" / layouts).iterdir()
    assert path.name == f"{SAMPLING.name}.jsonl"
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    found = [
        (record["prompt_index"], [rollout["ids"] for rollout in record["rollouts"]])
        for record in records
    ]
    assert found == [(index, [[40, 60 + index], [70]]) for index in (5, 0, 9, 2)]
