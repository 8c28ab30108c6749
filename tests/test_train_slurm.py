"""What a training asks of SLURM, told to a stand-in of scontrol; tests/slurm asks the real one."""

import os
import signal
from pathlib import Path

import pytest

from neuropeft.train import slurm
from neuropeft.train.signals import REQUEUE_EXIT_CODE

SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
[ "$1" = requeue ] && [ -e {folder}/refuse ] && {{ echo "Invalid job id specified" >&2; exit 1; }}
[ "$1" = show ] && cat {folder}/job
exit 0
"""
NOT_PREEMPTED = "JobId=7 JobState=RUNNING\n   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None\n"
PREEMPTED = NOT_PREEMPTED.replace("PreemptTime=None", "PreemptTime=2026-01-01T00:10:00")


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "scontrol"
    script.write_text(SCONTROL.format(folder=tmp_path))
    script.chmod(0o755)
    (tmp_path / "job").write_text(NOT_PREEMPTED)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path


def requeued(scontrol: Path, *signals: signal.Signals) -> bool:
    slurm.requeue(set(signals))
    return was_requeued(scontrol)


def was_requeued(scontrol: Path) -> bool:
    asked = scontrol / "asked"
    return asked.exists() and "requeue 7" in asked.read_text().splitlines()


def test_the_warning_before_the_time_limit_requeues(scontrol: Path, capsys) -> None:
    assert requeued(scontrol, signal.SIGUSR1)
    assert capsys.readouterr().err == "SLURM job 7 is requeued and will go on from its checkpoint\n"


def test_cancelling_does_not_requeue(scontrol: Path) -> None:
    assert not requeued(scontrol, signal.SIGTERM)
    assert not requeued(scontrol, signal.SIGTERM, signal.SIGUSR1)


def test_preemption_requeues(scontrol: Path) -> None:
    (scontrol / "job").write_text(PREEMPTED)
    assert requeued(scontrol, signal.SIGTERM)


def test_who_leaves_between_two_trainings_is_requeued_too(scontrol: Path) -> None:
    with pytest.raises(SystemExit) as left:
        slurm.leave({signal.SIGUSR1})
    assert left.value.code == REQUEUE_EXIT_CODE
    assert was_requeued(scontrol)


def test_outside_of_slurm_nothing_is_asked(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not requeued(scontrol, signal.SIGUSR1)


def test_a_refusal_is_said(scontrol: Path, capsys) -> None:
    (scontrol / "refuse").touch()
    slurm.requeue({signal.SIGUSR1})
    assert capsys.readouterr().err == "SLURM job 7 cannot be requeued: Invalid job id specified\n"
