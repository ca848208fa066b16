"""Two data ranks with very uneven shares train as one rank does with everything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.distributed import batching_worker
from tests.distributed.batching_cases import CASES, make_groups, train, train_on_groups
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and what the worker found."""
    found = tmp_path_factory.mktemp("batching")
    make_hf_folder(found / "qwen2")
    run_on_ranks(batching_worker.main, 2, found)
    return found


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "batching.pt", weights_only=False)


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = value.abs().max().item()
        assert (ours[name] - value).abs().max().item() <= 1e-6 + 2e-6 * scale, name


@pytest.mark.parametrize("name", CASES)
def test_ranks_with_one_row_and_with_all_others_add_up(results, folder, place, name) -> None:
    case = CASES[name]
    expected = train(case, folder, place, case.batch())
    ranks = results[name]
    for rank in ranks:
        assert rank.metrics == pytest.approx(expected.metrics, rel=2e-6, abs=1e-6)
        assert_same_gradients(rank.gradients, expected.gradients)
    rows = [rank.rows for rank in ranks]
    assert [len(each) for each in rows] == [case.unit, len(expected.rows) - case.unit]
    width = expected.rows.shape[1:]
    assert all(each.shape[1:] == width for each in rows)
    torch.testing.assert_close(torch.cat(rows), expected.rows, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_runs_as_many_microbatches(results, name) -> None:
    """The rank with one row, or one group, makes up the number with rows of one token."""
    first, second = (rank.shapes for rank in results[name])
    assert len(first) == len(second) > 1
    turns = 2 if name == "split groups" else 1  # scored first, trained then
    units = CASES[name].unit if name == "split groups" else 1
    added = first[units : len(first) // turns]
    assert added
    smallest = {"rows": 1, "tokens": 1, "groups": CASES[name].unit, "split groups": 4}[name]
    assert {rows * width for rows, width in added} == {smallest}


def test_the_padding_share_is_of_all_ranks(results) -> None:
    # Lengths 7 | 6, 2, 4, 11, 3, 11, 10: one row; then 11, 11, 10 alone, 2 x 6 and 2 x 3.
    first, second = results["tokens"]
    assert second.shapes == [(1, 11), (1, 11), (1, 10), (2, 6), (2, 3)]
    assert first.shapes == [(1, 7)] + [(1, 1)] * 4
    assert first.padding_share == second.padding_share == pytest.approx(1 - 54 / (50 + 11))


def test_items_go_where_least_is_and_keep_their_order(results) -> None:
    # Costs 10, 8, 13 | 13, 8, 10: 13 and 13, then 10 and 10, then 8 and 8.
    assert results["shares"] == [[[9, 1], [8], [7, 4, 2]], [[7, 4, 2], [8], [9, 1]]]


def test_only_items_that_change_their_rank_are_sent(results) -> None:
    # 9 | 6, 5, then 4 to the 9, 2 to the 11, and 1 to the first 13, which has fewer items.
    assert results["sent and held"] == [([5], [9, 4, 1]), ([1], [5, 2, 6])]


def test_a_step_on_shared_out_groups_is_that_of_one_rank(results, folder, place) -> None:
    expected = train_on_groups(folder, place, make_groups())
    ranks = results["shared groups"]
    indices = [index for rank in ranks for index in rank["indices"]]
    assert sorted(indices) == [0, 1, 2, 3]
    assert [rank["indices"] for rank in ranks] == [[1], [0, 2, 3]]
    for rank in ranks:
        assert rank["metrics"] == pytest.approx(expected["metrics"], rel=2e-6, abs=1e-6)
        for model in ("student", "discriminator"):
            assert_same_gradients(rank[model], expected[model])
        torch.testing.assert_close(
            rank["advantages"], expected["advantages"][rank["indices"]], atol=1e-5, rtol=1e-5
        )
