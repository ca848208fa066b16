"""What a run does about its own health."""

from dataclasses import dataclass
from typing import Literal

HealthRule = Literal[
    "non_finite",
    "weak_discriminator",
    "strong_discriminator",
    "discriminator_margin",
    "warmup_loss",
    "discriminator_loss_growth",
    "zero_advantages",
    "kl",
    "entropy",
    "length_ratio",
    "truncated",
    "retokenized",
    "engine_gap",
    "grad_norm_growth",
    "frozen_discriminator",
    "held_out_accuracy",
    "form_probe",
    "repetition",
]


@dataclass(frozen=True)
class HealthConfig:
    """The rules of the page, applied while the run goes on. A rule that says "act" warns.

    Attributes:
        ignore: rules that neither warn nor act.
        pause_discriminator: rules that keep the discriminator from learning while they say "act".
        skip_student: rules that keep the student from learning meanwhile.
        stop: rules that stop the run (exit status 3); the newest checkpoint stays.
    """

    ignore: tuple[HealthRule, ...] = ()
    pause_discriminator: tuple[HealthRule, ...] = ()
    skip_student: tuple[HealthRule, ...] = ()
    stop: tuple[HealthRule, ...] = ()
