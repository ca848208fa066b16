"""Batches hold every row's tokens, masks and facts, however they are cut and padded."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_gad.data.batching import (
    pair_batch,
    policy_batch,
    preference_batch,
    take_rows,
    teacher_batch,
    untrained_rows,
)
from megatron_gad.types import Batch, Group, PairBatch, Prompt, Rollout

END = 9  # the end token; in these tests also what a tokenizer would pad with


def prompt(index: int, ids: tuple[int, ...], teacher_ids: tuple[int, ...]) -> Prompt:
    return Prompt(index, ({"role": "user", "content": "x"},), "y", ids, teacher_ids)


def rollout(*ids: int, text_ids: tuple[int, ...] | None = None) -> Rollout:
    return Rollout(
        ids=ids,
        rollout_logprobs=tuple(-0.25 * (number + 1) for number in range(len(ids))),
        finish_reason="stop",
        weights_version=1,
        text_ids=ids if text_ids is None else text_ids,
    )


GROUPS = [
    Group(
        prompt(0, (1, 2), (3, 4, END)), (rollout(5, END), rollout(6, 7, END, text_ids=(67, END)))
    ),
    Group(prompt(1, (1, 2, 3), (8, END)), (rollout(END), rollout(4))),
    Group(prompt(2, (1,), (5, 6, 7, 8, END)), (rollout(2, END), rollout(2, 2, 2, 2, 2, END))),
]
PROMPTS = [group.prompt for group in GROUPS]


def rows_of(batch: Batch | PairBatch, values: Tensor | None = None) -> list[list[float]]:
    """Each row's first ``length`` entries of a [B, T] tensor; of the tokens by default."""
    table = batch.tokens if values is None else values
    return [row[:length].tolist() for row, length in zip(table, batch.lengths, strict=True)]


def test_preference_rows_are_the_teachers_response_and_then_what_was_sampled() -> None:
    batch = preference_batch(GROUPS[:2])
    assert rows_of(batch) == [
        [1, 2, 3, 4, END],
        [1, 2, 5, END],
        [1, 2, 3, 4, END],
        [1, 2, 6, 7, END],  # the ids that were sampled, not those that D reads
        [1, 2, 3, 8, END],
        [1, 2, 3, END],
        [1, 2, 3, 8, END],
        [1, 2, 3, 4],
    ]
    assert batch.response_mask[3].tolist() == [False, False, True, True, True]
    assert batch.rows_per_unit == 2


def test_teacher_rows_are_prompt_and_response_and_train_on_the_response() -> None:
    batch = teacher_batch(PROMPTS)
    assert batch.tokens.tolist() == [
        [1, 2, 3, 4, END, 0],
        [1, 2, 3, 8, END, 0],
        [1, 5, 6, 7, 8, END],
    ]
    assert batch.tokens.dtype == torch.int64
    assert batch.lengths.tolist() == [5, 5, 6]
    assert batch.response_mask.int().tolist() == [
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 1, 1, 1, 1, 1],
    ]
    assert batch.response_mask.dtype == torch.bool


def test_policy_rows_are_the_sampled_ids_with_their_logprobs_in_group_order() -> None:
    batch = policy_batch(GROUPS)
    assert rows_of(batch) == [
        [1, 2, 5, END],
        [1, 2, 6, 7, END],
        [1, 2, 3, END],
        [1, 2, 3, 4],
        [1, 2, END],
        [1, 2, 2, 2, 2, 2, END],
    ]
    assert batch.rollout_logprobs is not None
    assert batch.rollout_logprobs.dtype == torch.float32
    assert rows_of(batch, batch.rollout_logprobs) == [
        [0, 0, -0.25, -0.5],
        [0, 0, -0.25, -0.5, -0.75],
        [0, 0, 0, -0.25],
        [0, 0, 0, -0.25],
        [0, -0.25, -0.5],
        [0, -0.25, -0.5, -0.75, -1.0, -1.25, -1.5],
    ]
    assert torch.all(batch.rollout_logprobs[~batch.response_mask] == 0)
    assert torch.all(batch.rollout_logprobs[batch.response_mask] < 0)


def test_an_end_token_that_equals_the_padding_stays_in_the_mask() -> None:
    zero_end = [prompt(0, (1, 2), (3, 0)), prompt(1, (0, 2), (3, 4, 4, 0))]
    batch = teacher_batch(zero_end)
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert batch.lengths.tolist() == [4, 6]


