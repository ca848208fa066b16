"""Rows of a microbatch as one packed sequence without padding, and its output by row again."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_gad.data.batching import prompts_of_rows
from megatron_gad.models.attention import PackedLengths, packed_lengths
from megatron_gad.types import Batch, PairBatch


@dataclass(frozen=True)
class PackedRows:
    """The real tokens of all rows, one behind the other, on the device.

    tokens: [1, N] int64. positions: [1, N] int64, of the tokens in their rows.
    lengths: of the sequences: one for each row that has tokens of its own, and one of padding.
    places: [B, T] int64, which of the results, of all N tokens or of those that are read, a row has
        at a position; 0 where it has none. Rows that share their prompt name the same ones.
    """

    tokens: Tensor
    positions: Tensor
    lengths: PackedLengths
    places: Tensor

    def forward(self, model: torch.nn.Module) -> Tensor:
        """Run a model over the tokens.

        A token attends to those before it in its row and has its position in it, so that it gets
        what it gets in a padded batch. The last stage returns [1, N, ...], or as much of it as is
        read, the others their hidden states.
        """
        return model(self.tokens, self.positions, None, packed_seq_params=self.lengths)


@dataclass(frozen=True)
class PackedOutput:
    """What the last stage returned for packed rows, read by row and position.

    values: [1, N, ...], or as much of it as is read. places: of PackedRows.
    """

    values: Tensor
    places: Tensor

    def __getitem__(self, at: Any) -> Tensor:
        """Return the values at some positions, as those of rows [B, T, ...] indexed by ``at``."""
        return self.values[0][self.places[at]]


def pack_rows(
    piece: Batch | PairBatch,
    multiple_of: int,
    device: torch.device,
    shares_prompts: bool = False,
    reads: Tensor | None = None,
) -> PackedRows:
    """Pack a microbatch that is still on the host, so that no length is asked of the device.

    multiple_of: N is rounded up to it by a sequence of padding, for sequence parallelism.
    shares_prompts: rows with equal prompts have it once, at the first of them.
    reads: [B, T] bool, at which positions of the rows the last layer's result is read; None for all
        of them.
    """
    row_lengths: list[int] = piece.lengths.tolist()
    num_rows, width = piece.tokens.shape
    shared = _shared_tokens(piece) if shares_prompts else [(row, 0) for row in range(num_rows)]
    places = torch.zeros(num_rows, width, dtype=torch.int64)
    lengths: list[int] = []
    starts: list[int] = []
    sources: list[int] = []
    sequence_of_row: dict[int, int] = {}
    end = 0
    for row, (first, start) in enumerate(shared):
        length = row_lengths[row]
        places[row, :start] = places[first, :start]
        places[row, start:length] = torch.arange(end, end + length - start)
        end += length - start
        if length > start:
            sequence_of_row[row] = len(lengths)
            lengths.append(length - start)
            starts.append(start)
            sources.append(sequence_of_row[first])
    missing = -end % multiple_of
    if missing:
        lengths, starts, sources = [*lengths, missing], [*starts, 0], [*sources, 0]
    spans = zip(starts, lengths, strict=True)
    positions = torch.cat([torch.arange(at, at + length) for at, length in spans])
    own = torch.arange(width) >= torch.tensor([start for _, start in shared])[:, None]
    tokens = pad(piece.tokens[own & real_tokens(piece)], (0, missing))
    unread: list[int] = []
    if reads is not None:
        unread = _count_unread(places[reads], lengths)
        kept = [torch.arange(n) >= skipped for n, skipped in zip(lengths, unread, strict=True)]
        is_kept = torch.cat(kept)
        places = torch.where(is_kept, is_kept.cumsum(0) - 1, 0)[places]
    return PackedRows(
        tokens=tokens[None].to(device),
        positions=positions[None].to(device),
        lengths=packed_lengths(lengths, device, starts, sources, unread),
        places=places.to(device),
    )


def _count_unread(read: Tensor, lengths: list[int]) -> list[int]:
    """Return how many tokens each sequence begins with that are not among those read.

    The last token of a sequence counts as read, so that no sequence is without any.
    """
    is_read = torch.zeros(sum(lengths), dtype=torch.bool)
    is_read[read] = True
    is_read[torch.tensor(lengths).cumsum(0) - 1] = True
    return [int(part.int().argmax()) for part in is_read.split(lengths)]


def _shared_tokens(piece: Batch | PairBatch) -> list[tuple[int, int]]:
    """Return for each row the first one with its prompt, and how many tokens it has of that one."""
    first_of: dict[int, int] = {}
    shared: list[tuple[int, int]] = []
    for row, (number, size) in enumerate(prompts_of_rows(piece)):
        first = first_of.setdefault(number, row)
        shared.append((first, size if first != row else 0))
    return shared


def real_tokens(piece: Batch | PairBatch) -> Tensor:
    """Return [B, T] bool, True where a row has a token."""
    positions = torch.arange(piece.tokens.shape[1], device=piece.tokens.device)
    return positions < piece.lengths[:, None]
