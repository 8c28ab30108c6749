"""What Snakemake makes of the workflow and its profiles, asked in this process; it runs nothing."""

import re
import shlex
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path

import pytest
from snakemake.cli import args_to_api, parse_args
from snakemake.jobs import Job
from snakemake.workflow import Workflow
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from workflow_command import ROOT


def options(*arguments: object) -> tuple[ArgumentParser, Namespace]:
    """Return what Snakemake understands of its arguments and of the profile that they name."""
    return parse_args(list(map(str, ("--snakefile", ROOT / "Snakefile", *arguments))))


def read(folder: Path, *arguments: object, plan: bool = False) -> Workflow:
    """Return the workflow that Snakemake has read with these arguments in `folder`, its jobs with `plan`."""
    found, execute = [], Workflow.execute

    def spy(self: Workflow, *settings: object, **named: object) -> object:
        found.append(self)
        return execute(self, *settings, **named) if plan else True

    parser, given = options("--directory", folder, "--cores", "16", "--dry-run", "--quiet", "all", *arguments)
    before = signal.getsignal(signal.SIGTERM)
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workflow, "execute", spy)
        assert args_to_api(given, parser)
    signal.signal(signal.SIGTERM, before)  # or Snakemake's scheduler would go on handling it
    return found[0]


def jobs(folder: Path, *arguments: object) -> list[Job]:
    """Return the jobs of a dry run; to ask them for resources, be in `folder`."""
    return list(read(folder, *arguments, plan=True).dag.jobs)


def submitted(planned: Iterable[Job]) -> set[str]:
    """Return the rules whose jobs are submitted; the others run where Snakemake does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workflow, "local_exec", False)  # a dry run is one
        return {job.rule.name for job in planned if not job.is_local}


def sbatch(job: Job) -> dict[str, str]:
    """Return the options of the command that submits a job, by their names."""
    unasked = dict.fromkeys(
        ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir"), ""
    )
    line = " ".join(shlex.split(get_submit_command(job, unasked) + set_gres_string(job)))
    return dict(re.findall(r" --?([a-z-]+)[ =]([^- ]\S*)", line))  # `--mem 4000`, `--gpus=1`
