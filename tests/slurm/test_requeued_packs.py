"""A pack of cells that a real SLURM requeues midway: what is trained is kept, all end as if undisturbed."""

import os
import subprocess
from pathlib import Path

import project
import torch
import yaml
from cluster import Cluster, wait_for
from paced import Paced
from safetensors.torch import load_file

FRACTIONS = (25, 50, 75, 100)
CELLS = [f"ad/vit_xxs/none/scratch/fraction-{fraction}/seed-0" for fraction in FRACTIONS]
LOG = "results/logs/finetune/ad/vit_xxs/none/scratch/x.log"


def make(folder: Path) -> None:
    """Write a grid of four cells of one method, and what they are trained on."""
    folder.mkdir()
    project.make(folder, ("mae",), 2)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"] = {"epochs": 20, "patience": 20, "batch_size": 4, "warmup_epochs": 1}
    block = {"tasks": ["ad"], "backbones": ["vit_xxs"], "methods": ["scratch"], "seeds": [0]}
    config["grid"] = [block | {"fractions": list(FRACTIONS)}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    leaks = folder / "results/splits/ad/leaks/SimA-seed-0.tsv"
    leaks.parent.mkdir()
    leaks.touch()


def delta(folder: Path, cell: str) -> Path:
    return folder / "results" / "cells" / cell / "delta.safetensors"


def test_a_pack_that_is_requeued_keeps_what_it_has_trained(slurm: Cluster, tmp_path: Path) -> None:
    packed, undisturbed = tmp_path / "packed", tmp_path / "undisturbed"
    make(packed)
    make(undisturbed)
    targets = [str(delta(Path(), cell)) for cell in CELLS]
    rules = ("finetune", "cell")
    paced = Paced(tmp_path / "paced", 0.2)
    head = project.Head(packed, targets, paced.python, rules=rules)
    said = lambda: (packed / LOG).read_text() if (packed / LOG).exists() else ""  # noqa: E731
    try:
        wait_for("a cell is trained", lambda: "trained after" in said() or head.process.poll() is not None)
        first = said()
        (job,) = slurm.jobs()
        slurm.call("scancel", "--signal=USR1", job)
        wait_for("it is requeued", lambda: project.restarts(slurm, job) == 1)
        paced.let_go()
        head.finish()
    finally:
        head.kill()
    assert "cell 1/4" in first
    assert "cell 4/4" not in first, "the signal came too late"
    assert "cell 1/4" in said()
    assert "kept after" in said(), "what was trained before the signal is not trained again"
    run = project.command(undisturbed, targets, "--cores", "1", rules=rules)
    subprocess.run(run, cwd=undisturbed, check=True, capture_output=True, env=os.environ | project.ONE_THREAD)
    for cell in CELLS:
        one, other = (load_file(delta(folder, cell)) for folder in (packed, undisturbed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), cell
