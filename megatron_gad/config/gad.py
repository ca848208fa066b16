"""What may be set of the algorithm. Defaults are the paper's."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GadConfig:
    """The algorithm.

    Attributes:
        discriminator_loss: Bradley-Terry on pairs, or binary cross-entropy on single responses.
        advantage: grpo (centred, divided by the group's std), dr_grpo (centred), rloo (leave one
            out).
        kl_coef: weight of the KL to the reference, the student as it was when the stage began; 0
            saves the reference's forward pass.
        kl_estimator: k1, k2 or k3 (http://joschu.net/blog/kl-approx.html).
        kl_in: place of the KL: in the loss, or subtracted from the reward.
        policy_loss: clip the ratio of every token (grpo), or of every response (gspo), or only the
            weight of a token's gradient, from above (cispo).
        clip_range: clip of the probability ratio; without effect at one update per batch.
        clip_range_high: reach of the clip above 1, 0.28 in DAPO; default: clip_range.
        dual_clip: bound of the ratio if the advantage is negative (3 is usual); 0: none.
        aggregation: mean over all tokens (token_mean); or mean over responses of their token means
            (sequence_mean), or of their token sums divided by data.max_response_tokens (constant).
        mask_truncated: responses that hit the length cap teach the student nothing; their rewards
            still count in their groups.
        length_correction: subtract from the scores of a group what their lengths explain: a slope
            over log length that is fitted to all groups of the step.
        tis_cap: truncated importance sampling against engine mismatch: cap of the ratio; 0: off.
        negatives_pool: past groups of the stage that the discriminator may learn from again; 0:
            none.
        negatives_share: share of the discriminator's pairs in a step that comes from past groups.
        negatives_draw: whether all past groups are drawn alike, or recent ones more often.
        reset_optimizer: begin each stage without the optimizer states of the one before.
    """

    discriminator_loss: Literal["bradley_terry", "cross_entropy"] = "bradley_terry"
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    kl_coef: float = 0.001
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    policy_loss: Literal["grpo", "gspo", "cispo"] = "grpo"
    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float = 0.0
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    mask_truncated: bool = False
    length_correction: bool = False
    tis_cap: float = 0.0
    negatives_pool: int = 0
    negatives_share: float = 0.5
    negatives_draw: Literal["uniform", "recent"] = "uniform"
    reset_optimizer: bool = False
