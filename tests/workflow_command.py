"""The command that runs the workflow of this checkout, what a run has said, and cohorts of empty scans."""

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
STEPS = ("n4_bias_correction", "skull_strip", "register_to_template", "resample_to_template")


def command(folder: Path, *arguments: object) -> list[str]:
    """Return the command that runs it, by this Python, with `folder` as its working directory."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return list(map(str, [*words, *arguments]))


# Half of a dry run is Python's reading of Snakemake. A process that has read it forks one for each run.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["snakemake.cli", "snakemake_executor_plugin_slurm", "pydantic"])


def start(words: Sequence[str], output: Path, errors: Path, there: Path = ROOT) -> ForkServerProcess:
    """Start a `command`, in the folder `there`; what it says goes to two files."""
    process = FORKS.Process(target=_be, args=(words, dict(os.environ), (output, errors), there))
    process.start()
    return process


def _be(words: Sequence[str], environment: Mapping[str, str], said: Sequence[Path], there: Path) -> None:
    """Be the process that a command starts: as `python -m snakemake` is, but for having read Snakemake."""
    for number, file in enumerate(said, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(there)
    _, _, *sys.argv = words  # without the Python and its -m
    from snakemake.cli import main

    main()


def snakemake(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run it with `folder` as its working directory; return the finished process."""
    words = command(folder, *arguments)
    with TemporaryDirectory() as said:
        output, errors = Path(said, "output"), Path(said, "errors")
        process = start(words, output, errors)
        process.join()
        return subprocess.CompletedProcess(
            words, process.exitcode or 0, output.read_text(), errors.read_text()
        )


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write a configuration into `folder`; return its path."""
    path = folder / "config-under-test.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def jobs_in(said: str) -> dict[str, int]:
    """Return the number of jobs of each rule that Snakemake has announced."""
    table = re.findall(r"^(\w+) +(\d+)$", said, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in table if rule != "total"}


def dry_run(folder: Path, config: dict[str, Any], *arguments: object) -> dict[str, int]:
    """Dry-run `config`; return the number of jobs of each rule, empty when there is nothing to do."""
    path = write_config(folder, config)
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return jobs_in(done.stdout)


def shown(folder: Path, config: dict[str, Any]) -> str:
    """Dry-run `config`; return what is said, with the command of every job."""
    path = write_config(folder, config)
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--dry-run", "--printshellcmds")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def skull_stripping(said: str) -> dict[str, str]:
    """Return the methods that the commands which a dry run shows name, by cohort."""
    words = r'inputs\.t1w\.skullstrip .*"skull_strip": "(\S+)".*--derivatives results/derivatives/(\S+)'
    return {cohort: method for method, cohort in re.findall(words, said)}


def empty_cohort(root: Path, subjects: int) -> str:
    """Make a BIDS tree of empty scans whose diagnoses alternate and whose ages grow; return its path."""
    lines = ["participant_id\tage\tsex\tdiagnosis"]
    for number in range(subjects):
        scan = root / f"sub-{number:03}" / "anat" / f"sub-{number:03}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.touch()
        diagnosis = ("CN", "AD", "PD")[number // 2 % 3]
        lines.append(f"sub-{number:03}\t{50 + number}\t{'FM'[number % 2]}\t{diagnosis}")
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return str(root)
