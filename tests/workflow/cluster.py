"""A real SLURM of one node on the loopback interface, started from nothing and stopped to nothing: `with Cluster(folder) as slurm`.

It needs root and the programs of Debian's packages slurmctld, slurmd, slurm-client and munge. Key, sockets, state and logs lie in
one folder. Outside it only /etc/slurm/slurm.conf and gres.conf are made, since jobs find their cluster by no other way; where a
machine has its own, nothing is started.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
SYSTEM = Path("/etc/slurm")
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
EnforcePartLimits=ALL
SlurmdParameters=config_overrides
MinJobAge=3600
KillWait=2
ReturnToService=2
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=5,bf_interval=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{cpus} State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


class NoCluster(Exception):
    """There can be no cluster here; says why."""


def why_not() -> str:
    """Why no cluster can be started on this machine; empty if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (make test-slurm does)"
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    own = [str(f) for f in (SYSTEM / "slurm.conf", SYSTEM / "gres.conf") if f.is_symlink() or f.exists()]
    return f"{' and '.join(own)} of another SLURM is there" if own else ""


def free_port() -> int:
    """A port of the loopback interface that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Cluster:
    """A running cluster; partitions cpu and gpu are the same node.

    Args:
        folder: an empty folder for all that it writes.
        cpus: as many jobs of one thread run at a time, and as many GPUs there seem to be (4 at most).
        memory: MiB of the node; jobs that take more than they asked for are killed.
    """

    def __init__(self, folder: Path, cpus: int = 4, memory: int = 12_000) -> None:
        self.folder, self.cpus, self.memory = folder, cpus, memory
        self.started: list[subprocess.Popen[bytes]] = []
        self.linked: list[Path] = []

    def __enter__(self) -> Cluster:
        reason = why_not()
        if reason:
            raise NoCluster(reason)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self) -> None:
        folder = self.folder.resolve()
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        options = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
        options |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
        # --force: the folder lies below one that others may write to, as temporary folders do.
        self._run(
            "munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in options.items())
        )
        self._wait(lambda: (folder / "munge.socket").exists(), "munged")
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            folder=folder,
            host=host,
            controller=free_port(),
            daemon=free_port(),
            cpus=self.cpus,
            memory=self.memory,
        )
        # GPUs in name alone: what a job asks for is counted, and the programs see none.
        gpus = "".join(
            f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "urandom")[: self.cpus]
        )
        SYSTEM.mkdir(exist_ok=True)
        for name, content in (("slurm.conf", text), ("gres.conf", gpus)):
            (folder / name).write_text(content)
            (SYSTEM / name).symlink_to(folder / name)
            self.linked.append(SYSTEM / name)
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D")
        self._wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "slurmd")

    def _run(self, *command: str) -> None:
        log = self.folder / f"{command[0]}.out"
        with log.open("wb") as out:
            self.started.append(
                subprocess.Popen(
                    command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
                )
            )

    def _wait(self, ready, what: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end or any(p.poll() is not None for p in self.started):
                told = "\n".join(f.read_text()[-1500:] for f in sorted(self.folder.glob("*.out")))
                raise NoCluster(f"{what} does not start: {told}")
            time.sleep(0.1)

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        return subprocess.run(command, capture_output=True, text=True).stdout

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Jobs that are not over: id -> (state, what Snakemake says of it: rule and wildcards)."""
        lines = self.ask("squeue", "--noheader", "--format=%i|%T|%k").splitlines()
        return {i: (state, about) for i, state, about in (line.split("|", 2) for line in lines)}

    def submitted(self) -> dict[str, str]:
        """All jobs of the last hour, finished or not: id -> what Snakemake says of it: rules and wildcards."""
        lines = self.ask("squeue", "--noheader", "--states=all", "--format=%i|%k").splitlines()
        return dict(line.split("|", 1) for line in lines)

    def stop(self) -> None:
        """Cancel what runs, then end the daemons that were started here, last first, and remove the links."""
        if len(self.started) == 3:
            for job in self.jobs():
                self.ask("scancel", job)
            end = time.monotonic() + 15
            while self.jobs() and time.monotonic() < end:
                time.sleep(0.2)
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.started.clear()
        for link in self.linked:
            link.unlink(missing_ok=True)
        self.linked.clear()
