"""The toy experiment ends where the theory says, with the loss functions of the product.

Reverse KL is in nats, as a mean over the last 300 steps. Over seeds 0 to 4 GAD ended at .308 to
.314 (case E) and .247 to .278 (case F); the tolerances leave that spread and some more.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.toy.figure import write_figure
from examples.toy.mixture import CASES, gaussian_logprobs, kl_divergence, teacher_logprobs
from examples.toy.play import Outcome, play_case

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def case_e() -> Outcome:
    return play_case(CASES["E"], seed=0)


def test_the_student_is_a_softmax_over_ten_classes():
    logprobs = gaussian_logprobs(torch.tensor(2.0), torch.tensor(0.6).log())
    weights = [math.exp(-((k - 2) ** 2) / (2 * 0.36)) for k in range(10)]
    expected = torch.tensor([weight / sum(weights) for weight in weights])
    torch.testing.assert_close(logprobs.exp(), expected)


def test_the_teacher_keeps_the_shares_of_its_modes():
    probabilities = teacher_logprobs(CASES["F"]).exp()
    # Sigma .5 around 3 and 7: the classes 0 to 4 belong to the first mode but for 1e-8.
    assert probabilities[:5].sum().item() == pytest.approx(0.8, abs=1e-3)
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_kl_divergence_by_hand():
    divergence = kl_divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
    assert divergence.item() == pytest.approx(0.5 * math.log(4 / 3))


def test_seqkd_spreads_over_both_modes(case_e):
    assert case_e.start_kl == pytest.approx(1.05, abs=0.03)
    assert case_e.seqkd_logprobs.exp().max().item() < 0.25


def test_gad_ends_on_one_mode_where_exact_descent_ends(case_e):
    gad = case_e.games["GAD"]
    assert gad.end_kl == pytest.approx(0.32, abs=0.06)
    assert abs(gad.end_kl - case_e.exact.end_kl) < 0.15
    assert gad.logprobs.argmax().item() == 2
    assert gad.logprobs[5:].exp().sum().item() < 0.01


def test_equal_learning_rates_oscillate(case_e):
    gad, equal = case_e.games["GAD"], case_e.games["equal rates"]
    assert equal.end_kl > gad.end_kl + 0.1
    assert equal.reverse_kl[500:].std() > 5 * gad.reverse_kl[500:].std()


def test_a_frozen_discriminator_collapses_the_student_onto_one_class(case_e):
    frozen = case_e.games["frozen D"].logprobs
    assert frozen.exp().max().item() > 0.99
    assert -(frozen.exp() * frozen).sum().item() < 0.05
    assert case_e.games["frozen D"].end_kl > case_e.games["GAD"].end_kl + 0.2


def test_the_figure_is_a_png(case_e, tmp_path):
    write_figure({"E": case_e}, tmp_path / "new" / "toy.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["toy.png"]
    assert (tmp_path / "new" / "toy.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_the_command_prints_case_f_and_writes_its_figure(tmp_path):
    command = [sys.executable, "-m", "examples.toy", "--case", "F", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    numbers = {
        name: (float(kl), float(peak))
        for name, kl, peak in re.findall(r"^  (.+?)\s{2,}(\S+)\s+(\S+)$", ran.stdout, re.MULTILINE)
    }
    assert numbers["SeqKD (start)"][0] == pytest.approx(2.01, abs=0.06)
    assert numbers["GAD"][0] == pytest.approx(0.28, abs=0.06)
    assert abs(numbers["GAD"][0] - numbers["exact descent"][0]) < 0.15
    assert numbers["equal rates"][0] > numbers["GAD"][0] + 0.1
    assert numbers["frozen D"][1] > 0.99
    assert (tmp_path / "toy.png").stat().st_size > 10_000
