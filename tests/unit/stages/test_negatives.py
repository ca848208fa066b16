"""The pool of past groups: which are held, which are drawn, and what a checkpoint keeps of them."""

from collections import Counter
from dataclasses import replace

import pytest

from megatron_gad.data.balance import scored_ids
from megatron_gad.data.batching import pair_batch
from megatron_gad.stages.negatives import NegativesPool
from megatron_gad.types import Group, Prompt, Rollout


def group(row: int, text: int = 0, scorer: bool = False) -> Group:
    prompt = Prompt(row, ({"role": "user", "content": "x"},), "y", (1, row), (2, row))
    if scorer:
        prompt = replace(prompt, scorer_ids=(7, row), scorer_teacher_ids=(8, row))
    own = (9, text) if scorer else ()
    rollouts = tuple(
        Rollout((3, g), (-1.0, -1.0), "stop", 4, "z", (5, g, text), own) for g in range(2)
    )
    return Group(prompt, rollouts)


def rows_of(pool: NegativesPool) -> list[tuple[int, int]]:
    every = pool.draw(len(pool), 0, "uniform")
    return sorted((past.iteration, past.group.prompt.index) for past in every)


def test_the_newest_groups_are_held_in_the_order_of_their_rows() -> None:
    pool = NegativesPool(size=5, seed=1)
    pool.add(1, [group(8), group(3), group(5)])
    pool.add(2, [group(1), group(9), group(4)])
    assert rows_of(pool) == [(1, 5), (1, 8), (2, 1), (2, 4), (2, 9)]


def test_what_the_discriminator_reads_is_kept_and_nothing_else() -> None:
    for scorer in (False, True):
        pool = NegativesPool(size=5, seed=1)
        pool.add(1, [group(3, text=6, scorer=scorer)])
        (past,) = pool.draw(1, 5, "uniform")
        assert scored_ids(past.group) == scored_ids(group(3, text=6, scorer=scorer))
        assert past.group.rollouts[0].rollout_logprobs == ()


def test_draws_follow_from_seed_and_iteration_alone() -> None:
    def drawn(seed: int, iteration: int, backwards: bool = False) -> list[int]:
        pool = NegativesPool(size=50, seed=seed)
        rows = range(50)
        pool.add(0, [group(row) for row in (reversed(rows) if backwards else rows)])
        return [past.group.prompt.index for past in pool.draw(10, iteration, "uniform")]

    assert drawn(1, 7) == drawn(1, 7, backwards=True)
    assert len({*drawn(1, 7)}) == 10
    assert len({tuple(drawn(*place)) for place in ((1, 7), (1, 8), (2, 7))}) == 3


def test_recent_draws_the_newest_in_proportion_to_their_place() -> None:
    pool = NegativesPool(size=4, seed=3)
    pool.add(0, [group(row) for row in range(4)])
    counts = {how: Counter() for how in ("uniform", "recent")}
    for how in ("uniform", "recent"):
        for iteration in range(4000):
            counts[how][pool.draw(1, iteration, how)[0].group.prompt.index] += 1
    uniform = [counts["uniform"][row] / 4000 for row in range(4)]
    recent = [counts["recent"][row] / 4000 for row in range(4)]
    assert uniform == pytest.approx([0.25] * 4, abs=0.03)
    assert recent == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_a_small_pool_gives_what_it_has() -> None:
    pool = NegativesPool(size=9, seed=3)
    assert pool.draw(3, 0, "recent") == []
    pool.add(0, [group(1), group(2)])
    assert len(pool.draw(3, 0, "recent")) == 2


def test_a_saved_pool_goes_on_as_it_was() -> None:
    pool = NegativesPool(size=9, seed=3)
    for iteration in range(3):
        pool.add(iteration, [group(row, text=iteration, scorer=iteration > 0) for row in range(2)])
    again = NegativesPool(size=9, seed=3)
    again.load(pool.state())
    assert again.draw(4, 5, "recent") == pool.draw(4, 5, "recent")
    smaller = NegativesPool(size=3, seed=3)
    smaller.load(pool.state())
    assert rows_of(smaller) == rows_of(pool)[-3:]


def test_which_rows_rest_does_not_depend_on_the_ranks_that_have_them() -> None:
    pool = NegativesPool(size=9, seed=3)
    resting = pool.resting([8, 1, 5, 3], 2, iteration=4)
    assert resting == pool.resting([3, 5, 8, 1], 2, iteration=4)
    assert len(resting) == 2
    every = {frozenset(pool.resting(range(4), 1, iteration)) for iteration in range(50)}
    assert len(every) == 4


def test_groups_that_rest_are_scored_and_not_trained() -> None:
    pairs = pair_batch([group(0), group(1)], 1, is_trained=[True, False])
    assert pairs.trained.tolist() == [True, True, False, True, False, False]
