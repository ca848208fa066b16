"""What a run writes down can be read back, survives a restart, and never stops the run."""

import json
import logging
import math
import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_gad.config.output import LogConfig
from megatron_gad.files import read_records
from megatron_gad.runtime.metrics import (
    MetricsWriter,
    advance,
    progress,
    samples_step,
)

QUIET = LogConfig(tensorboard=False)


def read_lines(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_steps(run: Path, first: int, last: int, scale: float, config: LogConfig = QUIET) -> None:
    writer = MetricsWriter(run, config, is_writer=True)
    writer.truncate_after(first - 1)
    for step in range(first, last + 1):
        writer.write(step, "adversarial", {"reward/mean": scale * step}, consumed_samples=4 * step)
    writer.close()


def tensorboard_values(run: Path, key: str) -> dict[int, float]:
    events = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=True)
    return {event.step: event.value for event in events.Reload().Scalars(key)}


def test_a_step_is_one_line_with_its_numbers(tmp_path):
    before = time.time()
    writer = MetricsWriter(tmp_path, QUIET, is_writer=True)
    writer.write(7, "warmup", {"student/loss": 1 / 3, "swap/bytes": 2**40}, consumed_samples=56)
    # Flushed: another process sees the line while the run goes on.
    (line,) = read_lines(tmp_path)
    writer.close()
    assert before <= line.pop("time") <= time.time()
    assert line == {
        "step": 7,
        "stage": "warmup",
        "consumed_samples": 56,
        "student/loss": 1 / 3,
        "swap/bytes": 2**40,
    }


def test_scalar_tensors_are_written_as_numbers(tmp_path):
    writer = MetricsWriter(tmp_path, QUIET, is_writer=True)
    writer.write(1, "seqkd", {"student/loss": torch.tensor(0.25)}, consumed_samples=1)
    writer.close()
    assert read_lines(tmp_path)[0]["student/loss"] == 0.25


def test_non_finite_numbers_stay_legal_json_and_come_back(tmp_path):
    values = {"student/loss": math.nan, "student/kl": math.inf, "reward/mean": -math.inf}
    writer = MetricsWriter(tmp_path, LogConfig(), is_writer=True)
    writer.write(1, "adversarial", values, consumed_samples=8)
    writer.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert [line[key] for key in values] == ["nan", "inf", "-inf"]
    (record,), num_bad = read_records(tmp_path / "metrics.jsonl")
    assert num_bad == 0
    assert math.isnan(record["student/loss"])
    assert (record["student/kl"], record["reward/mean"]) == (math.inf, -math.inf)


def test_a_resumed_run_leaves_each_step_once(tmp_path):
    write_steps(tmp_path, 1, 5, scale=1.0)
    write_steps(tmp_path, 4, 6, scale=10.0)
    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["reward/mean"] for line in lines] == [1.0, 2.0, 3.0, 40.0, 50.0, 60.0]
    assert not list(tmp_path.glob("*.draft"))


def test_truncation_keeps_earlier_lines_byte_for_byte(tmp_path):
    write_steps(tmp_path, 1, 3, scale=0.1)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    MetricsWriter(tmp_path, QUIET, is_writer=True).truncate_after(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:2])


def test_a_half_written_last_line_is_dropped_with_a_warning(tmp_path, caplog):
    write_steps(tmp_path, 1, 3, scale=1.0)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[: whole.rindex('"consumed')])
    with caplog.at_level(logging.WARNING):
        write_steps(tmp_path, 3, 4, scale=2.0)
    assert [line["reward/mean"] for line in read_lines(tmp_path)] == [1.0, 2.0, 6.0, 8.0]
    assert "1 unreadable line(s) dropped" in caplog.text


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path):
    write_steps(tmp_path, 1, 3, scale=1.0)
    write_steps(tmp_path, 1, 1, scale=5.0)
    assert [line["reward/mean"] for line in read_lines(tmp_path)] == [5.0]


def test_tensorboard_has_the_same_numbers_and_forgets_repeated_steps(tmp_path):
    write_steps(tmp_path, 1, 5, scale=1.0, config=LogConfig())
    write_steps(tmp_path, 4, 5, scale=10.0, config=LogConfig())
    values = tensorboard_values(tmp_path, "reward/mean")
    assert values == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0}


def test_tensorboard_can_be_switched_off(tmp_path):
    write_steps(tmp_path, 1, 1, scale=1.0)
    assert not (tmp_path / "tensorboard").exists()


