"""What the user may choose about the three stages and the algorithm. Defaults are the paper's."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SeqkdConfig:
    """Stage ``seqkd``: cross-entropy on the teacher's responses, the baseline of the method.

    Attributes:
        epochs: length in passes over the data.
        steps: length in optimizer steps; wins over epochs.
        batch_size: responses per optimizer step, over all data ranks.
        lr: learning rate of this stage.
        patience: end the stage after this many epochs without a better held-out loss; 0: never.
        keep_best: hand over the weights with the best held-out loss instead of the last ones.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 256
    lr: float = 5e-6
    patience: int = 0
    keep_best: bool = False


@dataclass(frozen=True)
class WarmupConfig:
    """Stage ``warmup``: cross-entropy for the student, pairs for the discriminator.

    Attributes:
        epochs: length in passes over the data.
        steps: length in optimizer steps; wins over epochs.
        prompts_per_step: prompts of a step over all data ranks.
        group_size: samples of each prompt.
        train_student: False leaves the student as it is and only teaches the discriminator.
        discriminator_only_steps: the student starts to learn after this many steps.
        student_lr: learning rate of this stage; None takes student.lr.
        discriminator_lr: learning rate of this stage; None takes discriminator.lr.
        stop_below: end the stage when the running discriminator loss is below this; 0: by count.
        refuse_above: stop the run when the stage ends with a running loss above this; 0: never.
        reset_optimizer: forget the optimizer states of the stage before.
    """

    epochs: float = 1.0
    steps: int | None = None
    prompts_per_step: int = 256
    group_size: int = 8
    train_student: bool = True
    discriminator_only_steps: int = 10
    student_lr: float | None = None
    discriminator_lr: float | None = None
    stop_below: float = 0.0
    refuse_above: float = 0.0
    reset_optimizer: bool = False


@dataclass(frozen=True)
class AdversarialConfig:
    """Stage ``adversarial``: reinforcement learning on the scores of a discriminator that learns.

    Attributes:
        epochs: length in passes over the data.
        steps: length in optimizer steps; wins over epochs.
        prompts_per_step: prompts of a step over all data ranks.
        group_size: samples of each prompt.
        discriminator_samples: samples of a group that train the discriminator; 0: all of them.
            All are scored.
        discriminator_interval: the discriminator learns every this many steps; it scores in each.
        freeze_discriminator: it scores and never learns.
        discriminator_only_steps: the student starts to learn after this many steps.
        extra_discriminator_steps: further discriminator steps, on fresh samples.
        extra_prompts: prompts of each such step, other ones, with one sample each.
        overlap: sample for the next step, with the weights of this one, while this one trains.
        student_updates: optimizer steps of the student on one rollout batch.
        student_lr: learning rate of this stage; None takes student.lr.
        discriminator_lr: learning rate of this stage; None takes discriminator.lr.
        reset_optimizer: forget the optimizer states of the stage before.
    """

    epochs: float = 2.0
    steps: int | None = None
    prompts_per_step: int = 256
    group_size: int = 8
    discriminator_samples: int = 0
    discriminator_interval: int = 1
    freeze_discriminator: bool = False
    discriminator_only_steps: int = 0
    extra_discriminator_steps: int = 0
    extra_prompts: int = 64
    overlap: bool = False
    student_updates: int = 1
    student_lr: float | None = None
    discriminator_lr: float | None = None
    reset_optimizer: bool = False


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
