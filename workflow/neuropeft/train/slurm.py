"""What a training that was told to stop asks of SLURM."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Set
from typing import NoReturn

from neuropeft.train.signals import REQUEUE_EXIT_CODE

SCONTROL_SECONDS = 60


def requeue(signals: Set[signal.Signals]) -> None:
    """Put the SLURM job of this process back into the queue if its training is to go on by itself.

    SIGUSR1 is the warning before the time limit (`--signal` of sbatch): the job is to go on, and being
    requeued by SLURM it does so under the eyes of the Snakemake that submitted it. SIGTERM comes from
    scancel, after which nothing may go on, and from preemption. There SLURM requeues what is still running
    when the grace time ends, but calls a job failed that leaves sooner; so it is requeued here.

    Where that is not possible, one line is said; the job then fails and whoever started it tries again.

    Args:
        signals: Those that have come.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        if signal.SIGTERM in signals and not _is_preempted(job):
            return
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"SLURM job {job} cannot be requeued: {reason}", file=sys.stderr, flush=True)
        return
    print(f"SLURM job {job} is requeued and will go on from its checkpoint", file=sys.stderr, flush=True)


def leave(signals: Set[signal.Signals]) -> NoReturn:
    """End the process with the code that asks to start it again, after `requeue`."""
    requeue(signals)
    raise SystemExit(REQUEUE_EXIT_CODE)


def _is_preempted(job: str) -> bool:
    # PreemptTime is a date once a job of higher priority has claimed its place, else None or absent.
    return re.search(r"\bPreemptTime=\d", _scontrol("show", "job", job)) is not None


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SCONTROL_SECONDS)
    return done.stdout
