"""From what the last pipeline stage returns to what a loss takes, for both kinds of model."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_gad.training.options import ScoreKind
from megatron_gad.training.vocab_parallel import response_logprobs, vocab_shard
from megatron_gad.types import Batch, LanguageOutput, PairBatch, ScorerOutput


class Head(Protocol):
    """What the trainer asks of either head; the types follow from the kind of model."""

    def read(self, output: Tensor, piece: Any, temperature: float) -> Any:
        """Turn what the last stage returns for a microbatch into what its loss takes."""
        ...

    def rows(self, read: Any) -> Tensor:
        """Return what a step reports per row, without gradient."""
        ...


@dataclass(frozen=True)
class LanguageHead:
    """Reads log-probabilities of the taken tokens off vocabulary-sharded logits.

    real_vocab_size: columns of the model's folder, without the padding for tensor parallelism.
    chunk_size: tokens whose float32 logits are held at once.
    """

    real_vocab_size: int
    chunk_size: int

    def read(self, output: Tensor, piece: Batch, temperature: float) -> LanguageOutput:
        """output: [B, T, V / TP] logits; returns [B, T] float32 logprobs and entropy."""
        shard = vocab_shard(output.shape[-1], self.real_vocab_size)
        return LanguageOutput(
            *response_logprobs(
                output, piece.tokens, piece.response_mask, shard, temperature, self.chunk_size
            )
        )

    def rows(self, read: LanguageOutput) -> Tensor:
        """Return what a step reports per row: [B, T] logprobs."""
        return read.logprobs.detach()


@dataclass(frozen=True)
class ScoreHead:
    """Reads one score per row off the values of all tokens.

    kind: the value of the last real token, or the sum over response tokens.
    """

    kind: ScoreKind

    def read(self, output: Tensor, piece: PairBatch, temperature: float) -> ScorerOutput:
        """output: [R, T] float32; temperature is without meaning here. Returns [R] scores."""
        if self.kind == "sum":
            return ScorerOutput(torch.where(piece.response_mask, output, 0.0).sum(dim=1))
        last = (piece.lengths - 1)[:, None]
        return ScorerOutput(output.gather(1, last).squeeze(1))

    def rows(self, read: ScorerOutput) -> Tensor:
        """Return what a step reports per row: [R] scores."""
        return read.scores.detach()
