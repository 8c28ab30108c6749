"""One training per state folder: a lock that its process holds, and that the system frees when it ends."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from neuropeft.train import slurm
from neuropeft.train.signals import stop_request

LOCK = "lock"
POLL_SECONDS = 0.5  # between looks at a lock that another holds


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Within the context, be the only training that uses the folder `state`; wait until that is so.

    Two meet there when a Snakemake that was killed is started again while its SLURM job still trains. On a
    file system without locks nobody waits, and one line says so.

    Raises:
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, if the process is told to stop while it waits.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / LOCK).open("a+") as file:
        try:
            _take(file, state)
        except OSError as error:
            _say(f"{state} cannot be locked ({error.strerror}): see to it that only one training uses it")
        yield


def held(state: Path) -> bool:
    """Whether a training holds the lock of the folder `state`."""
    try:
        with (state / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no training was ever here, or the file system knows no locks
        return False
    return False


def _take(file: IO[str], state: Path) -> None:
    if not _free(file):
        with stop_request() as stop:
            file.seek(0)
            _say(f"waiting until another training has left {state}: {file.read().strip()}")
            while not _free(file):
                if stop.received:
                    slurm.leave(stop.signals)
                time.sleep(POLL_SECONDS)
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID")
    file.write(f"process {os.getpid()} on {socket.gethostname()}{f', SLURM job {job}' if job else ''}\n")
    file.flush()


def _free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
