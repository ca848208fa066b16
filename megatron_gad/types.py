"""The nouns that travel between the parts of a run. Frozen, without logic, with torch alone.

Axis letters: P prompts, G rollouts of a prompt, B = P * G rows, R rows of a pair batch, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]
# One turn of a conversation: "role", "content", and what else its template reads.
Message = Mapping[str, Any]
# "group/name" -> number, as a step reports them.
Metrics = dict[str, float]


@dataclass(frozen=True)
class Prompt:
    """One row of the data set after tokenisation.

    index: row number in the data set, the same on every rank and in every epoch.
    messages: the conversation before the response.
    teacher_text: the teacher's response as text; empty at inference.
    ids: prompt token ids, ending with the assistant header of the chat template.
    teacher_ids: response token ids, with the end token unless the text was cut.
    teacher_truncated: True if the teacher's text was cut: by the cap, or where it comes from.
    scorer_ids, scorer_teacher_ids: the same by tokenizer and template of a discriminator that has
        its own; empty if it reads the student's ids. ``runtime/sampler.py`` fills in the second.
    columns: those of data.reward_columns, as the row has them.
    """

    index: int
    messages: tuple[Message, ...]
    teacher_text: str
    ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    teacher_truncated: bool = False
    scorer_ids: tuple[int, ...] = ()
    scorer_teacher_ids: tuple[int, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    ids: sampled token ids, the end token included when finish_reason is "stop".
    rollout_logprobs: the engine's log-probability of every id under the sampling temperature.
    weights_version: version of the weights that sampled it.
    text: decoded without special tokens; filled in by ``runtime/sampler.py``.
    text_ids: ``text`` put through the same path as the teacher's text; what the discriminator
        reads. Filled in by ``runtime/sampler.py``.
    scorer_ids: what a discriminator with a tokenizer of its own reads instead, filled in likewise.
    """

    ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    weights_version: int
    text: str = ""
    text_ids: tuple[int, ...] = ()
    scorer_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """The G rollouts of one prompt."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class Instructed:
    """A prompt and what can be checked of its answer. checks: {"check": name, parameters ...}."""

    id: str
    prompt: str
    checks: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Batch:
    """Rows that the student trains on, right-padded.

    Every per-token tensor is aligned with ``tokens``: entry [b, t] belongs to tokens[b, t] given
    tokens[b, :t]. So position 0 is never trained, and no shift happens outside the trainer.

    tokens: [B, T] int64.
    lengths: [B] int64, real tokens of a row.
    response_mask: [B, T] bool, True where the token trains.
    rollout_logprobs, ref_logprobs, old_logprobs: [B, T] float32, 0 where response_mask is False.
    advantages: [B, T] float32, 0 where response_mask is False.
    teacher_states: [B, T] int64, which hidden state of a teacher predicts the token; 0 where
        response_mask is False.
    rows_per_unit: adjacent rows that a loss reads together, such as the 2 of a preference pair.
    """

    tokens: Tensor
    lengths: Tensor
    response_mask: Tensor
    rollout_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    teacher_states: Tensor | None = None
    rows_per_unit: int = 1

    def with_advantages(self, advantages: Tensor) -> "Batch":
        """Return a batch with advantages spread over response tokens.

        advantages: [B] or [B, T] float32.
        """
        per_token = advantages[:, None] if advantages.dim() == 1 else advantages
        zeros = torch.zeros_like(self.response_mask, dtype=torch.float32)
        return replace(self, advantages=torch.where(self.response_mask, per_token, zeros))

    def without_rows(self, is_left_out: Tensor) -> "Batch":
        """Return a batch of which some rows train nothing, as if they had no response.

        is_left_out: [B] bool.
        """
        return replace(self, response_mask=self.response_mask & ~is_left_out[:, None])

    def with_ref_logprobs(self, ref_logprobs: Tensor) -> "Batch":
        """Return a batch that also carries the reference's logprobs, [B, T] float32."""
        return replace(self, ref_logprobs=ref_logprobs)

    def with_old_logprobs(self, old_logprobs: Tensor) -> "Batch":
        """Return a batch that also carries the logprobs from before the update, [B, T] float32."""
        return replace(self, old_logprobs=old_logprobs)


@dataclass(frozen=True)
class PairBatch:
    """Rows that the discriminator reads: per group the teacher's response once, then rollouts.

    Rows of a group are adjacent, the teacher's row first. All groups have the same size.

    tokens: [R, T] int64, right-padded, R = P * (1 + G).
    lengths: [R] int64.
    response_mask: [R, T] bool, True at response tokens.
    trained: [R] bool, True for rollouts that enter the loss; every rollout is scored. The
        teacher's rows are True.
    group_size: G.
    score_gradients: [R] float32, dLoss/dScore known beforehand; then rows may be split anywhere.
    """

    tokens: Tensor
    lengths: Tensor
    response_mask: Tensor
    trained: Tensor
    group_size: int
    score_gradients: Tensor | None = None


@dataclass(frozen=True)
class LanguageOutput:
    """What a language-model loss gets from the trainer for one microbatch.

    logprobs: [B, T] float32 of the taken tokens, with gradient; 0 at position 0.
    entropy: [B, T] float32 of the distribution each token was drawn from; 0 at position 0.
    divergence: [B, T] float32 from a teacher's distribution, with gradient; None without one.
    """

    logprobs: Tensor
    entropy: Tensor
    divergence: Tensor | None = None


@dataclass(frozen=True)
class ScorerOutput:
    """What a discriminator loss gets from the trainer for one microbatch.

    scores: [R] float32, with gradient.
    """

    scores: Tensor


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and the count that it will be divided by after summing over the batch.

    total: scalar float32 with gradient, summed over this microbatch.
    count: scalar float32, tokens or pairs in this microbatch; summed over microbatches and data
        ranks before the division.
    metrics: name -> (sum, count), each a scalar tensor; reported as the ratio of their sums.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict[str, tuple[Tensor, Tensor]]
    )
