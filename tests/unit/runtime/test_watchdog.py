"""What the report of a hung run says about the ranks."""

import dataclasses
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from megatron_gad.config.run_control import WatchdogConfig
from megatron_gad.errors import FAILED
from megatron_gad.runtime import watchdog
from megatron_gad.runtime.watchdog import (
    ALARM,
    HEARTBEATS_FOLDER,
    SILENT_S,
    START_SPREAD_S,
    Heartbeat,
    Watchdog,
    describe_ranks,
    read_heartbeats,
)
from tests.ranks import statuses_of_ranks


def test_the_rank_that_is_not_heard_from_is_told_from_those_that_wait() -> None:
    now = time.time()
    began = now - 1000
    beats = [
        Heartbeat(0, "a", 10, "student", seconds_in_phase=300.0, time=now - 2),
        Heartbeat(1, "a", 11, "rollout", seconds_in_phase=40.0, time=now - SILENT_S - 60),
        Heartbeat(2, "b", 12, "student", seconds_in_phase=307.0, time=now - 1),
        Heartbeat(3, "b", 13, "start", seconds_in_phase=9.0, time=began - START_SPREAD_S - 1),
        Heartbeat(5, "b", 15, "swap", seconds_in_phase=1.0, time=now),
    ]
    assert list(describe_ranks(beats, world_size=5, began=began)) == [
        f"  rank 1 (a, process 11) is not heard from for {SILENT_S + 60:.0f} s: stopped, dead or "
        "cut off; it was in 'rollout'",
        "  rank 3 was never heard from",
        "  rank 4 was never heard from",
        "  'student' for 302 to 308 s: rank 0, 2",
    ]


def test_a_rank_that_started_before_the_one_that_reports_was_heard_from() -> None:
    now = time.time()
    beat = Heartbeat(1, "a", 11, "start", seconds_in_phase=1.0, time=now - 22)
    first = next(describe_ranks([beat], world_size=2, began=now - 21))
    assert first.startswith("  rank 1 (a, process 11) is not heard from for 22 s")


def test_many_ranks_may_be_silent_for_longer() -> None:
    now = time.time()
    # 1000 ranks write every 50 s instead of every 5 s, and may miss two heartbeats of their own.
    for age, is_heard in ((140, True), (160, False)):
        beat = Heartbeat(0, "a", 10, "student", seconds_in_phase=300.0, time=now - age)
        first = next(describe_ranks([beat], world_size=1000, began=now - 1000))
        assert ("is not heard from" not in first) == is_heard


def test_heartbeats_that_cannot_be_read_hide_no_others(tmp_path: Path) -> None:
    assert read_heartbeats(tmp_path / "missing") == []
    beat = Heartbeat(4, "a", 10, "student", seconds_in_phase=300.0, time=1e9)
    (tmp_path / "rank_00000.json").touch()
    (tmp_path / "rank_00001.json").mkdir()
    (tmp_path / "rank_00002.json").symlink_to("gone")
    (tmp_path / "rank_00003.json").write_text('{"host": "of another version"}')
    (tmp_path / "rank_00004.json").write_text(json.dumps(dataclasses.asdict(beat)))
    assert read_heartbeats(tmp_path) == [beat]


def test_a_disk_that_takes_no_heartbeat_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "POLL_S", 0.01)
    monkeypatch.setattr(watchdog, "HEARTBEAT_S", 0.01)
    with Watchdog(WatchdogConfig(), tmp_path, rank=0, world_size=1, has_launcher=False) as watch:
        beat = tmp_path / HEARTBEATS_FOLDER / "rank_00000.json"
        beat.unlink()
        beat.mkdir()  # nothing can be put in its place
        (beat / "file").touch()
        time.sleep(0.3)
        assert watch._thread.is_alive()
    assert capfd.readouterr().err.count("cannot write") == 1


def _wait_with(config: WatchdogConfig, folder: Path) -> None:
    """Be a run that goes nowhere."""
    with Watchdog(config, folder, rank=0, world_size=1, has_launcher=False):
        time.sleep(600)


def test_a_run_ends_with_its_watchdog(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # More seconds than the system's clock takes, past the checks that refuse them.
    config = WatchdogConfig(start_s=1e12)
    assert statuses_of_ranks(_wait_with, 1, config, tmp_path, log=log, timeout_s=120) == [FAILED]
    said = log.read_text()
    assert "rank 0 ends: its watchdog failed" in said
    assert "OverflowError" in said


def test_the_alarm_of_a_run_before_is_none_whatever_the_clocks_say(tmp_path: Path) -> None:
    alarm = tmp_path / HEARTBEATS_FOLDER / ALARM
    alarm.parent.mkdir()
    alarm.write_text("rank 1 hangs")
    ahead = time.time() + 1000
    os.utime(alarm, (ahead, ahead))
    with Watchdog(WatchdogConfig(), tmp_path, rank=0, world_size=2, has_launcher=False) as watch:
        assert watch._reason_of_others() == ""
        alarm.write_text("rank 1 hangs again")
        os.utime(alarm, (ahead - 2000, ahead - 2000))
        assert watch._reason_of_others().endswith("because rank 1 hangs again")
        os.utime(alarm, (ahead, ahead))


@pytest.mark.parametrize(("phase_s", "minutes"), [(1500.0, 30), (3600.0, 65), (0.0, 365 * 24 * 60)])
def test_a_collective_waits_until_the_watchdog_has_spoken(phase_s: float, minutes: int) -> None:
    assert WatchdogConfig(phase_s=phase_s).collective_timeout == timedelta(minutes=minutes)
