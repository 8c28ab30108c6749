"""The one error a user is meant to read, the fix for a wrong name in it, and what is no fault of the data."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping

DISK = "check its disk, and that it is mounted"
# What a disk, a network or a machine reports, whatever a file holds, and what to do about it.
FAULTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give permission"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (`ulimit -n`)"),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN),
        DISK,
    ),
}


class UserError(Exception):
    """Bad input: one sentence that names the file, row or key and says how to fix it."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the fix for a wrong name: the closest known one, or all of them."""
    names = sorted(known)
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"choose from: {shown}" if names else "there are none"


def known(kind: str, kinds: Mapping[str, str], what: str) -> str:
    """Return what stands for a kind in a table of kinds; `what` is what they are kinds of, for the error.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in kinds:
        raise UserError(f"{what} kind {kind!r} is unknown; give one of {', '.join(kinds)}")
    return kinds[kind]


def fault(error: BaseException, what: str) -> UserError | None:
    """Return what to report if an error is no fault of the data, and the job is to be tried again.

    That is a disk, a network or a machine that fails, too little memory, or a package that is not there.

    Args:
        error: as it was caught; what it was raised from counts too, since libraries hide it.
        what: the scan or file that was worked on.
    """
    # torch and ITK report failed allocations as RuntimeErrors that speak of them.
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("memory|alloc", str(error), re.IGNORECASE)
    ):
        return UserError(f"out of memory at {what}; raise `mem_mb` of this rule")
    if isinstance(error, ImportError):
        return UserError(f"{error}; install neuropeft's dependencies again")
    for reason in _chain(error):
        # A library may look for files that are not there; one that ended the work has gone.
        if not isinstance(reason, OSError):
            continue
        ended = reason is error and (isinstance(reason, FileNotFoundError) or reason.errno)
        if reason.errno in FAULTS or ended:
            said = f"{reason.filename or what}: {reason.strerror or reason} (on {os.uname().nodename})"
            return UserError(f"{said}; {FAULTS.get(reason.errno or 0, DISK)} and run again")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
