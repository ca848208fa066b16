"""The end of the quickstart: what any task can measure, on two arms and the teacher's own rows."""

import json
from pathlib import Path

from examples.quickstart.data import write_answered
from examples.quickstart.measure import BASELINE, compare_arms
from examples.quickstart.robot_turns import split_prompts
from examples.quickstart.student import make_student


def test_the_arms_are_compared_on_held_out_rows(tmp_path: Path) -> None:
    rows = tmp_path / "test.jsonl"
    write_answered(rows, "test", split_prompts(0).test[:24], seed=0)
    arms = {
        name: make_student(tmp_path / name, seed) for seed, name in enumerate(("gad", BASELINE))
    }
    compare_arms(arms, rows, tmp_path / "verdict", seed=0)
    results = json.loads((tmp_path / "verdict/evaluation.json").read_text())
    assert [*results["students"]] == [BASELINE, "gad", "(teacher)"]
    assert {each["baseline"] for each in results["differences"]} == {BASELINE}
    for arm in arms:
        means = results["students"][arm]["means"]
        assert means["auc_text"]["count"] == 12
        # Random weights find each of 22 tokens about equally likely.
        assert 2.5 < means["nats_per_token"]["mean"] < 4.0
        assert means["self_bleu"]["count"] == 24
    assert results["students"]["(teacher)"]["means"]["words"]["mean"] > 10
