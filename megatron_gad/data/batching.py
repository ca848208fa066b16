"""Prompts and groups to padded token tensors, and those to the rows of microbatches.

The padding id is 0: no mask, length or loss reads it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from megatron_gad.data.balance import scored_ids
from megatron_gad.types import Batch, Group, PairBatch, Prompt

AnyBatch = TypeVar("AnyBatch", Batch, PairBatch)


def teacher_batch(prompts: Sequence[Prompt]) -> Batch:
    """Return rows that train on the teacher's responses, in the order of the prompts: [P, T]."""
    return Batch(*_padded([(prompt.ids, prompt.teacher_ids) for prompt in prompts]))


def policy_batch(groups: Sequence[Group]) -> Batch:
    """Return rows that train on the sampled ids, group after group: [P * G, T].

    ``rollout_logprobs`` holds the engine's log-probabilities. The ids are those that were sampled,
    not ``text_ids``.
    """
    rows = [(group.prompt.ids, rollout.ids) for group in groups for rollout in group.rollouts]
    tokens, lengths, response_mask = _padded(rows)
    logprobs = torch.zeros(tokens.shape, dtype=torch.float32)
    rollouts = (rollout for group in groups for rollout in group.rollouts)
    for b, (rollout, (prompt_ids, ids)) in enumerate(zip(rollouts, rows, strict=True)):
        assert len(rollout.rollout_logprobs) == len(ids), (len(rollout.rollout_logprobs), len(ids))
        start = len(prompt_ids)
        logprobs[b, start : start + len(ids)] = torch.tensor(rollout.rollout_logprobs)
    return Batch(tokens, lengths, response_mask, rollout_logprobs=logprobs)


def preference_batch(groups: Sequence[Group]) -> Batch:
    """Return per rollout the row of the teacher's response and then its own: [2 * P * G, T]."""
    rows = [
        (group.prompt.ids, ids)
        for group in groups
        for rollout in group.rollouts
        for ids in (group.prompt.teacher_ids, rollout.ids)
    ]
    return Batch(*_padded(rows), rows_per_unit=2)


def pair_batch(
    groups: Sequence[Group], num_trained: int = 0, is_trained: Sequence[bool] | None = None
) -> PairBatch:
    """Return per group the teacher's row, then those of the rollouts, as the discriminator reads.

    num_trained: rollouts of each group, from its first, that enter the loss; 0: all of them.
    is_trained: of every group, whether any of it does; None: all do.
    """
    sizes = {len(group.rollouts) for group in groups}
    assert len(sizes) == 1, f"groups of different sizes {sorted(sizes)}"
    group_size = sizes.pop()
    assert 0 <= num_trained <= group_size, (num_trained, group_size)
    rows: list[tuple[Sequence[int], Sequence[int]]] = []
    for group in groups:
        prompt_ids, *responses = scored_ids(group)
        rows.extend((prompt_ids, ids) for ids in responses)
    trained = (torch.arange(1 + group_size) <= (num_trained or group_size)).repeat(len(groups), 1)
    if is_trained is not None:
        trained[:, 1:] &= torch.tensor(is_trained)[:, None]
    return PairBatch(*_padded(rows), trained=trained.flatten(), group_size=group_size)


