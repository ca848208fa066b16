"""A run folder is read back as far as it goes, and anything else is refused."""

import json

import pytest

from megatron_gad.reporting.run_record import read_run
from tests.unit.reporting.synthetic_run import write_metrics, write_run


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither metrics\.jsonl nor config\.toml.*--save"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"is no folder"):
        read_run(tmp_path / "missing")


def test_stages_are_spans_of_consecutive_steps(tmp_path):
    run = read_run(write_run(tmp_path / "run", steps=(6, 4, 5)))
    assert [(s.stage, s.first_step, s.last_step) for s in run.spans] == [
        ("seqkd", 1, 6),
        ("warmup", 7, 10),
        ("adversarial", 11, 15),
    ]
    assert [run.stage_of(step) for step in (6, 7, 15, 16)] == ["seqkd", "warmup", "adversarial", ""]
    assert run.name == "run"
    assert run.config["adversarial"]["group_size"] == 8


def test_the_time_of_a_stage_is_the_sum_of_its_steps(tmp_path):
    run = read_run(write_metrics(tmp_path, "seqkd", [{"time/step_s": 2.5}, {"time/step_s": 4.0}]))
    assert run.spans[0].seconds == 6.5


def test_time_outside_the_phases_is_named(tmp_path):
    row = {"time/step_s": 10.0, "time/rollout_s": 4.0, "time/swap_s": 0.5, "time/student_s": 2.0}
    run = read_run(write_metrics(tmp_path, "adversarial", [row, {"time/rollout_s": 1.0}]))
    assert run.records[0]["time/other_s"] == 3.5
    assert "time/other_s" not in run.records[1]


def test_a_repeated_step_counts_as_last_written(tmp_path):
    lines = [
        {"step": step, "stage": "adversarial", "reward/mean": reward}
        for step, reward in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0)]
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    run = read_run(tmp_path)
    assert [record["reward/mean"] for record in run.records] == [1.0, 20.0, 3.0]


def test_what_cannot_be_read_is_noted_and_the_rest_is_kept(tmp_path):
    write_metrics(tmp_path, "seqkd", [{"student/loss": 2.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "stage"')
    (tmp_path / "config.toml").write_text("stages = [")
    (tmp_path / "results.json").write_text("{")
    run = read_run(tmp_path)
    assert [record["student/loss"] for record in run.records] == [2.0]
    assert [note.split(" is not")[0] for note in run.notes] == [
        "1 unreadable line(s) of metrics.jsonl were skipped.",
        "config.toml",
        "results.json",
    ]


def test_a_run_before_its_first_step_is_a_run(tmp_path):
    (tmp_path / "config.toml").write_text("seed = 3\n")
    run = read_run(tmp_path)
    assert (run.spans, run.records, run.sample_files) == ((), (), {})
    assert run.config == {"seed": 3}
