"""A rank's place in a world of one. Worlds of four: test_training.py of distributed."""

from pathlib import Path

import pytest
import torch

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down


def test_one_rank_is_everything(place: Parallel) -> None:
    assert (place.rank, place.world_size, place.data_rank, place.data_size) == (0, 1, 0, 1)
    assert place.is_engine_rank and place.is_last_stage and place.is_writer
    assert place.model_group_ranks == (0,)


def test_one_rank_has_everything(place: Parallel) -> None:
    assert place.share([3, 1, 2]) == [3, 1, 2]
    assert place.from_engine_rank("x") == place.from_last_stage("x") == "x"
    assert place.gather_over_data("x") == place.gather_over_world("x") == ["x"]
    assert place.exchange_over_data(["x"]) == ["x"]
    assert place.sum_over_data(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    place.barrier()


def test_means_are_sums_over_counts_and_0_of_nothing(place: Parallel) -> None:
    sums = {"a": (3.0, 2.0), "b": (5.0, 0.0)}
    assert place.mean_over_data(sums) == {"a": 1.5, "b": 0.0}


def test_a_world_can_be_started_again(tmp_path: Path) -> None:
    for _ in range(2):
        shut_down()
        assert initialize(ParallelConfig(), seed=0).world_size == 1
    shut_down()


def test_a_layout_that_does_not_fit_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor_model_parallel_size"):
        initialize(ParallelConfig(tensor_model_parallel_size=2), seed=0)
