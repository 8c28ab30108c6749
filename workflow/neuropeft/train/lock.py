"""One training per state folder: a lock that its process holds, and that the system frees when it ends."""

import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuropeft.errors import UserError
from neuropeft.files import sweep
from neuropeft.train import slurm
from neuropeft.train.signals import stop_request

LOCK = "lock"
POLL_SECONDS = 0.5  # between looks at a lock that another holds


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Within the context, be the only training that uses the folder `state`; wait until that is so.

    What killed trainings have left half written there is deleted. Two meet there when a Snakemake that was
    killed is started again while its SLURM job still trains. On a file system without locks nobody waits, and
    one line says so.

    Raises:
        UserError: The lock cannot be opened or is no regular file.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, if the process is told to stop while it waits.
    """
    state.mkdir(parents=True, exist_ok=True)
    file = open_lock(state / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            _take(file, state)
        except OSError as error:
            _say(f"{state} cannot be locked ({error.strerror}): see to it that only one training uses it")
        sweep(state)
        yield
    finally:
        os.close(file)


def held(state: Path) -> bool:
    """Whether a training holds the lock of the folder `state`."""
    try:
        file = open_lock(state / LOCK, os.O_RDONLY)
    except (OSError, UserError):  # no training was ever here
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system knows no locks
        return False
    finally:
        os.close(file)
    return False


def open_lock(path: Path, flags: int) -> int:
    """Open a lock file, without waiting at what only looks like one.

    Raises:
        FileNotFoundError: There is none, and `flags` make none.
        UserError: It cannot be opened or is no regular file.
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}; delete it") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"cannot lock {path}: it is no regular file; delete it")
    return file


def take(file: int) -> bool:
    """Lock an open file and write into it who holds it; whether it was free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    job = os.environ.get("SLURM_JOB_ID")
    holder = f"process {os.getpid()} on {socket.gethostname()}{f', SLURM job {job}' if job else ''}\n"
    os.ftruncate(file, 0)
    os.pwrite(file, holder.encode(), 0)
    return True


def holder(file: int) -> str:
    """Return who has written that they hold a lock."""
    return "".join(filter(str.isprintable, os.pread(file, 200, 0).decode(errors="replace")))


def _take(file: int, state: Path) -> None:
    if take(file):
        return
    with stop_request() as stop:
        _say(f"waiting until another training has left {state}: {holder(file)}")
        while not take(file):
            if stop.received:
                slurm.leave(stop.signals)
            time.sleep(POLL_SECONDS)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
