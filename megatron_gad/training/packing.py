"""Rows of a microbatch as one packed sequence without padding, and its output as rows again."""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_gad.types import Batch, PairBatch


def forward_packed(model: torch.nn.Module, piece: Batch | PairBatch, multiple_of: int) -> Tensor:
    """Run a model over the real tokens of all rows, one behind the other.

    Each row attends to itself only and has positions of its own, so every token gets what it gets
    in a padded batch. The last stage returns [1, N, ...], the others their hidden states.

    multiple_of: N is rounded up to it by a sequence of padding, for sequence parallelism.
    """
    real = real_tokens(piece)
    lengths = piece.lengths.tolist()
    missing = -sum(lengths) % multiple_of
    if missing:
        lengths = [*lengths, missing]
    tokens = torch.nn.functional.pad(piece.tokens[real], (0, missing))
    positions = torch.cat([torch.arange(length, device=tokens.device) for length in lengths])
    ends = torch.tensor([0, *lengths], device=tokens.device).cumsum(0).to(torch.int32)
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
    )
    return model(tokens[None], positions[None], None, packed_seq_params=packed)


def as_rows(output: Tensor, piece: Batch | PairBatch) -> Tensor:
    """Lay a packed output [1, N, ...] out as rows [B, T, ...], 0 behind their ends."""
    real = real_tokens(piece)
    rows = output.new_zeros(*real.shape, *output.shape[2:])
    return rows.index_put(real.nonzero(as_tuple=True), output[0, : int(real.sum())])


def real_tokens(piece: Batch | PairBatch) -> Tensor:
    """Return [B, T] bool, True where a row has a token."""
    positions = torch.arange(piece.tokens.shape[1], device=piece.tokens.device)
    return positions < piece.lengths[:, None]
