"""Pretrainings that a real SLURM stops in every way it can end as those that nobody disturbed."""

import subprocess
from contextlib import suppress
from pathlib import Path

import project
import torch
from cluster import NODES, Cluster, wait_for
from paced import Paced
from safetensors.torch import load_file

STEPS, SECONDS = 200, 1.0  # of a pretraining and of a step, until it is let go: longer than all that happens
DISTURBED = ("limited", "requeued", "cancelled", "preempted")


def training(folder: Path, name: str) -> bool:
    return "step " in project.log(folder, name)


def test_however_it_is_stopped_the_weights_are_the_same(slurm: Cluster, tmp_path: Path) -> None:
    project.make(tmp_path, (*DISTURBED, "undisturbed"), STEPS)
    paced = Paced(tmp_path / "paced", SECONDS)
    head = project.Head(tmp_path, project.encoders(DISTURBED), paced.python)
    try:
        for name in DISTURBED:
            wait_for(f"{name} trains", lambda name=name: training(tmp_path, name) or _ended(head))
            assert head.process.poll() is None, head.said()
        jobs = {name: project.job_of(slurm, name) for name in DISTURBED}

        node = slurm.call("squeue", "--noheader", "--format=%N", "--jobs", jobs["preempted"])
        project.limit(slurm, jobs["limited"], 1)
        slurm.call("scontrol", "requeue", jobs["requeued"])
        slurm.call("scancel", jobs["cancelled"])
        # Last: it takes the node whole, and a neighbour that it preempts takes no orders for a while.
        urgent = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--mem=1000", "--time=5"]
        slurm.call("sbatch", *urgent, "--output=/dev/null", "--wrap", "sleep 1")

        # Requeued it is the same job; cancelled it has ended, and Snakemake submits another.
        for name in ("preempted", "requeued", "limited"):
            wait_for(f"{name} is requeued", lambda name=name: project.restarts(slurm, jobs[name]) > 0)
        project.limit(slurm, jobs["limited"], 60)
        wait_for("it is resubmitted", lambda: project.job_of(slurm, "cancelled") != jobs["cancelled"])
        for name in DISTURBED:
            wait_for(f"{name} goes on", lambda name=name: "going on from" in project.log(tmp_path, name))

        # A node that is drained lets its jobs end; the jobs of one that fails are killed and start elsewhere.
        slurm.call("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=maintenance")
        slurm.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=failure")
        for name in NODES:
            with suppress(subprocess.CalledProcessError):  # a node that has come back by itself
                slurm.call("scontrol", "update", f"NodeName={name}", "State=RESUME")

        head.kill()
        unlock = project.command(tmp_path, project.encoders(DISTURBED), "--unlock")
        subprocess.run(unlock, cwd=tmp_path, check=True, capture_output=True)
        before = {name: project.job_of(slurm, name) for name in DISTURBED}
        head = project.Head(tmp_path, project.encoders(DISTURBED), paced.python)
        for name in DISTURBED:
            wait_for(
                f"{name} is submitted anew while it trains",
                lambda name=name: project.job_of(slurm, name) != before[name] or _ended(head),
            )
        paced.let_go()
        head.finish()
        assert sum(project.restarts(slurm, jobs[name]) for name in DISTURBED) > 3, "the node failed too late"
    finally:
        head.kill()
    assert project.restarts(slurm, jobs["cancelled"]) == 0

    project.alone(tmp_path, "undisturbed")
    expected = load_file(project.encoder(tmp_path, "undisturbed"))
    for name in DISTURBED:
        found = load_file(project.encoder(tmp_path, name))
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        assert project.history(tmp_path, name) == project.history(tmp_path, "undisturbed")


def _ended(head: project.Head) -> bool:
    return head.process.poll() is not None
