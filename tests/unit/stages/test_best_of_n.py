"""Which samples are fitted, by hand."""

import torch

from megatron_gad.stages.best_of_n import best, chosen_groups, exceed
from megatron_gad.types import Group, Prompt, Rollout

SCORES = torch.tensor([[0.5, 2.0, 2.0, -1.0], [3.0, 0.0, 1.0, 4.0]])
TEACHERS = torch.tensor([1.0, 3.5])
PROMPT = Prompt(7, ({"role": "user", "content": "x"},), "y", (1, 2), (3,))


def groups() -> list[Group]:
    """Two prompts with four responses, each of its own id."""
    ids = [[10, 11, 12, 13], [20, 21, 22, 23]]
    return [Group(PROMPT, tuple(Rollout((i,), (-0.5,), "stop", 1) for i in each)) for each in ids]


def kept(found: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[rollout.ids for rollout in group.rollouts] for group in found]


def test_the_highest_of_each_group_are_chosen_and_the_first_of_equal_ones() -> None:
    assert best(SCORES, 1).int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert best(SCORES, 3).int().tolist() == [[1, 1, 1, 0], [1, 0, 1, 1]]


def test_a_margin_is_over_the_teacher_of_the_same_prompt() -> None:
    assert exceed(SCORES, TEACHERS, 0.0).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    assert exceed(SCORES, TEACHERS, -1.0).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 1]]
    assert exceed(SCORES, TEACHERS, 1.0).int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]


def test_groups_keep_what_is_chosen_and_go_without() -> None:
    is_chosen = torch.tensor([[False, True, False, True], [False, False, False, False]])
    assert kept(chosen_groups(groups(), is_chosen)) == [[(11,), (13,)]]


def test_a_rank_on_which_nothing_is_chosen_has_nothing_to_fit() -> None:
    (group,) = chosen_groups(groups(), torch.zeros(2, 4, dtype=torch.bool))
    assert group.prompt == PROMPT
    assert kept([group]) == [[()]]
