"""A GPU of this machine for this process alone, so that two jobs never share one unasked.

Under SLURM, a job that sees no more GPUs than it needs has been given them, and nothing is done. Elsewhere a
job locks a file per GPU, which says who holds it. The kernel drops the lock when the process ends, however it
ends.

`python -m neuropeft.train.lease N ARGUMENTS...` holds N GPUs for `python ARGUMENTS...`.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neuropeft.errors import UserError
from neuropeft.train.lock import holder, open_lock, take

FOLDER = Path("/tmp")  # and not TMPDIR, which two jobs need not share
POLL_SECONDS = 1.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


def lease(gpus: int = 1) -> None:
    """Take `gpus` GPUs until this process ends, and let CUDA see no other; wait while too few are free.

    To be called before CUDA starts. It chooses from CUDA_VISIBLE_DEVICES if that is set. On a machine without
    GPUs, where SLURM has given just so many, and in the processes that torchrun starts (whose parent holds
    the lease), it does nothing.

    Raises:
        UserError: There are fewer GPUs than that, or a lock cannot be opened or is no regular file.
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
    taken, holders = _take(names, gpus)
    if not taken:
        print(
            f"all GPUs ({','.join(names)}) are taken: waiting for {gpus} ({'; '.join(holders)})",
            file=sys.stderr,
            flush=True,
        )
    while not taken:
        time.sleep(POLL_SECONDS)
        taken, _ = _take(names, gpus)
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


def _take(names: Sequence[str], number: int) -> tuple[list[str], list[str]]:
    """Lock `number` of the GPUs, or none if fewer are free: half a lease would block others.

    Returns:
        The GPUs, and who holds others.
    """
    locks: dict[str, int] = {}
    holders = []
    for name in names:
        if len(locks) == number:
            break
        lock = _open(name)
        if take(lock):
            locks[name] = lock
        else:
            holders.append(f"{name}: {holder(lock)}")
            os.close(lock)
    if len(locks) == number:
        return list(locks), holders  # the files stay open, and so the locks held, until the process ends
    for lock in locks.values():
        os.close(lock)
    return [], holders


def _open(name: str) -> int:
    """Return the open lock of a GPU, which a program that replaces this one inherits."""
    # Within a SLURM allocation GPUs are numbered anew, so that another allocation's 0 is another GPU.
    place = "-".join(["neuropeft-gpu", *filter(None, [os.environ.get("SLURM_JOB_ID")]), name])
    path = FOLDER / f"{re.sub(r'[^A-Za-z0-9-]', '_', place)}.lock"
    try:
        file = open_lock(path, os.O_RDWR)  # not O_CREAT, which another user's file in a shared folder forbids
    except FileNotFoundError:
        file = open_lock(path, os.O_RDWR | os.O_CREAT)
        os.fchmod(file, 0o666)  # whatever the umask: who holds it next, of whatever user, writes so into it
    os.set_inheritable(file, True)
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
