"""What the report of a hung run says about the ranks."""

import time

from megatron_gad.watchdog import SILENT_S, Heartbeat, describe_ranks


def test_the_rank_that_is_not_heard_from_is_told_from_those_that_wait() -> None:
    now = time.time()
    began = now - 1000
    beats = [
        Heartbeat(0, "a", 10, "student", seconds_in_phase=300.0, time=now - 2),
        Heartbeat(1, "a", 11, "rollout", seconds_in_phase=40.0, time=now - SILENT_S - 60),
        Heartbeat(2, "b", 12, "student", seconds_in_phase=307.0, time=now - 1),
        Heartbeat(3, "b", 13, "start", seconds_in_phase=9.0, time=began - 1),
        Heartbeat(5, "b", 15, "swap", seconds_in_phase=1.0, time=now),
    ]
    assert list(describe_ranks(beats, world_size=5, began=began)) == [
        f"  rank 1 (a, process 11) is not heard from for {SILENT_S + 60:.0f} s: stopped, dead or "
        "cut off; it was in 'rollout'",
        "  rank 3 was never heard from",
        "  rank 4 was never heard from",
        "  'student' for 302 to 308 s: rank 0, 2",
    ]