def take_rows(batch: AnyBatch, rows: Sequence[int], multiple_of: int = 1) -> AnyBatch:
    """Return some rows in the order given, cut to the longest of them.

    multiple_of: the width is rounded up to a multiple of this.
    """
    assert len(rows) > 0, "a microbatch without rows"
    index = torch.tensor(rows)
    width = -(-int(batch.lengths[index].max()) // multiple_of) * multiple_of
    taken = {name: value[index] for name, value in _tensors(batch).items()}
    return dataclasses.replace(batch, **_with_width(taken, width))


def untrained_rows(batch: AnyBatch, multiple_of: int = 1) -> AnyBatch:
    """Return a microbatch, as small as can be, that adds nothing to any sum: one token a row.

    A rank that has fewer microbatches than others runs it, so that none waits for it. Of a pair
    batch it has as many rows as a group.
    """
    unit = rows_per_unit(batch)
    taken = {name: value[:unit] for name, value in _tensors(batch).items()}
    tensors = _with_width(taken, multiple_of)
    masks = ("response_mask", "trained", "score_gradients")
    for name in tensors.keys() & {*masks}:
        tensors[name] = torch.zeros_like(tensors[name])
    return dataclasses.replace(batch, **tensors | {"lengths": torch.ones(unit, dtype=torch.int64)})


def rows_per_unit(batch: Batch | PairBatch) -> int:
    """Return how many adjacent rows a loss over pairs reads together: 1 if it is none."""
    return 1 + batch.group_size if isinstance(batch, PairBatch) else batch.rows_per_unit


def distinct_rows(batch: Batch | PairBatch) -> tuple[list[int], Tensor]:
    """Return the rows that a model runs over, and which of them each row of the batch is, [R].

    Equal responses to a prompt, the teacher's among them, get one score: computed apart, it would
    differ by rounding, and a group of equal rewards would have advantages. A student's rows all
    run.
    """
    num_rows = len(batch.lengths)
    if not isinstance(batch, PairBatch):
        return list(range(num_rows)), torch.arange(num_rows)
    numbers: dict[tuple[bytes, bytes], int] = {}
    rows: list[int] = []
    index: list[int] = []
    for row in range(num_rows):
        length = int(batch.lengths[row])
        ids, mask = (x[row, :length].numpy().tobytes() for x in (batch.tokens, batch.response_mask))
        index.append(numbers.setdefault((ids, mask), len(rows)))
        if index[-1] == len(rows):
            rows.append(row)
    return rows, torch.tensor(index)


def prompts_of_rows(batch: Batch | PairBatch) -> list[tuple[int, int]]:
    """Return for each row the number of its prompt, the same for equal ones, and its tokens.

    A prompt ends where the response mask begins. Of a row without a response token in its mask it
    is the longest prompt of another row that it begins with, or else the whole row.
    """
    item = batch.tokens.element_size()
    rows: list[tuple[bytes, int | None]] = []
    for tokens, length, mask in zip(batch.tokens, batch.lengths, batch.response_mask, strict=True):
        start = int(mask.int().argmax()) if bool(mask.any()) else None
        rows.append((tokens[: int(length)].numpy().tobytes(), start))
    numbers: dict[bytes, int] = {}
    for row, start in rows:
        if start is not None:
            numbers.setdefault(row[: start * item], len(numbers))
    found: list[tuple[int, int]] = []
    for row, start in rows:
        others = (prompt for prompt in numbers if row.startswith(prompt))
        prompt = max(others, key=len, default=row) if start is None else row[: start * item]
        found.append((numbers.setdefault(prompt, len(numbers)), len(prompt) // item))
    return found


def without_copies(batch: AnyBatch) -> tuple[AnyBatch, Tensor]:
    """Return the distinct rows, at the batch's width, and which of them each row is, [R]."""
    rows, index = distinct_rows(batch)
    if len(rows) == len(index):
        return batch, index
    return dataclasses.replace(batch, **{n: x[rows] for n, x in _tensors(batch).items()}), index


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [B, T] int64, lengths [B] int64, response_mask [B, T] bool of the rows.

    rows: (prompt ids, response ids). The mask comes from lengths, never from comparing ids, so an
    end token that is also the padding token keeps its place in it.
    """
    assert all(len(prompt_ids) > 0 for prompt_ids, _ in rows), "a row without a prompt"
    starts = torch.tensor([len(prompt_ids) for prompt_ids, _ in rows])
    lengths = torch.tensor([len(prompt_ids) + len(ids) for prompt_ids, ids in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for b, (prompt_ids, ids) in enumerate(rows):
        tokens[b, : len(prompt_ids) + len(ids)] = torch.tensor((*prompt_ids, *ids))
    position = torch.arange(tokens.shape[1])
    response_mask = (position >= starts[:, None]) & (position < lengths[:, None])
    return tokens, lengths, response_mask


def _tensors(batch: Batch | PairBatch) -> dict[str, Tensor]:
    values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _with_width(tensors: dict[str, Tensor], width: int) -> dict[str, Any]:
    """Cut or pad, with 0 or False, every [B, T] tensor to the width; [B] tensors stay."""
    resized: dict[str, Any] = {}
    for name, value in tensors.items():
        missing = width - value.shape[1] if value.dim() == 2 else 0
        if missing > 0:
            value = torch.cat([value, value.new_zeros(len(value), missing)], dim=1)
        resized[name] = value[:, :width] if value.dim() == 2 else value
    return resized
