"""A GPU of this machine for this process alone, so that two jobs never share one unasked.

Under SLURM, a job that sees no more GPUs than it needs has been given them, and nothing is done. Elsewhere a
job locks a file per GPU, and the kernel drops the lock when the process ends, however it ends.

`python -m neuropeft.train.lease N ARGUMENTS...` holds N GPUs for `python ARGUMENTS...`.
"""

import errno
import fcntl
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neuropeft.errors import UserError

FOLDER = Path("/tmp")  # and not TMPDIR, which two jobs need not share
POLL_SECONDS = 1.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


def lease(gpus: int = 1) -> None:
    """Take `gpus` GPUs until this process ends, and let CUDA see no other; wait while too few are free.

    To be called before CUDA starts. It chooses from CUDA_VISIBLE_DEVICES if that is set. On a machine without
    GPUs, where SLURM has given just so many, and in the processes that torchrun starts (whose parent holds
    the lease), it does nothing.

    Raises:
        UserError: There are fewer GPUs than that.
    """
    if "LOCAL_RANK" in os.environ:
        return
    names = _candidates()
    if not names or ("SLURM_JOB_ID" in os.environ and len(names) <= gpus):
        return
    if len(names) < gpus:
        raise UserError(
            f"{gpus} GPUs are asked for and there are {len(names)} ({','.join(names)}); ask for fewer by "
            f"--set-resources, or let {VISIBLE} list more"
        )
    taken = _take(names, gpus)
    if taken is None:
        print(f"all GPUs ({','.join(names)}) are taken: waiting for {gpus}", file=sys.stderr, flush=True)
    while taken is None:
        time.sleep(POLL_SECONDS)
        taken = _take(names, gpus)
    os.environ[VISIBLE] = ",".join(taken)


def local_gpus() -> list[str]:
    """Return the indices that CUDA gives the GPUs of this machine, or container."""
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _candidates() -> list[str]:
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return local_gpus()
    names = [name.strip() for name in visible.split(",")]
    # CUDA itself stops at the first index that is none, such as -1, by which people hide all GPUs.
    end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:end]


def _take(names: Sequence[str], number: int) -> list[str] | None:
    """Lock `number` of the GPUs; None, and no lock, if fewer are free: half a lease would block others."""
    locks: dict[str, int] = {}
    for name in names:
        if len(locks) < number and (lock := _lock(name)) is not None:
            locks[name] = lock
    if len(locks) == number:
        return list(locks)  # the files stay open, and so the locks held, until the process ends
    for lock in locks.values():
        os.close(lock)
    return None


def _lock(name: str) -> int | None:
    """Return the open and locked file of a GPU, which a program that replaces this one inherits."""
    # Within a SLURM allocation GPUs are numbered anew, so that another allocation's 0 is another GPU.
    place = "-".join(["neuropeft-gpu", *filter(None, [os.environ.get("SLURM_JOB_ID")]), name])
    file = _open(FOLDER / f"{re.sub(r'[^A-Za-z0-9-]', '_', place)}.lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    os.set_inheritable(file, True)
    return file


def _open(path: Path) -> int:
    # Another user's file in a shared folder can be read and locked, but not be opened for writing or by
    # O_CREAT.
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"cannot lock {path}: {os.strerror(error.errno or errno.EIO)}; delete it") from error
    file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    os.fchmod(file, 0o644)  # whatever the umask
    return file


def main(arguments: Sequence[str]) -> None:
    """Replace this process, after it has leased GPUs, by Python on the other arguments."""
    try:
        lease(int(arguments[0]))
    except UserError as error:
        sys.exit(f"neuropeft: {error}")
    os.execv(sys.executable, [sys.executable, *arguments[1:]])


if __name__ == "__main__":
    main(sys.argv[1:])