def test_the_log_line_reads_like_megatrons(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, QUIET, is_writer=True)
    metrics = {"student/loss": 0.5, "reward/mean": -1.25, "time/step_s": 0.25, "swap/bytes": 9}
    writer.write(100, "adversarial", metrics, consumed_samples=25600, total_steps=1000)
    writer.write(101, "adversarial", {"student/loss": math.nan}, consumed_samples=25856)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r" \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] iteration      100/    1000 \| stage: adversarial \| "
        r"consumed samples:        25600 \| elapsed time per iteration \(ms\): 250\.0 \| "
        r"student/loss: 0\.5 \| reward/mean: -1\.25 \|",
        first,
    )
    assert "iteration      101 | stage" in second
    assert second.endswith("| student/loss: nan |")


def test_the_log_line_averages_the_time_over_its_interval(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, LogConfig(log_interval=2, tensorboard=False), is_writer=True)
    for step, seconds in enumerate((0.1, 0.3, 0.5, 0.7), start=1):
        writer.write(step, "seqkd", {"time/step_s": seconds}, consumed_samples=step)
    times = re.findall(r"iteration +(\d+) .*\(ms\): ([\d.]+)", capsys.readouterr().out)
    assert times == [("2", "200.0"), ("4", "600.0")]


def test_other_ranks_write_nothing(tmp_path, capsys):
    writer = MetricsWriter(tmp_path / "run", LogConfig(), is_writer=False)
    writer.truncate_after(0)
    writer.write(1, "seqkd", {"student/loss": 1.0}, consumed_samples=1)
    writer.write_samples(1, "seqkd", [])
    writer.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_samples_come_back_as_they_were(tmp_path):
    rollout = {
        "text": "<b>\u2028 naïve",
        "score": math.nan,
        "advantage": 1.5,
        "length": 3,
        "finish_reason": "stop",
    }
    writer = MetricsWriter(tmp_path, QUIET, is_writer=True)
    rows = [{"prompt": "p", "teacher": "a lone surrogate \ud800", "rollouts": [rollout]}]
    writer.write_samples(100, "adversarial", rows)
    path = tmp_path / "samples" / "step_0000100.jsonl"
    (record,), num_bad = read_records(path)
    assert num_bad == 0
    assert samples_step(path) == record["step"] == 100
    assert record["teacher"] == "a lone surrogate \ud800"
    assert record["rollouts"][0] == {**rollout, "score": "nan"}


def test_samples_of_repeated_steps_go_too(tmp_path):
    writer = MetricsWriter(tmp_path, QUIET, is_writer=True)
    for step in (10, 20, 30):
        writer.write_samples(step, "adversarial", [])
    writer.truncate_after(20)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step_0000010.jsonl",
        "step_0000020.jsonl",
    ]


def test_lines_can_be_made_sure_of(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor, fsync=os.fsync):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = MetricsWriter(tmp_path, QUIET, is_writer=True)
    writer.sync()
    assert synced == []
    writer.write(1, "seqkd", {}, consumed_samples=1)
    writer.sync()
    assert synced == [tmp_path / "metrics.jsonl"]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_without_the_package_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"wandb_project = 'gad'.*megatron-gad\[wandb\]"):
        MetricsWriter(tmp_path, LogConfig(wandb_project="gad"), is_writer=True)


def test_a_run_that_resumes_is_the_same_run_at_wandb(tmp_path, monkeypatch):
    asked = []
    wandb = SimpleNamespace(init=lambda **given: asked.append(given))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("one", "one", "other"):
        MetricsWriter(tmp_path / name, LogConfig(wandb_project="gad"), is_writer=True)
    first, again, other = (given["id"] for given in asked)
    assert first == again != other
    assert [given["resume"] for given in asked] == ["allow"] * 3
    assert [given["name"] for given in asked] == ["one", "one", "other"]


def test_a_tracker_that_cannot_finish_is_a_warning(tmp_path, monkeypatch, caplog):
    run = SimpleNamespace(init=lambda **_: run, finish=lambda: os.close(-1))
    monkeypatch.setitem(sys.modules, "wandb", run)
    MetricsWriter(tmp_path, LogConfig(wandb_project="gad"), is_writer=True).close()
    assert caplog.messages == [
        "Weights & Biases may lack the last steps: OSError: [Errno 9] Bad file descriptor"
    ]


def test_the_progress_bar_is_silent_without_a_terminal(capsys):
    with progress(3, "adversarial", is_writer=True) as bar:
        advance(bar, {"student/loss": 0.5})
    assert capsys.readouterr().err == ""


def test_the_progress_bar_shows_the_main_numbers(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    metrics = {"student/loss": 0.51, "discriminator/accuracy": 0.625, "student/kl": 9.0}
    with progress(4, "adversarial", is_writer=True) as bar:
        advance(bar, metrics)
    shown = capsys.readouterr().err
    assert "adversarial:" in shown
    assert "1/4" in shown
    assert "loss=0.510, D accuracy=0.625" in shown
    assert "9.0" not in shown
    with progress(4, "adversarial", is_writer=False) as bar:
        advance(bar, metrics)
    assert capsys.readouterr().err == ""
