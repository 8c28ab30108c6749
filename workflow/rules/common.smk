# Names that all rules share. Runs whenever a job starts, so it imports no heavy package and reads only caches.
import json
import os
import shlex
import signal
import sys
import time

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from neuropeft import backbones, contenders, estimates, grid, layout, methods, numerics, pretraining
from neuropeft.cells.outdated import outdated
from neuropeft.cells.status import Cells, state_folder
from neuropeft.cohorts import chunks
from neuropeft.cohorts.prepare import prepare
from neuropeft.config.read import load_config, read_yaml
from neuropeft.errors import UserError
from neuropeft.jobs import Jobs
from neuropeft.partial_jobs import PartialJobs
from neuropeft.score_jobs import ScoreJobs
from neuropeft.searches import Searches
from neuropeft.split_names import FOLD_PART, SPLIT_PATTERN, seed_and_fold, split_name
from neuropeft.subsets import SUBSET_PATTERN
from neuropeft.variant_names import VARIED
from neuropeft.variants import names_of
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


def make_again(found):
    """Have Snakemake make files, {path: reason}, again, as if they were named with --forcerun, and say why."""
    plan = workflow._prepare_dag

    def plan_with_force(*arguments, **named):
        plan(*arguments, **named)
        workflow.dag.forcefiles.update(map(str, found))

    # While it reads this file, Snakemake has no plan that could be told.
    workflow._prepare_dag = plan_with_force
    reasons = list(dict.fromkeys(found.values()))
    for reason in reasons[:20]:
        logger.warning(f"Made again, with what depends on it: {reason}.")
    if len(reasons) > 20:
        logger.warning(f"Made again, with what depends on it: {len(reasons) - 20:,} more results.")


def look_once_a_second(scheduler):
    """Have Snakemake look for jobs that it may start once a second, not once for each job that has finished.

    While jobs wait, each look starts a timer for the next one, beside the timers that run already: after 300 jobs it
    took 40 % of a core.
    """
    again, due = scheduler._schedule_reevalutation, 0.0

    def once(delay):
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + delay
            again(delay)

    scheduler._schedule_reevalutation = once


RESULTS = Path(layout.RESULTS)
try:
    CONFIG_FILES = workflow.overwrite_configfiles or [Path(workflow.basedir, "config.yaml")]
    if workflow.is_main_process:
        # Snakemake, which has read the files, drops a key that is given twice without a word.
        for file in CONFIG_FILES:
            read_yaml(Path(file))
    CONFIG = load_config(config, base=Path(workflow.basedir), source=Path(CONFIG_FILES[-1]).name)
    # Jobs read what the run that they belong to has published.
    TABLES_NOW = prepare(CONFIG, RESULTS) if workflow.is_main_process else None
    JOBS = Jobs(CONFIG, RESULTS, TABLES_NOW)
    CELLS = Cells(CONFIG, RESULTS)
    MADE_AGAIN = {}
    if workflow.is_main_process:
        for line in grid.skipped(CONFIG):
            logger.info(f"The grid skips a combination: {line}.")
        TABLES_NOW.save()
        MADE_AGAIN = outdated(JOBS, CELLS, TABLES_NOW)
        make_again(MADE_AGAIN)
except UserError as error:
    raise WorkflowError(str(error))

PARTIAL = PartialJobs(JOBS, CELLS)
SCORING = ScoreJobs(JOBS)


# It has the lock of the folder, and a dry run does not come here.
onstart:
    look_once_a_second(workflow.scheduler)
    reading = ("list_excluded", "pack_cohort", "qc")  # and whatever goes through chunks of scans
    TABLES_NOW.publish(
        {
            job.wildcards.cohort
            for job in workflow.dag.needrun_jobs()
            if hasattr(job.wildcards, "chunk") or job.rule.name in reading
        }
    )


wildcard_constraints:
    cohort="|".join(JOBS.cohorts),
    chunk="x[01]*",
    first=r"\d+",
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
