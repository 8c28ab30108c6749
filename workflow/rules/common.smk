# Names that all rules share. Runs whenever a job starts, so it imports no heavy package and reads only caches.
import json
import os
import shlex
import signal
import sys

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from neuropeft import backbones, estimates, grid, layout, methods, numerics
from neuropeft.cohorts import chunks
from neuropeft.cohorts.prepare import prepare
from neuropeft.config.read import load_config, read_yaml
from neuropeft.errors import UserError
from neuropeft.finished import state_folder
from neuropeft.jobs import Jobs
from neuropeft.partial_jobs import PartialJobs
from neuropeft.split_names import FOLD_PART, SPLIT_PATTERN, seed_and_fold, split_name
from neuropeft.subsets import SUBSET_PATTERN
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# SLURM's warning before the time limit goes to all processes of a job. It is for the training alone; Snakemake and the
# shells that lie between it and SLURM would die of it.
if "SLURM_JOB_ID" in os.environ:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# What is written of people is not for everybody on the machine. Jobs run below a process that has read this.
os.umask(0o027 | os.umask(0o027))

# Jobs use this checkout of the package and, unless conda or a container provides one, the Python that runs Snakemake;
# they import nothing that happens to lie in the working directory or at home.
PACKAGE = shlex.quote(f"{workflow.basedir}/workflow")
PREFIX = f"export PYTHONPATH={PACKAGE} PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1; "
if not {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER} & workflow.deployment_settings.deployment_method:
    PROGRAMS = shlex.quote(str(Path(sys.executable).parent))
    PREFIX += f'export PATH={PROGRAMS}:"$PATH"; '
shell.prefix(PREFIX)

RESULTS = Path(layout.RESULTS)
try:
    CONFIG_FILES = workflow.overwrite_configfiles or [Path(workflow.basedir, "config.yaml")]
    if workflow.is_main_process:
        # Snakemake, which has read the files, drops a key that is given twice without a word.
        for file in CONFIG_FILES:
            read_yaml(Path(file))
    CONFIG = load_config(config, base=Path(workflow.basedir), source=Path(CONFIG_FILES[-1]).name)
    JOBS = Jobs(CONFIG, RESULTS)
    if workflow.is_main_process:
        for line in grid.skipped(CONFIG):
            logger.info(f"The grid skips a combination: {line}.")
        # What runs beside the workflow leaves the indexes alone, which the workflow's jobs read: a status, and what
        # Snakemake will refuse, or run dry, since the folder is locked. Targets are told by the command line alone.
        indexed = all(layout.SCANS.at(RESULTS, cohort=cohort).exists() for cohort in JOBS.scanned)
        locked = any(Path(".snakemake/locks").glob("*"))
        if indexed and locked:
            logger.info(
                "Another run has locked this folder: cohorts and labels are as that run has read them."
            )
        if not (indexed and (locked or {"status", "tables_partial"} & set(sys.argv))):
            prepare(CONFIG, RESULTS)
except UserError as error:
    raise WorkflowError(str(error))

PARTIAL = PartialJobs(JOBS)


wildcard_constraints:
    cohort="|".join(JOBS.cohorts),
    chunk="x[01]*",
    pack=r"(fold-\d+_)?x[01]*",
    task="|".join(JOBS.tasks),
    backbone="|".join(CONFIG.backbones),
    pretraining="|".join([*CONFIG.pretraining, grid.NO_PRETRAINING]),
    method="|".join(CONFIG.methods),
    subset=SUBSET_PATTERN,
    split=SPLIT_PATTERN,
    fold_part=FOLD_PART,  # of an encoder: nothing where one serves all folds


def one_of(names):
    """Return the constraint of a wildcard that is one of the names, of which there may be none."""
    return "|".join(names) or "(?!)"
