"""Losses on pairs of whole responses: learning from the same data without a game."""

from torch import Tensor
from torch.nn.functional import softplus

from megatron_gad.algorithms.masking import masked_count, masked_sum, zero_outside
from megatron_gad.types import Batch, LanguageOutput, Loss


def sequence_logprobs(logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Return the log-probability of every row's response, [B] float32.

    logprobs: [B, T] float32. response_mask: [B, T] bool.
    """
    return zero_outside(logprobs, response_mask).sum(dim=-1)


def dpo_loss(output: LanguageOutput, batch: Batch, beta: float) -> Loss:
    """Return the DPO loss over pairs of rows (arXiv 2305.18290, eq. 7).

        -log sigmoid(beta (log pi(y_w) / ref(y_w) - log pi(y_l) / ref(y_l)))

    Rows 2i and 2i + 1 of the batch are the preferred and the other response of pair i. With the
    teacher's response preferred over one of the student's own, this is SPIN (arXiv 2401.01335).
    A pair with an empty response does not count. batch.ref_logprobs is needed.

    Counted in pairs. Metrics: loss, accuracy (share of pairs with a positive margin) and margin
    (the argument of the sigmoid). Raises ValueError for an odd number of rows, or without
    ref_logprobs.
    """
    num_rows = batch.response_mask.shape[0]
    if num_rows % 2:
        raise ValueError(f"dpo_loss got {num_rows} rows; whole pairs of adjacent rows are needed")
    if batch.ref_logprobs is None:
        raise ValueError("batch.ref_logprobs is None; dpo_loss needs batch.with_ref_logprobs(...)")
    mask = batch.response_mask
    gains = sequence_logprobs(output.logprobs, mask) - sequence_logprobs(batch.ref_logprobs, mask)
    margins = beta * (gains[0::2] - gains[1::2])
    has_tokens = mask.any(dim=-1)
    is_pair = has_tokens[0::2] & has_tokens[1::2]
    total, count = masked_sum(softplus(-margins), is_pair), masked_count(is_pair)
    metrics = {
        "loss": (total.detach(), count),
        "accuracy": (masked_count((margins > 0) & is_pair), count),
        "margin": (masked_sum(margins.detach(), is_pair), count),
    }
    return Loss(total, count, metrics)
