"""The quickstart over several seeds: what is run again, and what its summary says."""

import json
import subprocess
from pathlib import Path
from typing import Any

from examples.quickstart.measure import VERDICT
from examples.quickstart.seeds import MEASURES, SUMMARY_FILE, run_seeds
from megatron_gad.evaluation.table import RESULTS_FILE

ARMS = {"seqkd_equal_compute": "SeqKD, equal compute", "gad": "GAD"}


def an_arm(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "greedy_accuracy": 1.0,
        "layout_shares": {"because": 0.5, "steps": 0.5, "list": 0.0, "none": 0.0},
        "accuracy_by_layout": {"because": 0.25, "steps": 1.0, "list": None},
    }


def a_verdict(seed: int) -> dict[str, Any]:
    """What an evaluation says: nats of 0.10 to 0.14, and an AUC of 0.5 on every seed but 11."""
    numbers = {"auc_text": 0.8 if seed == 11 else 0.5, "nats_per_token": 0.1 + 0.02 * (seed - 10)}
    means = {name: {"mean": numbers.get(name, 1.0)} for name in MEASURES}
    student = {"means": means, "numbers": {}, "flags": []}
    return {"against": "teacher", "students": dict.fromkeys([*ARMS, "(teacher)"], student)}


class Runs:
    """Takes the place of minutes of training: writes results, and fails on one seed."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.fails_on = 12

    def __call__(self, folder: Path, seed: int) -> dict[str, Any]:
        self.seeds.append(seed)
        folder.mkdir(parents=True, exist_ok=True)
        if seed == self.fails_on:
            raise subprocess.CalledProcessError(3, "megatron_gad")
        results = {
            "seqkd_equal_compute": an_arm(0.62),
            "gad": an_arm({10: 0.6, 11: 0.98}.get(seed, 0.94)),
            "seconds": {"total": 400.0},
        }
        (folder / "results.json").write_text(json.dumps(results))
        (folder / VERDICT).mkdir(exist_ok=True)
        (folder / VERDICT / RESULTS_FILE).write_text(json.dumps(a_verdict(seed)))
        return results


def test_a_second_call_runs_only_the_seeds_without_results(tmp_path) -> None:
    runs = Runs()
    run_seeds(tmp_path, [10, 11, 12], runs, "score = 1", ARMS)
    assert runs.seeds == [10, 11, 12]
    runs.fails_on = -1
    again = run_seeds(tmp_path, [10, 11, 12], runs, "score = 1", ARMS)
    assert runs.seeds == [10, 11, 12, 12]
    assert (tmp_path / SUMMARY_FILE).read_text() == again
    assert "| 12 | 62.0 / 100.0 | 94.0 / 100.0 | 400 |" in again


def test_other_settings_run_every_seed_again(tmp_path) -> None:
    runs = Runs()
    run_seeds(tmp_path, [10, 11], runs, "score = 1", ARMS)
    run_seeds(tmp_path, [10, 11], runs, "score = 2", ARMS)
    assert runs.seeds == [10, 11, 10, 11]


def test_the_summary_names_a_seed_that_failed_and_counts_it_as_no_win(tmp_path) -> None:
    summary = run_seeds(tmp_path, [10, 11, 12, 13], Runs(), "", ARMS)
    assert "GAD is above SeqKD at equal compute on 2 of 4 seeds." in summary
    assert "Training failed on seed 12:" in summary
    assert "| 12 |" not in summary


def test_the_summary_has_means_with_bounded_intervals_and_accuracy_by_layout(tmp_path) -> None:
    summary = run_seeds(tmp_path, [10, 11, 13], Runs(), "", ARMS)
    # Mean 0.84, s 0.2088: Student's t alone would end at 1.36. logit 0.84 = 1.6582, half width
    # 4.303 * 0.2088 / (1.7321 * 0.84 * 0.16) = 3.8596: from 0.0996 to 0.9960.
    mean = next(line for line in summary.splitlines() if line.startswith("| mean"))
    equal = "62.0 (62.0 to 62.0) / 100.0 (100.0 to 100.0)"
    assert mean == f"| mean (95 %) | {equal} | 84.0 (10.0 to 99.6) / 100.0 (100.0 to 100.0) | |"
    assert "| 10 | GAD | 50, 25 | 50, 100 | 0, - |" in summary


def test_the_verdict_without_a_checker_has_means_over_the_seeds(tmp_path) -> None:
    runs = Runs()
    runs.fails_on = -1
    lines = run_seeds(tmp_path, [10, 11, 12], runs, "", ARMS).splitlines()
    # Of 0.10, 0.12, 0.14: 0.12, and 4.303 * 0.02 / 1.7321 = 0.0497 to either side.
    nats = "0.120 (0.070 to 0.170)"
    assert f"| nats per token of the teacher's text | {nats} | {nats} |" in lines
    # Of 0.5, 0.8, 0.5: mean 0.6, logit 0.4055, s 0.1732, half width 4.303 * 0.1732 /
    # (1.7321 * 0.6 * 0.4) = 1.7929: from 0.1998 to 0.9000.
    (auc,) = [line for line in lines if line.startswith("| AUC against the teacher")]
    assert auc.endswith("| 0.600 (0.200 to 0.900) | 0.600 (0.200 to 0.900) |")
    assert "The verdict without a checker: means over 3 seeds with 95 % intervals." in lines
    assert "verdict without" not in run_seeds(tmp_path, [10], runs, "", ARMS)