def test_pair_rows_are_the_teacher_then_the_rollouts_texts() -> None:
    batch = pair_batch(GROUPS)
    assert rows_of(batch) == [
        [1, 2, 3, 4, END],
        [1, 2, 5, END],
        [1, 2, 67, END],  # the text's ids, not the sampled ones
        [1, 2, 3, 8, END],
        [1, 2, 3, END],
        [1, 2, 3, 4],
        [1, 5, 6, 7, 8, END],
        [1, 2, END],
        [1, 2, 2, 2, 2, 2, END],
    ]
    assert batch.group_size == 2
    assert batch.trained.tolist() == [True] * 9
    assert rows_of(batch, batch.response_mask.int())[3] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("num_trained", "expected"),
    [(0, [True, True, True]), (1, [True, True, False]), (2, [True, True, True])],
)
def test_only_the_first_rollouts_of_a_group_train(num_trained: int, expected: list[bool]) -> None:
    assert pair_batch(GROUPS, num_trained).trained.tolist() == expected * 3


def test_groups_of_different_sizes_are_refused() -> None:
    short = Group(PROMPTS[0], GROUPS[0].rollouts[:1])
    with pytest.raises(AssertionError, match=r"different sizes \[1, 2\]"):
        pair_batch([*GROUPS, short])
    with pytest.raises(AssertionError):
        pair_batch(GROUPS, num_trained=3)


def test_logprobs_that_do_not_match_the_ids_are_refused() -> None:
    wrong = replace(rollout(5, END), rollout_logprobs=(-1.0,))
    with pytest.raises(AssertionError, match=r"\(1, 2\)"):
        policy_batch([Group(PROMPTS[0], (wrong,))])


def full_policy_batch() -> Batch:
    """A policy batch with every fact filled in by distinct numbers."""
    batch = policy_batch(GROUPS)
    numbers = torch.arange(batch.tokens.numel(), dtype=torch.float32).view(batch.tokens.shape)
    numbers = torch.where(batch.response_mask, numbers + 1, 0.0)
    batch = batch.with_advantages(numbers * 2).with_ref_logprobs(numbers * 3)
    return batch.with_old_logprobs(numbers * 4)


def assert_same_rows(part: Batch | PairBatch, whole: Batch | PairBatch, rows: list[int]) -> None:
    """Every tensor of ``part`` equals some rows of ``whole``, up to the padding."""
    for name, value in vars(whole).items():
        if not isinstance(value, Tensor):
            continue
        ours = getattr(part, name)
        if value.dim() == 1:
            assert torch.equal(ours, value[rows]), name
            continue
        for row, expected, length in zip(ours, value[rows], part.lengths, strict=True):
            assert torch.equal(row[:length], expected[:length]), name
            if name != "tokens":
                assert not row[length:].any(), name


def test_rows_are_taken_in_any_order_and_cut_to_the_longest() -> None:
    batch = full_policy_batch()
    part = take_rows(batch, [4, 2, 3])
    assert part.tokens.tolist() == [[1, 2, END, 0], [1, 2, 3, END], [1, 2, 3, 4]]
    assert_same_rows(part, batch, [4, 2, 3])
    for name in ("response_mask", "rollout_logprobs", "advantages", "ref_logprobs", "old_logprobs"):
        assert getattr(part, name).shape == (3, 4)
    with pytest.raises(AssertionError):
        take_rows(batch, [])


@pytest.mark.parametrize(("multiple_of", "width"), [(1, 4), (3, 6), (4, 4), (16, 16)])
def test_the_width_is_rounded_up_even_beyond_the_batch(multiple_of: int, width: int) -> None:
    batch = full_policy_batch()
    part = take_rows(batch, [2, 3, 4], multiple_of)
    assert part.tokens.shape == (3, width)
    assert_same_rows(part, batch, [2, 3, 4])


def test_untrained_rows_have_one_token_and_no_part_in_any_sum() -> None:
    empty = untrained_rows(full_policy_batch(), multiple_of=4)
    assert empty.tokens.shape == (1, 4)
    assert empty.lengths.tolist() == [1]
    assert not empty.response_mask.any()
    pairs = replace(pair_batch(GROUPS), score_gradients=torch.ones(9))
    empty = untrained_rows(pairs)
    assert empty.lengths.tolist() == [1, 1, 1]
    assert empty.score_gradients is not None
    assert not (empty.trained.any() or empty.score_gradients.any() or empty.response_mask.any())


def test_facts_that_are_not_there_stay_absent() -> None:
    part = take_rows(teacher_batch(PROMPTS), [0, 1])
    assert part.rollout_logprobs is None
    assert part.advantages is None


def test_a_response_without_tokens_trains_nothing() -> None:
    batch = policy_batch([Group(PROMPTS[0], (rollout(), rollout(5, END)))])
    assert batch.lengths.tolist() == [2, 4]
    assert batch.response_mask.int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
