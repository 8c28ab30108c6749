"""The one error a user is meant to read, and the mend for a wrong name in it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one sentence that names the file, row or key and says how to mend it."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the mend for a wrong name: the closest known one, or all of them."""
    names = sorted(known)
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"choose from: {shown}" if names else "there are none"
