"""Rewards beside the discriminator's score."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_gad.config.rollout import ArgumentValue

# The entry of this name is about the discriminator's score.
DISCRIMINATOR = "discriminator"


@dataclass(frozen=True)
class RewardConfig:
    """One reward of every response, as one table [[rewards]].

    Attributes:
        name: name in the metric reward/<name>; "discriminator" is the discriminator's own score.
        function: "module:function", or the URL of a server; empty for the discriminator.
        arguments: further arguments of the function.
        weight: factor in the sum of all rewards.
        clip: bound of its absolute value before the weight; 0: none.
        normalization: none, or centred and divided by the std of the group, or of all responses of
            the step; before the clip.
        on_error: what happens if it fails for a response: stop the run, count 0, or drop the
            response's group from the student's step.
        timeout_s: seconds that it may take for the responses of a step.
    """

    name: str = ""
    function: str = ""
    arguments: dict[str, ArgumentValue] = field(default_factory=dict[str, ArgumentValue])
    weight: float = 1.0
    clip: float = 0.0
    normalization: Literal["none", "group", "batch"] = "none"
    on_error: Literal["stop", "zero", "drop"] = "stop"
    timeout_s: float = 60.0

    @property
    def is_url(self) -> bool:
        """Whether a server gives it."""
        return self.function.startswith(("http://", "https://"))


SCORE = RewardConfig(name=DISCRIMINATOR)


def with_score(configs: Sequence[RewardConfig]) -> list[RewardConfig]:
    """Return the rewards with the discriminator's score among them, as it is by default."""
    has_score = any(each.name == DISCRIMINATOR for each in configs)
    return [*configs] if has_score else [SCORE, *configs]


def score_weight(configs: Sequence[RewardConfig]) -> float:
    """Return the weight of the discriminator's score."""
    return next(each.weight for each in with_score(configs) if each.name == DISCRIMINATOR)
