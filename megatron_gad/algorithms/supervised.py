"""Cross-entropy on given responses: stage seqkd, and the student's part of stage warmup."""

from megatron_gad.algorithms.masking import aggregate, masked_sum
from megatron_gad.types import Batch, LanguageOutput, Loss


def supervised_loss(output: LanguageOutput, batch: Batch) -> Loss:
    """Return the negative log-likelihood of the response tokens, counted in tokens.

    Metrics: loss and entropy, both per token in nats.
    """
    total, count = aggregate(-output.logprobs, batch.response_mask, "token_mean")
    entropy = masked_sum(output.entropy.detach(), batch.response_mask)
    return Loss(total, count, {"loss": (total.detach(), count), "entropy": (entropy, count)})
