"""Adversarial runs that sample on a real SGLang server on the CPU: ``make test-sglang``."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny_run
from tests.engines.sglang.runs import BOUND, FLAGS, servers_of
from tests.engines.sglang.servers import MARKS

pytestmark = MARKS
LAYOUTS = {"TP1": 1, "TP2": 2}
# At TP1 everybody leaves the device while others work, the server, too.
LEAVES = {"TP1": ("student", "discriminator", "engine"), "TP2": ()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs on real servers, by layout, which recorded their rollouts."""
    folder = tmp_path_factory.mktemp("recorded")
    for layout, num_ranks in LAYOUTS.items():
        flags = (*FLAGS, "--tensor-model-parallel-size", str(num_ranks))
        if LEAVES[layout]:
            flags += ("--schedule.leaves", *LEAVES[layout])
        tiny_run.run(folder / layout, *flags, num_ranks=num_ranks)
    return folder


def replay(recorded_run: Path, save: Path) -> list[dict[str, Any]]:
    """Run on recorded rollouts on one rank, without SGLang, and return the metrics."""
    flags = ("--rollout.engine", "replay", "--rollout.replay", str(recorded_run))
    return tiny_run.run(save, *FLAGS, *flags)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_every_swap_engine_and_trainer_agree(recorded: Path, layout: str) -> None:
    save = recorded / layout
    records = tiny_run.metrics(save)
    assert [record["stage"] for record in records] == ["adversarial"] * 5
    gaps = [record["engine/logprob_gap_max"] for record in records]
    assert len(gaps) == 5
    assert max(gaps) < BOUND
    assert all(record["swap/bytes"] > 0 for record in records)
    assert servers_of(save) == []


def test_those_that_leave_are_moved_in_every_step(recorded: Path) -> None:
    moved = {
        layout: [record["moves/bytes"] for record in tiny_run.metrics(recorded / layout)]
        for layout in LAYOUTS
    }
    # At TP2 it is the reference's weights alone.
    assert min(moved["TP1"]) > 2 * max(moved["TP2"])


def test_recorded_rollouts_give_the_same_numbers_without_the_engine(
    recorded: Path, tmp_path: Path
) -> None:
    again = replay(recorded / "TP1", tmp_path / "run")
    there = tiny_run.metrics(recorded / "TP1")
    assert [tiny_run.compared(r) for r in again] == [tiny_run.compared(r) for r in there]


def test_recorded_rollouts_give_the_same_losses_on_another_layout(
    recorded: Path, tmp_path: Path
) -> None:
    again = replay(recorded / "TP2", tmp_path / "run")
    there = tiny_run.metrics(recorded / "TP2")
    keys = ("student/loss", "student/grad_norm", "discriminator/loss", "discriminator/grad_norm")
    differences = [
        f"step {ours['step']} {key}: {sampled[key]} at TP2, {ours[key]} replayed at TP1"
        for sampled, ours in zip(there, again, strict=True)
        for key in keys
        if not math.isclose(sampled[key], ours[key], rel_tol=1e-4, abs_tol=1e-6)
    ]
    assert not differences, "\n".join(differences)


STAGES = ("preference", "white_box", "warmup", "best_of_n")


def test_stages_without_a_game_sample_as_the_trainer_computes(tmp_path: Path) -> None:
    """The snapshot that answers in ``preference`` among them; replayed, they give the same."""
    flags = [*FLAGS, "--stages", *STAGES, "--white-box.teacher", str(tiny_run.assets() / "student")]
    for stage in ("preference", "white-box", "best-of-n"):
        flags += [f"--{stage}.steps", "3", f"--{stage}.prompts-per-step", "4"]
        flags += [f"--{stage}.student-lr", "0.001"]
    there = tiny_run.run(tmp_path / "there", *flags)
    assert [each["stage"] for each in there] == [name for name in STAGES for _ in range(3)]
    gaps = [each["engine/logprob_gap_max"] for each in there if "engine/logprob_gap_max" in each]
    assert len(gaps) >= 9
    assert max(gaps) < BOUND
    replay = ("--rollout.engine", "replay", "--rollout.replay", str(tmp_path / "there"))
    again = tiny_run.run(tmp_path / "again", *flags, *replay)
    assert [tiny_run.compared(r) for r in again] == [tiny_run.compared(r) for r in there]
