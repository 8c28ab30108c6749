"""The command that runs the workflow of this checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def snakemake(folder: Path, *arguments: object) -> list[str]:
    """Return the command that runs it, by this Python, with `folder` as its working directory."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return list(map(str, [*command, *arguments]))
