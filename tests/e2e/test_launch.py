"""The Slurm script trains on two nodes, stops in time, queues itself again and goes on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e import tiny_run
from tests.e2e.tiny_run import ROOT

STAND_IN = ROOT / "tests/e2e/slurm_stand_in"
JOB_ID = "4711"
NUM_STEPS = 1000  # more than are taken until the job is told to stop
FLAGS = ("--stages", "seqkd", "--seqkd.steps", str(NUM_STEPS), "--seqkd.batch-size", "4")
FLAGS += ("--data.eval-path", "", "--no-tensorboard")


@dataclass(frozen=True)
class Job:
    """A job whose nodes have one rank each, which holds one pipeline stage."""

    folder: Path
    num_nodes: int = 2

    @property
    def save(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def start(self, *flags: str, signalled: str = "leaders") -> subprocess.Popen:
        """Run the batch script, from a copy of it, as Slurm does; output goes to run.log."""
        environment = os.environ | {
            "PATH": f"{STAND_IN}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": JOB_ID,
            "SLURM_JOB_NODELIST": f"node[1-{self.num_nodes}]",
            "SLURM_JOB_NUM_NODES": str(self.num_nodes),
            "SIGNALLED": signalled,
            "REQUEUED": str(self.folder / "requeued"),
            "MASTER_PORT": str(free_port()),
            "GPUS_PER_NODE": "1",
            "TP": "1",
            "PP": str(self.num_nodes),
            "CONFIG": "examples/tiny/run.toml",
            "MODEL": str(tiny_run.assets() / "student"),
            "DATA": str(tiny_run.assets() / "train.jsonl"),
            "SAVE": str(self.save),
            "OMP_NUM_THREADS": "1",
        }
        copy = shutil.copy(ROOT / "examples/lmsys_qwen2.5_7b/slurm.sbatch", self.folder / "copied")
        with tiny_run.log_of(self.save).open("a") as log:
            return subprocess.Popen(
                ["bash", copy, *FLAGS, *flags],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal_after(self, process: subprocess.Popen, step: int) -> int:
        """Tell the batch script that its time is nearly up; return the step that was saved."""
        deadline = time.monotonic() + 300
        file = self.save / "metrics.jsonl"
        while not file.exists() or len(file.read_text().splitlines()) < step:
            assert process.poll() is None, self.log()[-4000:]
            assert time.monotonic() < deadline, f"step {step} did not come in five minutes"
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=600) == 0, self.log()[-4000:]
        return int((self.save / "latest_checkpointed_iteration.txt").read_text())

    def log(self) -> str:
        """Return what all starts wrote."""
        return tiny_run.log_of(self.save).read_text()

    def requeued(self) -> list[str]:
        """Return the jobs that were queued again."""
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []

    def processes(self) -> list[psutil.Process]:
        """Return what is still running of this job."""
        found = psutil.process_iter(["cmdline"])  # which is None of a process that has ended
        return [process for process in found if str(self.save) in (process.info["cmdline"] or ())]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_a_job_saves_before_its_time_is_up_and_goes_on_when_queued_again(
    tmp_path: Path,
) -> None:
    job = Job(tmp_path)
    first = job.signal_after(job.start(signalled="leaders"), step=3)
    assert 3 <= first < NUM_STEPS
    assert f"stopped by SIGUSR1 after step {first}; saved" in job.log()
    assert [record["step"] for record in tiny_run.metrics(job.save)] == [*range(1, first + 1)]
    assert job.requeued() == [JOB_ID]
    assert job.processes() == []

    second = job.signal_after(job.start(signalled="everyone"), step=first + 3)
    assert first + 3 <= second < NUM_STEPS
    assert f"resuming from {job.save}/iter_{first:07d}" in job.log()
    assert job.requeued() == [JOB_ID] * 2
    assert job.processes() == []

    last = second + 5
    assert job.start("--seqkd.steps", str(last)).wait(timeout=600) == 0, job.log()[-4000:]
    assert f"resuming from {job.save}/iter_{second:07d}" in job.log()
    assert [record["step"] for record in tiny_run.metrics(job.save)] == [*range(1, last + 1)]
    assert (job.save / "student_hf/model.safetensors").exists()
    assert job.requeued() == [JOB_ID] * 2


def test_a_job_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, num_nodes=1)
    assert job.start("--seqkd.batch-size", "0").wait(timeout=600) != 0
    assert "seqkd.batch_size = 0" in job.log()
    assert job.requeued() == []
    assert job.processes() == []
