"""Checks of the rewards beside the discriminator's score."""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from megatron_gad.checks.values import NOT_NEGATIVE, POSITIVE, violations
from megatron_gad.config.rewards import DISCRIMINATOR, RewardConfig

# Names of metrics that are about all rewards.
TAKEN = ("mean", "std", "length_slope")


def check_rewards(configs: Sequence[RewardConfig]) -> Iterator[str]:
    """Yield what is wrong with the list of rewards."""
    names = [config.name for config in configs]
    for number, config in enumerate(configs, start=1):
        where = f"rewards.{config.name}" if config.name else f"rewards (number {number})"
        yield from _check_name(config, where, names[: number - 1])
        yield from violations(where, config, {"clip": NOT_NEGATIVE, "timeout_s": POSITIVE})
        yield from _check_function(config, where)
    weights = {config.name: config.weight for config in configs}
    if configs and not any({DISCRIMINATOR: 1.0, **weights}.values()):
        yield "all rewards have the weight 0, so that nothing is learned; give one of them another"


def _check_name(config: RewardConfig, where: str, before: Sequence[str]) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", config.name) or config.name in TAKEN:
        yield (
            f"{where}.name = {config.name!r} is not allowed; give lower-case letters, digits and "
            f"underscores that begin with a letter, and none of {', '.join(TAKEN)}"
        )
    if config.name in before:
        yield f"{where} comes twice; give every reward a name of its own"


def _check_function(config: RewardConfig, where: str) -> Iterator[str]:
    if config.name == DISCRIMINATOR:
        if config.function:
            yield (
                f"{where}.function = {config.function!r}: this is the discriminator's own score; "
                "leave it out, or give the reward another name"
            )
        return
    module, colon, attribute = config.function.partition(":")
    if config.is_url:
        return
    if not (module and colon and attribute.isidentifier()):
        yield (
            f"{where}.function = {config.function!r} is not allowed; give 'module:function', such "
            "as 'megatron_gad.engines.rewards.shipped:length', or the URL of a server"
        )
    elif not _can_be_found(module):
        yield (
            f"{where}.function = {config.function!r}: there is no module {module!r}; it has to be "
            "installed, or lie in the folder that the command runs in"
        )


def _can_be_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
