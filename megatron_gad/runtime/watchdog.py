"""Ends a run that hangs, and says which rank hangs where; ends a rank whose launcher is gone.

Every rank watches itself from a thread and writes a small heartbeat file. The first rank whose
phase takes too long shows its stacks and where all ranks are; the others, who may only be waiting
for one another, then show theirs, and all end.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from megatron_gad.config.run_control import WatchdogConfig
from megatron_gad.errors import FAILED, HUNG, ORPHANED
from megatron_gad.files import replace_text

HEARTBEATS_FOLDER = "heartbeats"
ALARM = "alarm"
POLL_S = 1.0
HEARTBEAT_S = 5.0
# A rank may be busy for some heartbeats, as while it forks; after more it is stopped or dead.
SILENT_S = 3 * HEARTBEAT_S
# Ranks of one run start within this of each other, by clocks that may differ a little.
START_SPREAD_S = 120.0
# Until the other ranks have seen the alarm and shown their stacks.
LAST_WORDS_S = 3 * POLL_S
# After a deadline, until the process ends even if this module's thread gets no turn.
BACKSTOP_S = 60.0
# All ranks write to one folder: more of them take longer between heartbeats, and what follows.
MOST_RANKS_AT_FULL_PACE = 100


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank was at a moment; time is Unix time, the rest in seconds."""

    rank: int
    host: str
    process: int
    phase: str
    seconds_in_phase: float
    time: float


