"""Pretraining over several nodes: the loss curve of one process, and a warning that reaches all of them."""

import re
from pathlib import Path

import project
import pytest
from cluster import Cluster, wait_for
from paced import Paced

NODES = 2
RESOURCES = ["mpi=srun", f"nodes={NODES}", f"tasks={NODES}", "tasks_per_gpu=0", "gres=gpu:1", "gpu=0"]


def test_two_nodes_follow_the_curve_of_one_process(slurm: Cluster, tmp_path: Path) -> None:
    project.make(tmp_path, ("nodes", "alone"), 300)
    resources = [f"pretrain:{resource}" for resource in RESOURCES]
    # On the command line the profile's whole set-resources is replaced.
    resources += ["pretrain:slurm_partition=gpu", "pretrain:mem_mb=1000", "pretrain:runtime=60"]
    paced = Paced(tmp_path / "paced", 0.2)
    head = project.Head(tmp_path, project.encoders(["nodes"]), paced.python, "--set-resources", *resources)
    try:
        trains = lambda: "step " in project.log(tmp_path, "nodes")  # noqa: E731
        wait_for("it trains", lambda: trains() or head.process.poll() is not None)
        job = project.job_of(slurm, "nodes")
        assert "NumNodes=2" in slurm.call("scontrol", "show", "job", job), head.said()
        slurm.call("scancel", "--signal=USR1", job)
        wait_for("it is requeued", lambda: project.restarts(slurm, job) == 1)
        paced.let_go()
        wait_for("it goes on", lambda: "going on from" in project.log(tmp_path, "nodes"))
        head.finish()
    finally:
        head.kill()
    project.alone(tmp_path, "alone")
    for one, other in zip(
        project.history(tmp_path, "nodes"), project.history(tmp_path, "alone"), strict=True
    ):
        for key in one:
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-3), key
    cost = (project.encoder(tmp_path, "nodes").parent / "cost.json").read_text()
    assert re.search(rf'"processes": {NODES}\b', cost)
