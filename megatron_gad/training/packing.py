"""Rows of a microbatch as one packed sequence without padding, and its output as rows again."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_gad.models.attention import PackedLengths, packed_lengths
from megatron_gad.types import Batch, PairBatch


@dataclass(frozen=True)
class PackedRows:
    """The real tokens of all rows, one behind the other, on the device.

    tokens: [1, N] int64. positions: [1, N] int64, of the tokens in their rows.
    lengths: of the rows, and of a sequence of padding where there is one.
    places: [n] int64, where in the flattened rows [B * T] the n real tokens stand.
    shape: B and T of the rows.
    """

    tokens: Tensor
    positions: Tensor
    lengths: PackedLengths
    places: Tensor
    shape: tuple[int, int]

    def forward(self, model: torch.nn.Module) -> Tensor:
        """Run a model over the tokens.

        Each row attends to itself only and has positions of its own, so every token gets what it
        gets in a padded batch. The last stage returns [1, N, ...], the others their hidden states.
        """
        return model(self.tokens, self.positions, None, packed_seq_params=self.lengths)

    def as_rows(self, output: Tensor) -> Tensor:
        """Lay a packed output [1, N, ...] out as rows [B, T, ...], 0 behind their ends."""
        num_rows, width = self.shape
        flat = output.new_zeros(num_rows * width, *output.shape[2:])
        flat = flat.index_copy(0, self.places, output[0, : len(self.places)])
        return flat.unflatten(0, self.shape)


def pack_rows(piece: Batch | PairBatch, multiple_of: int, device: torch.device) -> PackedRows:
    """Pack a microbatch that is still on the host, so that no length is asked of the device.

    multiple_of: N is rounded up to it by a sequence of padding, for sequence parallelism.
    """
    places = real_tokens(piece).flatten().nonzero().squeeze(1)
    lengths: list[int] = piece.lengths.tolist()
    missing = -sum(lengths) % multiple_of
    tokens = pad(piece.tokens.flatten()[places], (0, missing))
    if missing:
        lengths = [*lengths, missing]
    positions = torch.cat([torch.arange(length) for length in lengths])
    num_rows, width = piece.tokens.shape
    return PackedRows(
        tokens=tokens[None].to(device),
        positions=positions[None].to(device),
        lengths=packed_lengths(lengths, device),
        places=places.to(device),
        shape=(num_rows, width),
    )


def real_tokens(piece: Batch | PairBatch) -> Tensor:
    """Return [B, T] bool, True where a row has a token."""
    positions = torch.arange(piece.tokens.shape[1], device=piece.tokens.device)
    return positions < piece.lengths[:, None]
