"""What is wrong with a list of rewards, in the whole message."""

import pytest

from megatron_gad.checks.rewards import check_rewards
from megatron_gad.config.rewards import RewardConfig

GOOD = RewardConfig("length", "megatron_gad.engines.rewards.shipped:length")
SCORE = RewardConfig("discriminator", weight=0.0)


def test_functions_servers_and_the_score_are_taken() -> None:
    served = RewardConfig("served", "https://host/rewards")
    assert [*check_rewards((GOOD, served, SCORE))] == []
    assert [*check_rewards(())] == []


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (
            (RewardConfig("", GOOD.function),),
            "rewards (number 1).name = '' is not allowed; give lower-case letters, digits and "
            "underscores that begin with a letter, and none of mean, std, length_slope",
        ),
        (
            (RewardConfig("mean", GOOD.function),),
            "rewards.mean.name = 'mean' is not allowed; give lower-case letters, digits and "
            "underscores that begin with a letter, and none of mean, std, length_slope",
        ),
        ((GOOD, GOOD), "rewards.length comes twice; give every reward a name of its own"),
        (
            (RewardConfig("a", "shipped.length"),),
            "rewards.a.function = 'shipped.length' is not allowed; give 'module:function', such as "
            "'megatron_gad.engines.rewards.shipped:length', or the URL of a server",
        ),
        (
            (RewardConfig("a", "no.such:thing"),),
            "rewards.a.function = 'no.such:thing': there is no module 'no.such'; it has to be "
            "installed, or lie in the folder that the command runs in",
        ),
        (
            (RewardConfig("discriminator", GOOD.function),),
            f"rewards.discriminator.function = {GOOD.function!r}: this is the discriminator's own "
            "score; leave it out, or give the reward another name",
        ),
        (
            (RewardConfig("a", GOOD.function, timeout_s=0.0),),
            "rewards.a.timeout_s = 0.0 is not allowed; give a value above 0",
        ),
        (
            (SCORE,),
            "all rewards have the weight 0, so that nothing is learned; give one of them another",
        ),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(
    rewards: tuple[RewardConfig, ...], message: str
) -> None:
    assert [*check_rewards(rewards)] == [message]
