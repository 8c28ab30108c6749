"""How long Snakemake plans at the size of UK Biobank, and how long a job's own start takes then.

    python benchmarks/dry_run.py [--scans 38703] [--cells 5000]

In a temporary folder it makes cohorts of empty files (those of the paper, UKB at its full size; with fewer
scans, of no more subjects than those) and a grid of at least so many cells, dry-runs the workflow, and reads
its files as a job on a node does.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from workflow_command import command  # noqa: E402

# Reads the files as a job does: not the main process, so nothing is indexed.
PARSE = """
import sys, time
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings, WorkflowSettings
from snakemake_interface_executor_plugins.settings import ExecMode
with SnakemakeApi(OutputSettings(dryrun=True)) as api:
    flow = api.workflow(
        resource_settings=ResourceSettings(cores=1),
        config_settings=ConfigSettings(configfiles=[Path(sys.argv[1])]),
        workflow_settings=WorkflowSettings(exec_mode=ExecMode.SUBPROCESS),
        snakefile=Path(sys.argv[2]),
        workdir=Path(sys.argv[3]),
    )
    started = time.monotonic()
    assert not flow._workflow.is_main_process  # made, and the files read, when it is first asked for
    print(time.monotonic() - started)
"""


def main() -> None:
    """Make the cohorts, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scans", type=int, default=38703)
    parser.add_argument("--cells", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.yaml"
        config.write_text(
            yaml.safe_dump(_configuration(folder, options.scans, options.cells), sort_keys=False)
        )
        run = command(folder, "--configfile", config, "--cores", "2", "--dry-run", "--quiet", "rules")
        for label in ("first dry run", "second dry run"):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{label}: {time.monotonic() - started:.1f} s, {processor:.1f} s of processor time, "
                f"at most {after.ru_maxrss / 2**20:.2f} GB"
            )
        print(*re.findall(r"Job stats:.*?total +\d+", done.stdout, re.DOTALL))
        parse = [sys.executable, "-c", PARSE, config, ROOT / "Snakefile", folder]
        done = subprocess.run(list(map(str, parse)), capture_output=True, text=True, check=True)
        print(f"a job reads the workflow's files in {float(done.stdout.split()[-1]):.2f} s")


def _configuration(folder: Path, scans: int, cells: int) -> dict:
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    sizes = {"UKB": (scans, 1), "ADNI": (1188, 4), "OASIS": (600, 1), "Taiwan": (500, 1), "UPenn": (150, 1)}
    for name, (subjects, sessions) in sizes.items():
        config["cohorts"][name]["bids"] = str(_cohort(folder / "data" / name, min(subjects, scans), sessions))
    block = config["grid"][1]
    per_seed = len(block["fractions"]) * (len(block["methods"]) * 2 + 1)
    config["grid"] = [block | {"seeds": list(range(-(-cells // per_seed)))}]
    return config


def _cohort(root: Path, subjects: int, sessions: int) -> Path:
    lines = ["participant_id\tage\tsex\tdiagnosis"]
    for number in range(subjects):
        subject = f"sub-{number:05}"
        lines.append(
            f"{subject}\t{50 + number % 40}\t{'FM'[number % 2]}\t{('CN', 'AD', 'PD')[number // 2 % 3]}"
        )
        for session in range(sessions):
            anat = root / subject / f"ses-{session}" / "anat"
            anat.mkdir(parents=True)
            os.mknod(anat / f"{subject}_ses-{session}_T1w.nii.gz")
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return root


if __name__ == "__main__":
    main()