class Watchdog:
    """Watches a rank's phases: ``with Watchdog(...) as watch``, ``watch("swap", "phase_s")``.

    If a phase takes too long, the process ends with status HUNG, after a report to stderr and to
    ``<run folder>/hang_rank_<rank>.txt``.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        run_folder: Path,
        rank: int,
        world_size: int,
        has_launcher: bool,
    ) -> None:
        """has_launcher: a launcher started this process, which must not outlive it."""
        self._deadlines = asdict(config)
        self._run_folder = run_folder
        self._folder = run_folder / HEARTBEATS_FOLDER
        self._rank = rank
        self._world_size = world_size
        self._slowness = slowness(world_size)
        self._launcher = os.getppid() if has_launcher else None
        self._began = time.time()
        self._old_alarm = 0
        self._has_complained = False
        self._phase = ("start", "start_s", time.monotonic())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._folder.mkdir(parents=True, exist_ok=True)
        # First of all, so that a rank that stops at once was heard from; and once it has written
        # there, a network file system no longer shows it the folder as it was before.
        self._beat()
        self._old_alarm = self._alarm_time()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def __call__(self, phase: str, deadline: str) -> Iterator[None]:
        """Watch the block. deadline: the field of WatchdogConfig that bounds it."""
        self._phase = (phase, deadline, time.monotonic())
        try:
            yield
        finally:
            self._phase = ("between", "phase_s", time.monotonic())

    def _watch(self) -> None:
        try:
            self._watch_until_over()
        finally:
            if not self._is_over.is_set():
                # Nobody would notice from here on that the run hangs, or that its launcher is gone.
                say(f"rank {self._rank} ends: its watchdog failed\n{traceback.format_exc()}")
                os._exit(FAILED)

    def _watch_until_over(self) -> None:
        next_beat = 0.0
        while not self._is_over.wait(POLL_S * self._slowness):
            self._arm_backstop()
            if self._launcher is not None and os.getppid() != self._launcher:
                say(f"rank {self._rank} ends: its launcher, process {self._launcher}, is gone")
                os._exit(ORPHANED)
            if time.monotonic() >= next_beat:
                self._beat()
                next_beat = time.monotonic() + HEARTBEAT_S * self._slowness
            reason = self._own_reason() or self._reason_of_others()
            if reason:
                self._end(reason)

    def _end(self, reason: str) -> None:
        self._beat()
        ranks = describe_ranks(read_heartbeats(self._folder), self._world_size, self._began)
        report = "\n".join([reason, "where the ranks are:", *ranks, *self._stacks()])
        say(report)
        self._write(self._run_folder / f"hang_rank_{self._rank:05d}.txt", report)
        time.sleep(LAST_WORDS_S * self._slowness)
        os._exit(HUNG)

    def _own_reason(self) -> str:
        """Say that this rank's phase takes too long, to the other ranks too; else be empty."""
        phase, key, start = self._phase
        seconds = time.monotonic() - start
        if not self._deadlines[key] or seconds <= self._deadlines[key]:
            return ""
        reason = (
            f"{self._who()} hangs: it is in phase {phase!r} for {seconds:.0f} s, allowed are "
            f"{self._deadlines[key]:g} s (watchdog.{key})"
        )
        self._write(self._folder / ALARM, reason)
        return reason

    def _reason_of_others(self) -> str:
        """Return that another rank raised the alarm in this run; else be empty."""
        # An alarm that was there at the start is of a run before; clocks could not tell.
        if self._alarm_time() in (0, self._old_alarm):
            return ""
        with contextlib.suppress(OSError):
            alarm = (self._folder / ALARM).read_text().strip()
            return f"{self._who()} shows where it is, because {alarm}"
        return ""

    def _alarm_time(self) -> int:
        """Return when the alarm was raised, by the file system's clock in nanoseconds; 0: never."""
        try:
            return (self._folder / ALARM).stat().st_mtime_ns
        except OSError:
            return 0

    def _who(self) -> str:
        place = f"{socket.gethostname()}, process {os.getpid()}"
        return f"rank {self._rank} of {self._world_size} ({place})"

    def _beat(self) -> None:
        phase, _, start = self._phase
        seconds = time.monotonic() - start
        beat = Heartbeat(self._rank, socket.gethostname(), os.getpid(), phase, seconds, time.time())
        self._write(self._folder / f"rank_{self._rank:05d}.json", json.dumps(asdict(beat)))

    def _write(self, path: Path, text: str) -> None:
        """Replace a file; a disk that takes nothing at the moment is no reason to end the run."""
        try:
            replace_text(path, text + "\n")
        except OSError as error:
            if not self._has_complained:
                say(f"rank {self._rank} cannot write {path}: {error}; it tries again")
            self._has_complained = True

    def _stacks(self) -> Iterator[str]:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != threading.get_ident():
                yield f"stack of rank {self._rank}, thread {names.get(ident, ident)}:"
                yield "".join(traceback.format_stack(frame)).rstrip()

    def _arm_backstop(self) -> None:
        """Let a thread without Python end the process where a deadline finds this one stuck."""
        _, key, start = self._phase
        deadline = self._deadlines[key]
        if not deadline:
            faulthandler.cancel_dump_traceback_later()
            return
        remaining = max(0.0, start + deadline - time.monotonic())
        faulthandler.dump_traceback_later(remaining + BACKSTOP_S, exit=True, file=2)


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """Return the newest heartbeat of every rank that wrote one, in the order of ranks.

    One that cannot be read, as while a network file system replaces it, is left out.
    """
    beats = []
    with contextlib.suppress(OSError):
        for file in sorted(folder.glob("rank_*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                beats.append(Heartbeat(**json.loads(file.read_text())))
    return beats


def slowness(world_size: int) -> float:
    """Return by what times are longer than these constants among so many ranks."""
    return max(1.0, world_size / MOST_RANKS_AT_FULL_PACE)


def describe_ranks(beats: list[Heartbeat], world_size: int, began: float) -> Iterator[str]:
    """Yield lines that tell who is in which phase, and who is not heard from.

    beats: also of ranks that this run does not have, or of a run before, which are left out.
    began: Unix time at which the rank that reports started; others may have started before it.
    """
    now, silent_s = time.time(), SILENT_S * slowness(world_size)
    earliest = began - START_SPREAD_S * slowness(world_size)
    heard = {beat.rank: beat for beat in beats if beat.rank < world_size and beat.time >= earliest}
    phases: dict[str, list[Heartbeat]] = {}
    for beat in heard.values():
        if now - beat.time < silent_s:
            phases.setdefault(beat.phase, []).append(beat)
        else:
            yield (
                f"  rank {beat.rank} ({beat.host}, process {beat.process}) is not heard from for "
                f"{now - beat.time:.0f} s: stopped, dead or cut off; it was in {beat.phase!r}"
            )
    for rank in set(range(world_size)) - set(heard):
        yield f"  rank {rank} was never heard from"
    for phase, present in phases.items():
        seconds = [now - beat.time + beat.seconds_in_phase for beat in present]
        ranks = ", ".join(str(beat.rank) for beat in present)
        yield f"  {phase!r} for {min(seconds):.0f} to {max(seconds):.0f} s: rank {ranks}"


def say(text: str) -> None:
    """Write to stderr past all locks of Python, which a hung thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"megatron_gad: {text}\n".encode())
