"""Losses of a student whose teacher's probabilities are known: distillation on its own samples."""

from torch import Tensor

from megatron_gad.algorithms.masking import masked_count, masked_sum, zero_outside
from megatron_gad.types import Batch, LanguageOutput, Loss


def divergence_loss(output: LanguageOutput, batch: Batch) -> Loss:
    """Return the divergence from the teacher at the response tokens, counted in tokens.

    On the student's own samples this is GKD (arXiv 2306.13649): the gradient is that of each
    token's divergence, and not that of which tokens are sampled. Needs output.divergence.

    Metrics: loss and entropy, both per token in nats.
    """
    assert output.divergence is not None, "the trainer was given no teacher"
    total = masked_sum(output.divergence, batch.response_mask)
    return _per_token(total, output, batch)


def sampled_divergence_loss(output: LanguageOutput, batch: Batch) -> Loss:
    """Return an estimate of the reverse KL from the sampled tokens alone, counted in tokens.

        loss      mean of log p_S(y_t) - log p_T(y_t)
        gradient  mean of that number times the gradient of log p_S(y_t)

    so that every token's advantage is log p_T - log p_S. On tokens that the student sampled, the
    gradient is in expectation that of the exact reverse KL. Needs the teacher's log-probabilities
    in batch.ref_logprobs.

    Metrics: loss and entropy, both per token in nats.
    """
    assert batch.ref_logprobs is not None, "the batch has no log-probabilities of the teacher"
    mask = batch.response_mask
    logprobs = zero_outside(output.logprobs, mask)
    known = logprobs.detach()
    gap = known - zero_outside(batch.ref_logprobs, mask)
    # The second factor is 1; it carries the gradient.
    total = masked_sum(gap * (1.0 + logprobs - known), mask)
    return _per_token(total, output, batch)


def _per_token(total: Tensor, output: LanguageOutput, batch: Batch) -> Loss:
    count = masked_count(batch.response_mask)
    entropy = masked_sum(output.entropy.detach(), batch.response_mask)
    return Loss(total, count, {"loss": (total.detach(), count), "entropy": (entropy, count)})
