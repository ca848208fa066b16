"""Prompts and groups to padded token tensors, and those to slices and microbatches.

The padding id is 0: no mask, length or loss reads it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

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


def pair_batch(groups: Sequence[Group], num_trained: int = 0) -> PairBatch:
    """Return per group the teacher's row, then those of the rollouts' ``text_ids``.

    num_trained: rollouts of each group, from its first, that enter the loss; 0: all of them.
    """
    sizes = {len(group.rollouts) for group in groups}
    assert len(sizes) == 1, f"groups of different sizes {sorted(sizes)}"
    group_size = sizes.pop()
    assert 0 <= num_trained <= group_size, (num_trained, group_size)
    rows: list[tuple[Sequence[int], Sequence[int]]] = []
    for group in groups:
        rows.append((group.prompt.ids, group.prompt.teacher_ids))
        rows.extend((group.prompt.ids, rollout.text_ids) for rollout in group.rollouts)
    trained = torch.arange(1 + group_size) <= (num_trained or group_size)
    return PairBatch(*_padded(rows), trained=trained.repeat(len(groups)), group_size=group_size)


def slice_batch(batch: AnyBatch, start: int, stop: int, multiple_of: int = 1) -> AnyBatch:
    """Return the rows [start, stop), cut to their own longest row.

    A pair batch is cut between groups only.

    multiple_of: the width is rounded up to a multiple of this.
    """
    unit = _rows_per_unit(batch)
    assert start % unit == 0 and stop % unit == 0, f"[{start}, {stop}) cuts a group of {unit} rows"
    return _slice_rows(batch, start, stop, multiple_of)


def microbatches(
    batch: AnyBatch, rows: int, multiple_of: int = 1, whole_groups: bool = True
) -> list[AnyBatch]:
    """Split a batch into slices of at most ``rows`` rows, in order, each row in exactly one.

    A pair batch is split into as many whole groups as fit in ``rows``, at least one. How many
    slices there are depends on the number of rows alone, so all data ranks have the same number.

    whole_groups: False splits a pair batch at any row, for what needs one row at a time.
    """
    assert rows >= 1, rows
    unit = _rows_per_unit(batch) if whole_groups else 1
    step = max(1, rows // unit) * unit
    num_rows = len(batch.lengths)
    return [
        _slice_rows(batch, start, min(start + step, num_rows), multiple_of)
        for start in range(0, num_rows, step)
    ]


def pad_to(batch: AnyBatch, width: int) -> AnyBatch:
    """Return the batch widened to ``width`` tokens a row; nothing that is read changes."""
    assert width >= batch.tokens.shape[1], (width, batch.tokens.shape[1])
    return dataclasses.replace(batch, **_with_width(_tensors(batch), width))


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


def _slice_rows(batch: AnyBatch, start: int, stop: int, multiple_of: int) -> AnyBatch:
    num_rows = len(batch.lengths)
    assert 0 <= start < stop <= num_rows, (start, stop, num_rows)
    longest = int(batch.lengths[start:stop].max())
    width = -(-longest // multiple_of) * multiple_of
    rows = {name: value[start:stop] for name, value in _tensors(batch).items()}
    return dataclasses.replace(batch, **_with_width(rows, width))


def _rows_per_unit(batch: Batch | PairBatch) -> int:
    return 1 + batch.group_size if isinstance(batch, PairBatch) else 1


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
