"""Processes that end with a test, and a Slurm cluster of one node, where this machine can have one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol", "scancel")
CONFIG = """\
ClusterName=test
FirstJobId={ports[0]}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=small Nodes={host} Default=YES MaxTime=60 State=UP
"""


@contextlib.contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process whose words are kept, and that doesn't outlive a test which fails."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    folder: Path

    def jobs(self) -> list[str]:
        """Every job in the queue, as id and state."""
        return ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()

    def steps(self, job: str) -> list[str]:
        """What still runs of a job on the node; what kills it may hit the job's next start."""
        commands = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                commands.append(file.read_text(errors="replace"))
        return [command for command in commands if command.startswith(f"slurmstepd: [{job}.")]


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for made in sockets:
            made.bind(("127.0.0.1", 0))
        return [made.getsockname()[1] for made in sockets]


def _start(stack: ExitStack, folder: Path, *command: str) -> None:
    """Start a daemon in the foreground, to be ended with the test."""
    log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log)

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _up() -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode == 0 and done.stdout.strip() == "idle"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A controller, a node and munge, started as root in a folder of their own."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {missing[0]}: install Debian's packages slurm-wlm and munge")
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs submitit: pip install 'clframe[slurm]'")
    if os.geteuid() != 0:
        pytest.skip("only root can start Slurm's daemons")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=free_ports(2)))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={folder / 'munge' / name}" for option, name in names.items()]
        _start(stack, folder, "munged", "--foreground", "--force", "--num-threads=2", *files)
        _start(stack, folder, "slurmctld", "-D")
        _start(stack, folder, "slurmd", "-D")
        deadline = time.monotonic() + 30
        while not _up():
            if time.monotonic() > deadline:
                pytest.skip("Slurm's daemons don't come up on this machine")
            time.sleep(0.2)
        yield Cluster(folder)
        subprocess.run(["scancel", "--user=root"], check=False)
        while Cluster(folder).jobs() and time.monotonic() < deadline + 60:
            time.sleep(0.2)
