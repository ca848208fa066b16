"""From what the last pipeline stage returns to what a loss takes, for both kinds of model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_gad.training.options import ScoreKind
from megatron_gad.training.vocab_parallel import response_logprobs, vocab_shard
from megatron_gad.types import Batch, LanguageOutput, PairBatch, ScorerOutput


@dataclass(frozen=True)
class LanguageHead:
    """Reads log-probabilities of the taken tokens off vocabulary-sharded logits.

    real_vocab_size: columns of the model's folder, without the padding for tensor parallelism.
    chunk_size: tokens whose float32 logits are held at once.
    """

    real_vocab_size: int
    chunk_size: int

    def read(self, logits: Tensor, piece: Batch, temperature: float) -> LanguageOutput:
        """logits: [B, T, V / TP]; returns [B, T] float32 logprobs and entropy."""
        shard = vocab_shard(logits.shape[-1], self.real_vocab_size)
        return LanguageOutput(
            *response_logprobs(
                logits, piece.tokens, piece.response_mask, shard, temperature, self.chunk_size
            )
        )

    def rows(self, output: LanguageOutput) -> Tensor:
        """Return what a step reports per row: [B, T] logprobs."""
        return output.logprobs.detach()


@dataclass(frozen=True)
class ScoreHead:
    """Reads one score per row off the values of all tokens.

    kind: the value of the last real token, or the sum over response tokens.
    """

    kind: ScoreKind

    def read(self, values: Tensor, piece: PairBatch, temperature: float) -> ScorerOutput:
        """values: [R, T] float32; temperature is without meaning here. Returns [R] scores."""
        if self.kind == "sum":
            return ScorerOutput(torch.where(piece.response_mask, values, 0.0).sum(dim=1))
        last = (piece.lengths - 1)[:, None]
        return ScorerOutput(values.gather(1, last).squeeze(1))

    def rows(self, output: ScorerOutput) -> Tensor:
        """Return what a step reports per row: [R] scores."""
        return output.scores.detach()
