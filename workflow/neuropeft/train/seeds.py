"""Seeds of one run for many purposes; without torch, for those who only ask which scans a run uses."""

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """Return a seed for one `purpose` (such as "order", pass); other purposes get unrelated seeds."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
