"""The runs that the quickstart compares, each a ``megatron_gad`` command of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart.data import DataFiles

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("run.toml")


@dataclass(frozen=True)
class Assets:
    """What every arm starts from."""

    data: DataFiles
    student: Path
    seed: int

    def flags(self) -> list[str]:
        """Return the flags that name them."""
        return [
            *("--data.path", str(self.data.train), "--data.eval-path", str(self.data.validation)),
            *("--student.path", str(self.student), "--seed", str(self.seed)),
        ]


def run_gad(assets: Assets, folder: Path) -> None:
    """Train through all stages in the foreground; raises CalledProcessError where it fails."""
    subprocess.run(_command(assets, folder), cwd=ROOT, env=_environment(), check=True)


class EqualComputeArm:
    """SeqKD that goes on for as long as the GAD run takes, on a core of its own.

    It is the same command with one stage and no patience, and keeps its best held-out weights.
    Used as ``with EqualComputeArm(...) as arm: ...; arm.finish()``; no process outlives the block.
    """

    def __init__(self, assets: Assets, folder: Path) -> None:
        self._folder = folder
        self._assets = assets
        self._log = folder.with_name(folder.name + ".log")

    def __enter__(self) -> "EqualComputeArm":
        self._folder.mkdir(parents=True, exist_ok=True)
        command = self._endless(steps=10_000_000)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(), stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def finish(self) -> None:
        """Stop it after the step it is in, then let it end its stage there and export.

        Raises RuntimeError where it ended by itself or cannot be resumed.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"the equal-compute run ended early; see {self._log}")
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        done = (self._folder / "latest_checkpointed_iteration.txt").read_text()
        with self._log.open("a") as log:
            subprocess.run(
                self._endless(steps=int(done)),
                cwd=ROOT,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
            )

    def _endless(self, steps: int) -> list[str]:
        flags = ["--stages", "seqkd", "--seqkd.patience", "0", "--seqkd.steps", str(steps)]
        return _command(self._assets, self._folder, flags)


def _command(assets: Assets, folder: Path, flags: Sequence[str] = ()) -> list[str]:
    start = [sys.executable, "-m", "megatron_gad", str(CONFIG), "--save", str(folder)]
    return [*start, *assets.flags(), *flags]


def _environment() -> dict[str, str]:
    # One thread each: two runs share two cores, and more threads only wait for one another.
    return {**os.environ, "OMP_NUM_THREADS": "1"}
