"""Kill a run again and again, and compare all that it leaves with a run that nobody killed.

    python -m tests.soak_runs --kills 30

Kills are SIGKILLs of one rank or of all at once, some while a checkpoint is written. Exit status 0
if nothing was lost and no bit changed.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tests.e2e import tiny_run

STAGES = ("seqkd", "warmup", "adversarial")
# Each kill is at most so many steps after the one before, and all come before the end.
STEPS_A_KILL = 2
SAVES = ("--save-interval", "1", "--export", "student", "discriminator")
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one rank": (1, ()),
    "TP2 and SP": (2, ("--tensor-model-parallel-size", "2", "--sequence-parallel")),
    "DP2": (2, ("--use-distributed-optimizer",)),
}
# Of this tiny model; a kill that comes later hits what follows.
LONGEST_SAVE_S, LONGEST_STEP_S = 0.05, 0.3


@dataclass(frozen=True)
class Soak:
    """How much is killed.

    Attributes:
        kills: over all layouts.
        layouts: which of them.
        seed: of when and who is killed.
    """

    kills: int = 30
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    seed: int = 0


@dataclass
class Killer:
    """Kills the ranks of one start.

    save: the run directory. draw: decides when, and whom. num_in_save: kills that left a checkpoint
    half written.
    """

    save: Path
    draw: random.Random
    num_in_save: int = 0

    def __call__(self, ranks: Sequence[Any]) -> None:
        """Wait for the moment, and kill; a run that ends before stays as it is."""
        goes_for_save = self.draw.random() < 0.6
        first = self._newest() + self.draw.randint(0, STEPS_A_KILL - 1)
        delay_s = self.draw.random() * (LONGEST_SAVE_S if goes_for_save else LONGEST_STEP_S)
        victims = list(ranks) if self.draw.random() < 0.5 else [self.draw.choice(ranks)]
        while not self._has_come(first, goes_for_save):
            if any(rank.exitcode is not None for rank in ranks):
                return
            time.sleep(0.001)
        time.sleep(delay_s)
        for rank in victims:
            os.kill(rank.pid, signal.SIGKILL)
        for rank in victims:
            rank.join()
        self.num_in_save += any(self.save.glob("iter_*.draft"))

    def _newest(self) -> int:
        file = self.save / "latest_checkpointed_iteration.txt"
        return int(file.read_text()) if file.exists() else 0

    def _has_come(self, first: int, is_save: bool) -> bool:
        """Say whether the run is past a checkpoint and, if asked for, writes another."""
        has_step = (self.save / "metrics.jsonl").exists() and self._newest() >= first
        return has_step and (not is_save or any(self.save.glob("iter_*.draft")))


def run(soak: Soak, folder: Path) -> list[str]:
    """Return what was lost or changed; empty is what it should be."""
    problems: list[str] = []
    for number, name in enumerate(soak.layouts):
        share = soak.kills // len(soak.layouts) + (number < soak.kills % len(soak.layouts))
        problems += _soak_layout(name, share, random.Random(f"{soak.seed} {name}"), folder)
    return problems


def _soak_layout(name: str, kills: int, draw: random.Random, folder: Path) -> Iterator[str]:
    num_ranks, layout = LAYOUTS[name]
    steps = 1 + -(-STEPS_A_KILL * kills // len(STAGES))
    flags = (*SAVES, *layout)
    flags += tuple(word for stage in STAGES for word in (f"--{stage}.steps", str(steps)))
    whole, killed = folder / f"whole {number_of(name)}", folder / f"killed {number_of(name)}"
    statuses, said = tiny_run.outcome(whole, folder / "log", *flags, num_ranks=num_ranks)
    assert set(statuses) == {0}, said
    killer = Killer(killed, draw)
    for number in range(1, kills + 1):
        statuses, said = tiny_run.outcome(
            killed, folder / "log", *flags, num_ranks=num_ranks, meddle=killer
        )
        if -signal.SIGKILL not in statuses:
            yield f"{name}: kill {number} met a run that had ended with {statuses}:\n{said}"
            return
    statuses, said = tiny_run.outcome(killed, folder / "log", *flags, num_ranks=num_ranks)
    if set(statuses) != {0}:
        yield f"{name}: after {kills} kills the run ends with {statuses}:\n{said}"
        return
    print(f"{name}: {kills} kills, {killer.num_in_save} of them in a save", flush=True)
    yield from (f"{name}: {difference}" for difference in differences(whole, killed))


def number_of(layout: str) -> int:
    """Return which of the layouts one is."""
    return [*LAYOUTS].index(layout)


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """Yield what a killed run left otherwise than one that nobody killed."""
    compared = tiny_run.compared_over_restarts
    expected = [compared(record) for record in tiny_run.metrics(whole)]
    found = [compared(record) for record in tiny_run.metrics(killed)]
    steps = [[record["step"] for record in records] for records in (expected, found)]
    if steps[0] != steps[1]:
        yield f"metrics.jsonl has the steps {steps[1]} and not {steps[0]}"
    for left, right in zip(expected, found, strict=False):
        names = {key for key in left | right if left.get(key) != right.get(key)}
        if names:
            yield f"step {left['step']} differs in {', '.join(sorted(names))}"
    for kind in ("student_hf", "discriminator_hf", "samples"):
        names = {file.name for folder in (whole, killed) for file in (folder / kind).iterdir()}
        for name in sorted(names):
            files = [folder / kind / name for folder in (whole, killed)]
            contents = [file.read_bytes() if file.is_file() else None for file in files]
            if contents[0] != contents[1]:
                yield f"{kind}/{name} differs"


def main(soak: Soak) -> int:
    """Run in a folder that is deleted, and say what was found."""
    with tempfile.TemporaryDirectory() as folder:
        problems = run(soak, Path(folder))
    print("\n".join(problems) or f"{soak.kills} kills lost nothing and changed no bit")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Soak)))
