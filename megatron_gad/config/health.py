"""What a run does about its own health."""

from dataclasses import dataclass
from typing import Literal

HealthRule = Literal[
    "non_finite",
    "discriminator_accuracy",
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
        ignore: rules that do not warn.
        stop: rules that stop the run (exit status 3); the newest checkpoint stays.
    """

    ignore: tuple[HealthRule, ...] = ()
    stop: tuple[HealthRule, ...] = ()
