"""A Slurm of two nodes on this machine, in a folder of its own: real daemons on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol")
PROGRAMS += ("scancel", "sinfo")
# Addresses, so that each resolves as a host's name would, and Slurm writes 127.0.0.[1-2] for both.
NODES = ("127.0.0.1", "127.0.0.2")
CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
# A job that is queued again waits for as long as its old credential is good, by default 120 s.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmdTimeout=15
KillWait=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmUser=root
SlurmdUser=root
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=500\n"


def reason_to_skip() -> str:
    """Return why there can be no Slurm here; empty if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: on Debian apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started as root"


@dataclass
class Cluster:
    """The daemons by name, and how to ask them."""

    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's programs need to find this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str, **variables: str) -> str:
        """Run one of Slurm's programs and return what it prints."""
        environment = self.environment | variables
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout.strip()

    def start_node(self, name: str) -> None:
        """Start a node, or start it again."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._start(name, "slurmd", "-D", "-N", name)

    def start(self) -> None:
        """Start everything, and wait until both nodes take jobs."""
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._start("munged", "munged", "--foreground", "--force", *self._munge_files())
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged listens")
        self._configure()
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for name in NODES:
            self.start_node(name)
        wait_for(lambda: self.states() == ["idle"] * len(NODES), "the nodes are idle")

    def states(self) -> list[str]:
        """Return what each node is: idle, alloc, down and so on."""
        with contextlib.suppress(AssertionError):  # while slurmctld starts
            return self.ask("sinfo", "--Node", "--noheader", "--format=%t").split()
        return []

    def job_state(self, job: str) -> str:
        """Return what a job is: PENDING, RUNNING, COMPLETED and so on."""
        return self.ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")

    def processes_on(self, node: str) -> list[psutil.Process]:
        """Return all that runs on a node: its daemon, its steps and their tasks."""
        found = [psutil.Process(self.daemons[node].pid)]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == node and self._is_mine(process):
                    found += [process, *(p for p in process.parents() if p.name() == "slurmstepd")]
        return list({process.pid: process for process in found}.values())

    def stop(self) -> None:
        """End all jobs and daemons."""
        for node in NODES:
            for process in self.processes_on(node) if node in self.daemons else ():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        for daemon in self.daemons.values():
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()

    def _is_mine(self, process: psutil.Process) -> bool:
        return process.environ().get("SLURM_CONF") == str(self.folder / "slurm.conf")

    def _munge_files(self) -> Iterator[str]:
        for kind in ("socket", "key-file", "pid-file", "log-file", "seed-file"):
            yield f"--{kind}={self.folder}/munge.{kind.removesuffix('-file')}"

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        control_port, *ports = free_ports(1 + len(NODES))
        text = CONFIGURATION.format(folder=self.folder, host=host, control_port=control_port)
        for name, port in zip(NODES, ports, strict=True):
            text += NODE.format(name=name, host=host, port=port)
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster that is gone at the end, with all its jobs."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def wait_for(is_so, what: str, patience_s: float = 300) -> None:
    """Wait until something is so; what: it in words."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within {patience_s:.0f} s"
        time.sleep(0.2)
