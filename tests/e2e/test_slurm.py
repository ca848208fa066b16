"""The batch script under a real Slurm of two nodes, through its time limit and a node that dies."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e import tiny_run
from tests.e2e.slurm import NODES, Cluster, free_ports, reason_to_skip, running_cluster, wait_for
from tests.e2e.tiny_run import ROOT

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())

SCRIPT = "examples/lmsys_qwen2.5_7b/slurm.sbatch"
FLAGS = ("--stages", "seqkd", "--seqkd.batch-size", "4", "--data.eval-path", "")
FLAGS += ("--no-tensorboard", "--seqkd.steps", "1000000", "--save-interval", "20")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Return two idle nodes."""
    # Slurm's sockets are files in it, whose paths may have 107 characters.
    with TemporaryDirectory() as folder, running_cluster(Path(folder)) as running:
        yield running


@dataclass(frozen=True)
class Job:
    """A job of two nodes, one rank on each, which holds one pipeline stage."""

    cluster: Cluster
    folder: Path
    number: str

    @classmethod
    def submit(cls, cluster: Cluster, folder: Path, *options: str) -> "Job":
        """Submit the script, as its head says, with what run.sh reads from the environment."""
        number = cluster.ask(
            *("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={folder}/run.log"),
            *("--nodes=2", "--gpus-per-node=0", *options, str(ROOT / SCRIPT), *FLAGS),
            PYTHON=sys.executable,
            MASTER_PORT=str(free_ports(1)[0]),
            GPUS_PER_NODE="1",
            TP="1",
            PP="2",
            CONFIG="examples/tiny/run.toml",
            MODEL=str(tiny_run.assets() / "student"),
            DATA=str(tiny_run.assets() / "train.jsonl"),
            SAVE=str(folder / "run"),
            OMP_NUM_THREADS="1",
        )
        return cls(cluster, folder, number)

    @property
    def save(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def log(self) -> str:
        """Return what all starts of the job wrote."""
        file = self.folder / "run.log"
        return file.read_text() if file.exists() else ""

    def newest(self) -> int:
        """Return the iteration of the newest checkpoint; 0 if there is none."""
        file = self.save / "latest_checkpointed_iteration.txt"
        return int(file.read_text()) if file.exists() else 0

    def resumed_from(self) -> list[int]:
        """Return the iterations that starts went on from."""
        return [int(n) for n in re.findall(rf"resuming from {self.save}/iter_(\d+)", self.log())]


def test_a_job_goes_on_after_its_time_limit_and_after_a_node_died(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Slurm looks at time limits every half minute, and warns up to a minute before it was asked to.
    job = Job.submit(cluster, tmp_path, "--time=2", "--signal=B:USR1@100")
    wait_for(lambda: "the time is up; queueing job" in job.log(), "the job is queued again")
    stopped = int(re.findall(r"stopped by SIGUSR1 after step (\d+); saved", job.log())[-1])
    wait_for(lambda: job.resumed_from() == [stopped], "the job goes on")
    cluster.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    wait_for(lambda: job.newest() > stopped, "a checkpoint after the first start")

    for process in cluster.processes_on(NODES[1]):
        process.suspend()  # the node answers nobody, as one without power
    saved = job.newest()
    wait_for(lambda: f"Node failure on {NODES[1]}" in job.log(), "the node is missed")
    assert job.newest() == saved
    for process in cluster.processes_on(NODES[1]):
        process.kill()
    cluster.daemons[NODES[1]].wait()
    cluster.start_node(NODES[1])
    wait_for(lambda: job.resumed_from() == [stopped, saved], "the job goes on a second time")
    wait_for(lambda: job.newest() > saved, "a checkpoint after the node came back")

    cluster.ask("scancel", job.number)
    wait_for(lambda: cluster.states() == ["idle"] * 2, "the nodes are free")
    steps = [record["step"] for record in tiny_run.metrics(job.save)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_job_that_fails_is_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    job = Job.submit(cluster, tmp_path, "--export=ALL,CONFIG=no_such.toml")
    wait_for(lambda: cluster.job_state(job.number) == "FAILED", "the job fails")
    assert "configuration file no_such.toml cannot be read" in job.log()
    assert "not queued again" in job.log()
