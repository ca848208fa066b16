"""Sampling ahead gives the same numbers on any ranks, also over a restart on other ones."""

import math
import shutil
from pathlib import Path

from tests.e2e import tiny_run

FLAGS = ("--stages", "adversarial", "--adversarial.steps", "4", "--adversarial.overlap")
FLAGS += ("--gad.tis-cap", "2", "--data.eval-path", "")
KEYS = (
    *("student/loss", "student/grad_norm", "discriminator/loss", "discriminator/grad_norm"),
    *("reward/mean", "response/length_mean", "engine/weights_lag", "consumed_samples"),
)


def differences(left: list[dict], right: list[dict]) -> list[str]:
    """Return where two runs differ by more than rounding."""
    return [
        f"step {a['step']} {key}: {a[key]} and {b[key]}"
        for a, b in zip(left, right, strict=True)
        for key in KEYS
        if not math.isclose(a[key], b[key], rel_tol=1e-4, abs_tol=1e-6)
    ]


def test_two_ranks_and_a_restart_on_another_layout_give_the_numbers_of_one_rank(
    tmp_path: Path,
) -> None:
    alone = tiny_run.run(tmp_path / "alone", *FLAGS)
    assert [record["consumed_samples"] for record in alone] == [4, 8, 12, 16]
    two, again = tmp_path / "two", tmp_path / "again"
    interval = ("--save-interval", "2", "--keep-last", "0")
    assert differences(tiny_run.run(two, *FLAGS, *interval, num_ranks=2), alone) == []

    again.mkdir()
    for name in ("assets", "iter_0000002"):
        shutil.copytree(two / name, again / name)
    shutil.copy(two / "metrics.jsonl", again)
    (again / "latest_checkpointed_iteration.txt").write_text("2")
    tp2 = ("--tensor-model-parallel-size", "2")
    assert differences(tiny_run.run(again, *FLAGS, *tp2, num_ranks=2), alone) == []
