"""A real SLURM (munged, slurmctld, two slurmd) that lives in a folder and listens on loopback only.

It needs root and Debian's packages slurm-wlm and munge. Both nodes are this machine. They claim more cores,
memory and GPUs than it has, so that tests are not shaped by what they run on; the GPUs are character devices
that nothing opens, for which SLURM sets CUDA_VISIBLE_DEVICES as for real ones.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("node1", "node2")
PID_FILES = ("munged.pid", "slurmctld.pid", *(f"slurmd-{node}.pid" for node in NODES))  # as they start
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
START_SECONDS = 60

# cred_expire: a requeued job may start again only after the credentials of its last run have expired, by
# default after two minutes.
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,default_queue_depth=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=7200
KillWait=10
GresTypes=gpu
NodeName=DEFAULT CPUs=16 RealMemory=256000 Gres=gpu:2 State=UNKNOWN
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=DEFAULT Nodes=node[1-2] MaxTime=2-0 PreemptMode=REQUEUE GraceTime=30
PartitionName=cpu PriorityTier=1 Default=YES
PartitionName=gpu PriorityTier=1
PartitionName=short PriorityTier=1 MaxTime=1
PartitionName=urgent PriorityTier=9 PreemptMode=OFF
"""
GRES_CONF = "Name=gpu File=/dev/tty[1-2] Flags=nvidia_gpu_env\n"


class CannotStart(Exception):
    """SLURM cannot be started here; says why."""


@dataclass(frozen=True)
class Cluster:
    """A SLURM that runs; `environment` is what its clients need."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make SLURM's commands talk to this cluster."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def call(self, *command: str) -> str:
        """Run one of SLURM's commands; return what it prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.call("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job)

    def jobs(self) -> list[str]:
        """Return the ids of all jobs that are not over, oldest first."""
        return self.call("squeue", "--noheader", "--format=%i", "--sort=i").split()


def wait_for(what: str, happened: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until `happened()`; fail naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.2)


@contextmanager
def running() -> Iterator[Cluster]:
    """Start a cluster in a new folder under the temporary one; stop it and delete the folder at the end.

    Raises:
        CannotStart: Not root, a package is missing, or a daemon does not come up.
    """
    if os.geteuid() != 0:
        raise CannotStart("SLURM's daemons must be started by root")
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [name for name in programs if shutil.which(name, path=PATH) is None]
    if missing:
        raise CannotStart(f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    try:
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(folder)


def _start(cluster: Cluster) -> None:
    folder = cluster.folder
    for name in ("munge", "state", "bin", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755)
    folder.chmod(0o755)
    for name in ("srun", "scontrol"):
        _wrap(cluster, name)
    host, ports = socket.gethostname().split(".")[0], _free_ports(1 + len(NODES))
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=host, ports=ports))
    (folder / "gres.conf").write_text(GRES_CONF)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    munge = {name: folder / "munge" / name for name in ("socket", "log-file", "seed-file")}
    _daemon(
        cluster, "munged", f"--key-file={key}", f"--pid-file={folder}/munged.pid",
        *(f"--{option}={path}" for option, path in munge.items()),
    )  # fmt: skip
    _daemon(cluster, "slurmctld")
    for node in NODES:
        _daemon(cluster, "slurmd", "-N", node)
    try:
        wait_for("the nodes are idle", lambda: _is_idle(cluster), START_SECONDS)
    except AssertionError as error:
        logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
        raise CannotStart(f"{error}\n{logs}") from error


def _wrap(cluster: Cluster, name: str) -> None:
    # Snakemake's executor inside a job drops SLURM_CONF from the environment of the srun it starts.
    script = cluster.folder / "bin" / name
    configuration = cluster.environment["SLURM_CONF"]
    script.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which(name)} "$@"\n')
    script.chmod(0o755)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _daemon(cluster: Cluster, name: str, *arguments: str) -> None:
    environment = {**os.environ, **cluster.environment, "PATH": PATH}
    done = subprocess.run(
        [name, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise CannotStart(f"{name} does not start: {done.stderr.strip()}")


def _is_idle(cluster: Cluster) -> bool:
    try:
        return cluster.call("sinfo", "--noheader", "--format=%T", "--partition=cpu") == "idle"
    except subprocess.CalledProcessError:
        return False


def _stop(cluster: Cluster) -> None:
    if _is_up(cluster):
        for job in cluster.jobs():
            cluster.call("scancel", job)
        wait_for("no job runs any more", lambda: not cluster.jobs(), 60)
    for name in reversed(PID_FILES):
        pid_file = cluster.folder / name
        if pid_file.exists():
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
            wait_for(f"the process of {name} has ended", lambda pid=pid: _has_ended(pid), 30)
    for pid in _left_by_jobs(cluster):
        os.kill(pid, signal.SIGKILL)


def _left_by_jobs(cluster: Cluster) -> list[int]:
    # proctrack/linuxproc loses sight of a process whose parent has ended; cgroups do not.
    mark, found = f"SLURM_CONF={cluster.folder}/".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    # Nobody may be there to collect the status of a daemon that has ended.
    return stat.rpartition(")")[2].split()[0] == "Z"


def _is_up(cluster: Cluster) -> bool:
    try:
        cluster.call("scontrol", "ping")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False
    return True
