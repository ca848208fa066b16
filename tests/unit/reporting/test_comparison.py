"""Several runs on one page: their curves, last numbers with intervals, and different settings."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from megatron_gad.reporting.comparison import build_comparison, different_settings, merge
from megatron_gad.reporting.run_record import read_run
from tests.unit.reporting.synthetic_run import write_metrics, write_run
from tests.unit.reporting.test_page import Page, pointers


def test_stages_are_laid_over_each_other_from_their_first_step(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / name, steps))
        for name, steps in (("a", (3, 2, 4)), ("b", (5, 1, 2)))
    ]
    merged = merge(runs)
    assert [(s.stage, s.first_step, s.last_step) for s in merged.spans] == [
        ("seqkd", 1, 5),
        ("warmup", 6, 7),
        ("adversarial", 8, 11),
    ]
    game = merged.spans[2].records
    a, b = (run.spans[2].records for run in runs)
    assert [r["reward/mean@0"] for r in game] == [r["reward/mean"] for r in a]
    assert [r.get("reward/mean@1") for r in game] == [*(r["reward/mean"] for r in b), None, None]


def numbers(cell: str) -> list[float]:
    """Return the numbers of "mean (low to high)"."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-\d+)?", cell)]


def test_last_numbers_have_the_intervals_of_their_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    values = [noise.normal(mean, 0.1, 50) for mean in (1.0, 1.0, 2.0)]
    folders = [
        write_metrics(tmp_path / name, "adversarial", [{"student/kl": x} for x in each.tolist()])
        for name, each in zip("abc", values, strict=True)
    ]
    text = build_comparison(folders).read_text()
    cells = re.findall(r"<td( class=.differs.)?>([^<]*)</td>", text)
    # Means of 4 neighbours of the last 20, Student's t of each and Welch's of the differences.
    blocks = [each[-20:].reshape(5, 4).mean(axis=1) for each in values]
    for (_, cell), block in zip(cells, blocks, strict=False):
        interval = stats.t.interval(0.95, 4, block.mean(), stats.sem(block))
        assert numbers(cell) == pytest.approx([block.mean(), *interval], rel=2e-3)
    for (mark, cell), block in zip(cells[3:], blocks[1:], strict=True):
        welch = stats.ttest_ind(block, blocks[0], equal_var=False).confidence_interval(0.95)
        difference = block.mean() - blocks[0].mean()
        assert numbers(cell) == pytest.approx([difference, *welch], rel=1e-2)
        assert bool(mark) == (welch.low > 0 or welch.high < 0)
    assert [bool(mark) for mark, _ in cells] == [False] * 4 + [True]


def test_no_interval_of_a_share_leaves_0_to_100_per_cent(tmp_path: Path) -> None:
    shares = [0.0] * 16 + [0.0, 0.2, 0.0, 0.0]
    rows = [{"response/truncated_share": share} for share in shares]
    folders = [write_metrics(tmp_path / name, "warmup", rows) for name in "ab"]
    (cell, *_) = re.findall(r"<td>([^<]*)</td>", build_comparison(folders).read_text())
    mean, low, high = numbers(cell)
    assert mean == 1.0
    # Means of 4 neighbours: 0, 0, 0, 0, .05. On the log odds, t(4) = 2.776 standard errors of .01.
    half = 2.776 * 0.01 / (0.01 * 0.99)
    odds = [0.01 / 0.99 * math.exp(sign * half) for sign in (-1, 1)]
    assert [low, high] == pytest.approx([100 * each / (1 + each) for each in odds], abs=0.06)


def test_settings_that_differ_are_listed(tmp_path: Path) -> None:
    for name, text in (("a", "[gad]\nkl_coef = 0.1\n"), ("b", "[gad]\nx = 2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(f"seed = 1\n{text}")
    runs = [read_run(tmp_path / name) for name in "ab"]
    assert different_settings(runs) == [("gad.kl_coef", ("0.1", "")), ("gad.x", ("", "2"))]


def test_the_page_has_a_curve_for_every_run(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / n / "run", (3, 2, 4), seed) for seed, n in enumerate("ab")]
    text = build_comparison(folders, tmp_path / "out.html").read_text()
    lines = pointers(text)["KL to the reference"]["lines"]
    assert [line["label"] for line in lines] == ["a/run", "b/run"]  # as their names are the same
    assert [point[1] for point in lines[1]["points"]] == [6, 7, 8, 9]
    assert "The runs have the same configuration." in Page(text).words


def test_the_command_compares_and_says_what_it_cannot(tmp_path: Path) -> None:
    folders = [str(write_metrics(tmp_path / n, "seqkd", [{"student/loss": 1.0}])) for n in "ab"]

    def report(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "megatron_gad", "report", *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout.strip() or ended.stderr

    assert report(*folders) == (0, f"{tmp_path}/a/comparison.html")
    for words, problem in (
        ([*folders, "--watch"], "--watch follows one run"),
        ([folders[0], "--out", "x"], "--out is of a comparison"),
        ([folders[0], folders[0]], "named twice"),
    ):
        status, said = report(*words)
        assert status == 2
        assert problem in said
