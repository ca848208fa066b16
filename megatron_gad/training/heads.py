"""From what the last pipeline stage returns to what a loss takes, for both kinds of model."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from megatron_gad.config.models import ScoreKind
from megatron_gad.models.language_model import LanguageModel
from megatron_gad.training.context_parallel import context_group, own_tokens, whole_rows
from megatron_gad.training.divergence import Taught, compare_with_teacher
from megatron_gad.training.packing import PackedOutput
from megatron_gad.training.vocab_parallel import (
    before_responses,
    by_row,
    predicted_places,
    response_logprobs,
    vocab_shard,
)
from megatron_gad.types import Batch, LanguageOutput, PairBatch, ScorerOutput


class Head(Protocol):
    """What the trainer asks of either head; the types follow from the kind of model."""

    def reads(self, piece: Any) -> Tensor:
        """Return [B, T] bool, at which positions of a microbatch's rows it reads the output."""
        ...

    def read(self, output: Tensor | PackedOutput, piece: Any, temperature: float) -> Any:
        """Turn what the last stage returns for a microbatch into what its loss takes."""
        ...

    def rows(self, read: Any) -> Tensor:
        """Return what a step reports per row, without gradient."""
        ...


@dataclass(frozen=True)
class LanguageHead:
    """Reads log-probabilities of the taken tokens off hidden states, a chunk of tokens at a time.

    model: of the last stage; has the output layer.
    chunk_size: tokens whose logits are held at once.
    """

    model: LanguageModel
    chunk_size: int

    def reads(self, piece: Batch) -> Tensor:
        """Return where the next token is of a response."""
        return before_responses(piece.response_mask)

    def read(
        self, output: Tensor | PackedOutput, piece: Batch, temperature: float
    ) -> LanguageOutput:
        """output: [B, T / CP, H] hidden states; returns [B, T] float32 logprobs and entropy."""
        weight = self.model.output_weight()
        logprobs, entropy = response_logprobs(
            output,
            weight,
            piece.tokens,
            piece.response_mask,
            vocab_shard(len(weight), self.model.real_vocab_size),
            temperature,
            self.chunk_size,
        )
        return LanguageOutput(logprobs, entropy)

    def rows(self, read: LanguageOutput) -> Tensor:
        """Return what a step reports per row: [B, T] logprobs."""
        return read.logprobs.detach()


@dataclass(frozen=True)
class DivergenceHead:
    """Reads the divergence from a teacher beside what the student's own head reads.

    taught: of the teacher, with the states of all rows of a batch.
    """

    student: LanguageHead
    taught: Taught

    def reads(self, piece: Batch) -> Tensor:
        """Return what the student's own head does."""
        return self.student.reads(piece)

    def read(
        self, output: Tensor | PackedOutput, piece: Batch, temperature: float
    ) -> LanguageOutput:
        """output: [B, T / CP, H] hidden states. piece: with teacher_states."""
        assert piece.teacher_states is not None, "the batch does not name the teacher's states"
        model, group = self.student.model, context_group()
        weight = model.output_weight()
        places, targets = predicted_places(piece.tokens, piece.response_mask, group)
        states = own_tokens(pad(piece.teacher_states[:, 1:], (0, 1)), group)[places]
        found = compare_with_teacher(
            output[places],
            weight,
            targets[places],
            replace(self.taught, states=self.taught.states[states.cpu()]),
            vocab_shard(len(weight), model.real_vocab_size),
            temperature,
            self.student.chunk_size,
        )
        return LanguageOutput(*(by_row(each, places, targets.shape, group) for each in found))

    def rows(self, read: LanguageOutput) -> Tensor:
        """Return what the student's own head does."""
        return self.student.rows(read)


@dataclass
class StatesHead:
    """Keeps the hidden states that predict response tokens on the host, and numbers them.

    states: [n, H] of every microbatch so far.
    """

    states: list[Tensor] = field(default_factory=list[Tensor])

    def reads(self, piece: Batch) -> Tensor:
        """Return where the next token is of a response."""
        return before_responses(piece.response_mask)

    def read(self, output: Tensor | PackedOutput, piece: Batch, temperature: float) -> Tensor:
        """Return [B, T] int64, the number of the state that predicts each token; else 0."""
        group = context_group()
        places, targets = predicted_places(piece.tokens, piece.response_mask, group)
        first = sum(map(len, self.states))
        self.states.append(output[places].to("cpu"))
        numbers = torch.arange(first, first + len(self.states[-1]), device=targets.device)
        return by_row(numbers, places, targets.shape, group)

    def rows(self, read: Tensor) -> Tensor:
        """Return what was read."""
        return read


@dataclass(frozen=True)
class ScoreHead:
    """Reads one score per row off the values of all tokens.

    kind: the value of the last real token, or the sum or mean over response tokens.
    """

    kind: ScoreKind

    def reads(self, piece: PairBatch) -> Tensor:
        """Return the response tokens, or the last token of each row."""
        if self.kind != "last_token":
            return piece.response_mask
        return one_hot(piece.lengths - 1, piece.tokens.shape[1]).bool()

    def read(
        self, output: Tensor | PackedOutput, piece: PairBatch, temperature: float
    ) -> ScorerOutput:
        """output: [R, T / CP] float32; temperature is without meaning here. Returns [R] scores."""
        values = token_values(output)
        if self.kind != "last_token":
            sums = torch.where(piece.response_mask, values, 0.0).sum(dim=1)
            num_tokens = piece.response_mask.sum(dim=1).clamp(min=1)
            return ScorerOutput(sums if self.kind == "sum" else sums / num_tokens)
        last = (piece.lengths - 1)[:, None]
        return ScorerOutput(values.gather(1, last).squeeze(1))

    def rows(self, read: ScorerOutput) -> Tensor:
        """Return what a step reports per row: [R] scores."""
        return read.scores.detach()


@dataclass(frozen=True)
class TokenValueHead:
    """Reads the values of response tokens, of which a score is the sum or mean."""

    def reads(self, piece: PairBatch) -> Tensor:
        """Return the response tokens."""
        return piece.response_mask

    def read(self, output: Tensor | PackedOutput, piece: PairBatch, temperature: float) -> Tensor:
        """output: [R, T / CP] float32. Returns [R, T] float32, 0 where there is no response."""
        return torch.where(piece.response_mask, token_values(output), 0.0)

    def rows(self, read: Tensor) -> Tensor:
        """Return what was read."""
        return read.detach()


def token_values(output: Tensor | PackedOutput) -> Tensor:
    """Return a scorer's value of every token, [R, T] float32; output: [R, T / CP] or packed."""
    return output[:] if isinstance(output, PackedOutput) else whole_rows(output, context_group())
