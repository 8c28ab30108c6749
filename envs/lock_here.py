"""Print requirements.lock as this machine takes it: of torch's builds, only the one that pip finds here.

Some indexes and folders offer torch's CPU build. With the hashes of all builds before it, pip would take the
CUDA build all the same, and gigabytes of libraries with it: PyPI tells the hashes of its files, a folder does
not.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"


def hash_found(requirement: str) -> str:
    """Return the SHA-256 of the file that pip would install, as the lock writes it; nothing is installed."""
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    report = ["--dry-run", "--no-deps", "--ignore-installed", "--report", "-", requirement]
    said = subprocess.run([*pip, *report], stdout=subprocess.PIPE, check=True, text=True).stdout
    (package,) = json.loads(said)["install"]
    archive = package["download_info"]["archive_info"]
    # pip before 23.1, such as Debian 12's, has `hash` alone, `sha256=...`, which later ones may drop.
    sha256 = archive["hashes"]["sha256"] if "hashes" in archive else archive["hash"].removeprefix("sha256=")
    return f"--hash=sha256:{sha256}"


def main() -> None:
    """Print the lock; all of torch's builds stay if pip finds one that is not locked, and refuses it."""
    text = LOCK.read_text(encoding="utf-8")
    torch = re.search(r"^(torch==\S+)(?: \\\n +--hash=\S+)+", text, re.MULTILINE)
    if torch is None:
        sys.exit(f"{LOCK} does not lock torch; make it again with `make lock`")
    found = hash_found(torch[1])
    if found in torch[0]:
        text = text.replace(torch[0], f"{torch[1]} \\\n    {found}")
    print(text, end="")


if __name__ == "__main__":
    main()
