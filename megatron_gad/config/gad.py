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
        kl_coef: weight of the KL to the reference; at 0 no reference forward is paid.
        kl_estimator: k1, k2 or k3 (http://joschu.net/blog/kl-approx.html).
        kl_in: in the loss, or subtracted from the reward.
        reference: the student as it was when the stage began, or the base model of [student] path.
        clip_range: clip of the probability ratio; without effect at one update per batch.
        aggregation: mean over all tokens, or over responses of their token means.
        tis_cap: truncated importance sampling against engine mismatch: cap of the ratio; 0: off.
        reset_optimizer: begin each stage without the optimizer states of the one before.
    """

    discriminator_loss: Literal["bradley_terry", "cross_entropy"] = "bradley_terry"
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    kl_coef: float = 0.001
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    reference: Literal["stage_start", "base"] = "stage_start"
    clip_range: float = 0.2
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    tis_cap: float = 0.0
    reset_optimizer: bool = False
