"""Losses on pairs of whole responses: learning from the same data without a game."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

from megatron_gad.algorithms.masking import masked_count, masked_sum, zero_outside
from megatron_gad.types import Batch, LanguageOutput, Loss

PreferenceKind = Literal["dpo", "simpo"]
# SimPO's target margin as a share of beta: the ratio that its authors advise to begin with.
SIMPO_MARGIN = 0.5


def sequence_logprobs(logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Return the log-probability of every row's response, [B] float32.

    logprobs: [B, T] float32. response_mask: [B, T] bool.
    """
    return zero_outside(logprobs, response_mask).sum(dim=-1)


def preference_loss(
    output: LanguageOutput, batch: Batch, kind: PreferenceKind, beta: float
) -> Loss:
    """Return the loss over pairs of rows: -log sigmoid(beta (g_w - g_l) - m).

    Rows 2i and 2i + 1 of the batch are the preferred and the other response of pair i.

        dpo    g = log pi(y) / ref(y), m = 0             (arXiv 2305.18290, eq. 7)
        simpo  g = log pi(y) / |y|, m = beta / 2         (arXiv 2405.14734, eq. 6)

    With the teacher's response preferred over one of the student's own, DPO is an iteration of
    SPIN (arXiv 2401.01335). A pair with an empty response does not count. DPO needs
    batch.ref_logprobs.

    Counted in pairs. Metrics: loss, accuracy (share of pairs with g_w > g_l) and margin
    (beta (g_w - g_l)). Raises ValueError for an odd number of rows, or for DPO without
    ref_logprobs.
    """
    mask = batch.response_mask
    num_rows = mask.shape[0]
    if num_rows % 2:
        raise ValueError(
            f"preference_loss got {num_rows} rows; whole pairs of adjacent rows are needed"
        )
    gains = sequence_logprobs(output.logprobs, mask)
    target = 0.0
    if kind == "simpo":
        gains = gains / mask.sum(dim=-1).clamp(min=1)
        target = SIMPO_MARGIN * beta
    elif batch.ref_logprobs is None:
        raise ValueError("batch.ref_logprobs is None; DPO needs batch.with_ref_logprobs(...)")
    else:
        gains = gains - sequence_logprobs(batch.ref_logprobs, mask)
    margins = beta * (gains[0::2] - gains[1::2])
    has_tokens = mask.any(dim=-1)
    is_pair = has_tokens[0::2] & has_tokens[1::2]
    total, count = masked_sum(softplus(target - margins), is_pair), masked_count(is_pair)
    metrics = {
        "loss": (total.detach(), count),
        "accuracy": (masked_count((margins > 0) & is_pair), count),
        "margin": (masked_sum(margins.detach(), is_pair), count),
    }
    return Loss(total, count, metrics)
