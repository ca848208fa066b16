"""Options of the objective that contradict each other, each in its whole message."""

import pytest

from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from tests.tiny_run import changed, make_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


# What to change in a good configuration, and the whole message that has to follow.
CHANGES: list[tuple[dict[str, dict[str, object]], str]] = [
    (
        {"adversarial": {"resample_rounds": 2, "overlap": True}, "gad": {"tis_cap": 2.0}},
        "adversarial.resample_rounds = 2 samples with the student as it is, but with "
        "adversarial.overlap = True the engine is at work for the next step; leave one of them out",
    ),
    (
        {"gad": {"dual_clip": 0.9}},
        "gad.dual_clip = 0.9 would cut off ratios of 1, of which every batch begins; give a value "
        "above 1 (3 is usual), or 0 for no such bound",
    ),
    (
        {"gad": {"dual_clip": 3.0, "policy_loss": "cispo"}},
        "gad.dual_clip = 3.0 bounds an objective that is clipped, but gad.policy_loss = 'cispo' "
        "clips weights, from above already; leave one of them out",
    ),
    (
        {"gad": {"negatives_pool": 8, "negatives_share": 1.0}},
        "gad.negatives_share = 1.0 is not allowed; give a value between 0 and 1 (0.5 is a "
        "beginning), or gad.negatives_pool = 0 for no past groups",
    ),
    (
        {"adversarial": {"student_minibatches": 3}},
        "adversarial.prompts_per_step = 8 has to be a multiple of 3: of the 3 minibatches each is "
        "shared out evenly; the next that is one is 9",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_each_violation_says_key_value_what_is_allowed_and_the_remedy(
    good: RunConfig, change: dict[str, dict[str, object]], message: str
) -> None:
    assert check_config(changed(good, change), world_size=1) == [message]
