"""Which further groups take which places, by hand. In a run: tests/oracle."""

from collections.abc import Iterator

import pytest
import torch

from megatron_gad.config.run import RunConfig
from megatron_gad.stages.resampling import Scored, count_flat, replace_flat
from megatron_gad.stages.rewards import Rewarded
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.types import Group, Prompt, Rollout


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    """A world of one."""
    config = RunConfig()
    yield initialize(config.parallel, config.seed)
    shut_down()


def scored(rows: list[int], advantages: list[float]) -> Scored:
    """Groups of two, whose every number tells which row they are of."""
    groups = [
        Group(Prompt(row, (), "", (1,), ()), (Rollout((row,), (-1.0,), "stop", 1),) * 2)
        for row in rows
    ]
    of_rows = torch.tensor(rows, dtype=torch.float32)[:, None].expand(-1, 2)
    rewarded = Rewarded(of_rows + 0.1, of_rows > 25, {"mine": of_rows + 0.2}, {"reward/mine": 5.0})
    return Scored(groups, of_rows, rewarded, torch.tensor(advantages)[:, None] * torch.ones(1, 2))


def test_groups_that_differ_take_the_places_in_the_order_of_their_rows(place: Parallel) -> None:
    own = scored([7, 3, 5, 1], [0.0, 1.0, 0.0, 0.0])
    further = scored([29, 20, 28, 22], [2.0, 0.0, 3.0, 0.0])
    assert count_flat(place, own) == 3
    found, count = replace_flat(place, own, further)
    # Flat are 1, 5 and 7; 28 and 29 differ, and 7 finds none.
    assert [group.prompt.index for group in found.groups] == [7, 3, 29, 28]
    assert found.scores_PG[:, 0].tolist() == [7.0, 3.0, 29.0, 28.0]
    assert found.advantages_PG[:, 1].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert torch.equal(found.rewarded.total_PG, found.scores_PG + 0.1)
    assert torch.equal(found.rewarded.parts["mine"], found.scores_PG + 0.2)
    assert found.rewarded.is_left_out_PG[:, 0].tolist() == [False, False, True, True]
    assert found.rewarded.metrics == {"reward/mine": 5.0}
    assert (count, count_flat(place, found)) == (2, 1)


def test_what_is_not_needed_is_left_out(place: Parallel) -> None:
    found, count = replace_flat(place, scored([3, 5], [0.0, 1.0]), scored([9, 8], [1.0, 1.0]))
    assert [group.prompt.index for group in found.groups] == [8, 5]
    assert count == 1
