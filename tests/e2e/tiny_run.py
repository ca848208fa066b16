"""Runs the tiny example and reads what it leaves behind.

``start`` starts its script, and with it a launcher; ``run`` has the same ranks for less time.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from examples.tiny.prepare import prepare
from megatron_gad.__main__ import main
from tests.ranks import statuses_of_ranks

ROOT = Path(__file__).resolve().parents[2]
# What depends on the clock, or on how a run is spread over ranks.
# What an engine tells of its work depends on its seconds, and a replay does none.
ENGINE_WORK = ("engine/tokens_per_s", "engine/running_rows", "engine/waiting_rows")
NOT_COMPARED = ("time", "swap/bytes", "memory/", "moves/", *ENGINE_WORK, "engine/cache_hit_share")


def start(save: Path, *flags: str, num_ranks: int = 1, prepares: bool = False) -> subprocess.Popen:
    """Start a tiny run; its output goes to ``<save>.log``.

    It finds the student and the data that it would otherwise prepare, in a third of its time.
    """
    if not prepares and not (save / "assets").exists():
        shutil.copytree(assets(), save / "assets")
    environment = {**os.environ, "PYTHON": sys.executable, "SAVE": str(save)}
    environment |= {"NPROC": str(num_ranks), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "examples/tiny/run.sh"), "--no-tensorboard", *flags]
    with log_of(save).open("w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


@cache
def assets() -> Path:
    """Prepare student and data once for all who read them; they are gone with this process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny_assets_"))
    atexit.register(shutil.rmtree, folder)
    prepare(folder)
    return folder


def run(save: Path, *flags: str, num_ranks: int = 1) -> list[dict[str, Any]]:
    """Run to the end and return the metrics of every step; output goes to ``<save>.log``."""
    if not (save / "assets").exists():
        shutil.copytree(assets(), save / "assets")
    statuses, said = outcome(
        save, log_of(save), *flags, num_ranks=num_ranks, inputs=save / "assets"
    )
    assert set(statuses) == {0}, f"exit statuses {statuses}\n" + said[-4000:]
    return metrics(save)


def outcome(
    save: Path,
    log: Path,
    *flags: str,
    num_ranks: int = 1,
    inputs: Path | None = None,
    **options: Any,
) -> tuple[list[int | None], str]:
    """Run, and return the statuses of its ranks with what they said, which goes to ``log``.

    inputs: folder of student and data; by default one outside of the run directory. options: of
    ``statuses_of_ranks``.
    """
    inputs = inputs or assets()
    paths = {
        "--save": save,
        "--data.path": inputs / "train.jsonl",
        "--data.eval-path": inputs / "eval.jsonl",
        "--student.path": inputs / "student",
    }
    command = [str(ROOT / "examples/tiny/run.toml"), "--no-tensorboard"]
    command += [word for flag, path in paths.items() for word in (flag, str(path))]
    # A restored run has the same student and data under paths of its own.
    command += ["--override-config", "data.path", "student.path"]
    options = {"log": log, "timeout_s": 900} | options
    statuses = statuses_of_ranks(_command, num_ranks, [*command, *flags], **options)
    return statuses, log.read_text()


def run_script(save: Path, *flags: str) -> list[dict[str, Any]]:
    """Do the same by the script, on one rank, with what it prepares itself."""
    process = start(save, *flags, prepares=True)
    try:
        status = process.wait(timeout=900)
    finally:
        process.kill()  # the ranks end when it is gone
    assert status == 0, f"exit status {status}\n" + log_of(save).read_text()[-4000:]
    return metrics(save)


def _command(arguments: list[str]) -> int:
    """Be the command, in a process of its own."""
    sys.argv[1:] = arguments
    return main()


def restore(whole: Path, save: Path, iteration: int) -> None:
    """Make a run that has just saved this iteration out of one that kept all its checkpoints."""
    save.mkdir()
    checkpoint = f"iter_{iteration:07d}"
    shutil.copytree(whole / checkpoint, save / checkpoint)
    shutil.copytree(whole / "assets", save / "assets")
    (save / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    # Lines that were written after the checkpoint are dropped, those before are kept.
    shutil.copy(whole / "metrics.jsonl", save / "metrics.jsonl")


def metrics(save: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]


def log_of(save: Path) -> Path:
    """Return the file that a run's output goes to."""
    return save.with_name(save.name + ".log")


def compared(record: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a step's metrics that does not depend on the clock."""
    return {key: value for key, value in record.items() if not key.startswith(NOT_COMPARED)}


def compared_over_restarts(record: dict[str, Any]) -> dict[str, Any]:
    """Return that part without what is measured at a swap that only a restart needs."""
    left = compared(record)
    return {key: x for key, x in left.items() if not key.startswith("engine/logprob_gap")}


def wait_for_steps(process: subprocess.Popen, save: Path, count: int) -> None:
    """Wait until a run has taken so many steps; end it where they do not come."""
    deadline = time.monotonic() + 600
    while not (save / "metrics.jsonl").exists() or len(metrics(save)) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # the ranks end when it is gone
            raise AssertionError(f"no {count} steps\n{log_of(save).read_text()[-4000:]}")
        time.sleep(0.1)


def processes_of(save: Path) -> list[psutil.Process]:
    """Return launcher and ranks of a run."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(save) in (p.info["cmdline"] or ())]


def rank_of(save: Path, rank: int) -> psutil.Process:
    """Return the process of one rank."""
    (found,) = [p for p in processes_of(save) if p.environ().get("RANK") == str(rank)]
    return found


def assert_all_end(processes: list[psutil.Process], timeout_s: float) -> None:
    """Wait for processes to end; kill those that do not."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    alive = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        process.kill()
    assert alive == []
