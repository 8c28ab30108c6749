"""The one error a user is meant to read."""


class UserError(Exception):
    """Bad input: one sentence that names the file, row or key and says how to mend it."""
