"""The same run at every layout: losses, rewards, gradient norms and rollouts agree."""

import math
from pathlib import Path

import pytest

from tests.e2e import tiny_run

TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
SHORT = ["--seqkd.steps", "2", "--adversarial.steps", "3"]
LAYOUTS = {
    "TP2+SP": (2, [*TP2, "--sequence-parallel"]),
    "PP2 x VPP2": (2, [*PP2, "--virtual-pipeline-model-parallel-size", "2"]),
    "CP2": (2, ["--context-parallel-size", "2"]),
    # Also by tokens in place of rows, which has to be as good.
    "DP2, distributed optimizer": (
        2,
        ["--use-distributed-optimizer", "--max-tokens-per-microbatch", "160"],
    ),
    # One rank packs its rows; padded ones, as context parallelism has them, are as good.
    "TP2PP2, padded": (4, [*TP2, *PP2, "--no-pack-sequences"]),
}
# They compute a prompt for each of its responses; one rank computes it once.
READS_WHOLE_ROWS = ("CP2", "TP2PP2, padded")
TOKENS = "tokens/trained"
COMPARED = (
    "student/loss",
    "student/grad_norm",
    "student/kl",
    "student/entropy",
    "discriminator/loss",
    "discriminator/grad_norm",
    "discriminator/margin",
    "reward/mean",
    "reward/std",
    "response/length_mean",
    TOKENS,
)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Metrics of the run on one rank."""
    return tiny_run.run_script(tmp_path_factory.mktemp("one") / "run", *SHORT)


def test_the_losses_are_large_enough_to_compare(one_rank: list[dict]) -> None:
    """That of the adversarial stage is near 0 where all responses are of one length."""
    losses = [record["student/loss"] for record in one_rank if "student/loss" in record]
    assert len(losses) == 2 + 2 + 3
    assert min(map(abs, losses)) > 1e-2


def is_same_number(key: str, alone: dict, ours: dict) -> bool:
    """Whether two steps agree to 1e-4 of the number, or of the spread that it is the mean of.

    Scores have any sign, so that rounding of each may be much of a mean near 0.
    """
    spread = alone["reward/std"] if key == "reward/mean" else 0.0
    bound = max(1e-6, 1e-4 * spread)
    return math.isclose(alone[key], ours[key], rel_tol=1e-4, abs_tol=bound)


def assert_same_numbers(
    records: list[dict], one_rank: list[dict], compared: tuple[str, ...] = COMPARED
) -> None:
    """Compare the steps of a run with those of one rank."""
    differences = [
        f"step {ours['step']} {key}: {alone[key]} on one rank, {ours[key]} here"
        for alone, ours in zip(one_rank, records, strict=True)
        for key in compared
        if key in alone and not is_same_number(key, alone, ours)
    ]
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_numbers_of_one_rank(
    name: str, one_rank: list[dict], tmp_path: Path
) -> None:
    num_ranks, flags = LAYOUTS[name]
    records = tiny_run.run(tmp_path / "run", *SHORT, *flags, num_ranks=num_ranks)
    assert [r["stage"] for r in records] == ["seqkd"] * 2 + ["warmup"] * 3 + ["adversarial"] * 3
    if name in READS_WHOLE_ROWS:
        pairs = zip(one_rank, records, strict=True)
        assert all(alone[TOKENS] <= ours[TOKENS] for alone, ours in pairs)
        assert_same_numbers(records, one_rank, tuple(key for key in COMPARED if key != TOKENS))
    else:
        assert_same_numbers(records, one_rank)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a student at TP2 and a discriminator at TP1 DP2, with a checkpoint of each step."""
    save = tmp_path_factory.mktemp("mixed") / "run"
    flags = [*SHORT, *TP2, "--discriminator.tensor-model-parallel-size", "1"]
    tiny_run.run(save, *flags, "--save-interval", "4", "--keep-last", "0", num_ranks=2)
    return save


def test_a_discriminator_in_a_layout_of_its_own_gives_the_numbers_of_one_rank(
    mixed: Path, one_rank: list[dict]
) -> None:
    assert_same_numbers(tiny_run.metrics(mixed), one_rank)


def test_a_run_goes_on_where_both_layouts_change(
    mixed: Path, one_rank: list[dict], tmp_path: Path
) -> None:
    """From the middle of the warm-up, at DP2 with a discriminator at TP2."""
    save = tmp_path / "run"
    tiny_run.restore(mixed, save, iteration=4)
    flags = [*SHORT, "--discriminator.tensor-model-parallel-size", "2"]
    assert_same_numbers(tiny_run.run(save, *flags, num_ranks=2), one_rank)


def test_engine_and_trainer_agree_after_every_swap(one_rank: list[dict]) -> None:
    gaps = [r["engine/logprob_gap_max"] for r in one_rank if "engine/logprob_gap_max" in r]
    assert len(gaps) == 3 - 1 + 3  # the student stands still in the first warm-up step
    assert max(gaps) < 2e-5
