"""What the README shows is there, and every command is run as it stands, here or by CI."""

import csv
import fnmatch
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import planned
from neuropeft.cohorts.simulate import mask_path, participants, write_scan
from neuropeft.config.read import load_config, read_yaml
from neuropeft.inputs.t1w.ninedof import decompose, load_itk
from neuropeft.inputs.t1w.scan import load_mask, load_scan
from workflow_command import ROOT, TINY, write_config

README = (ROOT / "README.md").read_text()
BY_CI = ("make demo", "make test", "make lint")
FOR_PEOPLE = ("make test-quick", "make validate")  # a part of `make test`, and of what its tests run in small


def blocks(language):
    """Return the README's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands():
    """Return the commands of the README's shell blocks, without their comments."""
    lines = [
        line.split("  #")[0].strip()
        for block in blocks("sh")
        for line in block.replace("\\\n", "").splitlines()
    ]
    return [line for line in lines if line]


def run(command, folder, **variables):
    """Run a command of the README with this Python and with `folder` as its working directory."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "workflow"), **variables}
    return subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_ci_runs_the_make_commands():
    script = (ROOT / ".ci/run").read_text()
    shown = [command for command in commands() if command.startswith("make ")]
    assert {"make demo", "make test"} <= set(shown)
    assert all((command in BY_CI and command in script) or command in FOR_PEOPLE for command in shown)


SNAKEMAKE = [command for command in commands() if "snakemake " in command]


@pytest.mark.parametrize("command", SNAKEMAKE)
def test_snakemake_commands_are_understood(command, tmp_path):
    variables = {}
    while "=" in command.split()[0]:  # IXI_ROOT=... before the command: an empty cohort stands in
        assignment, command = command.split(maxsplit=1)
        variables[assignment.split("=")[0]] = str(tmp_path)
    done = run(f"{command} --dry-run --directory {tmp_path}", ROOT, **variables)
    said = done.stdout + done.stderr
    if variables:
        assert "has no scan" in said, said
    elif "--configfile" in command:
        assert done.returncode == 0, said
    else:  # config.yaml waits for the paths of the paper's cohorts
        assert "`cohorts.UKB.bids` is 'data/UKB', but there is no folder" in said


def test_targets_and_result_files_are_the_workflows(tmp_path, monkeypatch):
    searching = TINY | {"training": TINY["training"] | {"search": {"ranges": {"lr": [0.3, 1.0]}}}}
    (asked,) = [block for text in blocks("yaml") if (block := yaml.safe_load(text).get("analyses"))]
    config = write_config(tmp_path, searching | {"analyses": asked})
    workflow = planned.read(tmp_path, "--configfile", config, plan=True)
    rules = {rule.name for rule in workflow.rules}
    monkeypatch.chdir(ROOT)
    shown = [*(c for c in SNAKEMAKE if c.startswith("snakemake ")), *re.findall("`(snakemake .*?)`", README)]
    targets = {
        target for command in shown for target in planned.options(*shlex.split(command)[1:])[1].targets or ()
    }
    assert {"status", "tables_partial"} <= targets <= rules
    outputs = {file for job in workflow.dag.jobs for file in job.output}
    for path in re.findall(r"`(results/[^`]*\.\w+)`", README.replace("results/README.md", "")):
        assert fnmatch.filter(outputs, re.sub("<.*?>", "*", path)), path


def test_settings_are_understood():
    config = read_yaml(ROOT / "config.yaml")
    for part, entries in yaml.safe_load("".join(blocks("yaml"))).items():
        config[part].update(entries)
    config = load_config(config, None)
    assert (config.cohorts["MyCohort"].columns, config.cohorts["Another"].skull_strip) == (
        {"diagnosis": "DX"},
        "stripped",
    )
    assert (config.tasks["ad"].where, config.tasks["ad"].zero_shot) == ({"site": [1, 2]}, ["OASIS"])
    assert config.imported.keys() == {"theirs"}
    assert {name: (one.kind, one.start) for name, one in config.trained.items()} == {
        "mae_ukb": ("mae", None),
        "factors": ("factors", None),
        "factors_mae": ("mae", "factors"),
    }


def test_files_that_are_shown_exist():
    text = re.sub(r"^```python\n.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)  # files to be added
    shown = re.findall(r"\]\(([^):#]+)\)|[` ]((?:workflow|profiles|envs|benchmarks)/[^`\s]+)", text)
    assert len(shown) > 10
    assert [path for found in shown for path in found if path and not (ROOT / path).exists()] == []


def test_parameter_counts_are_printed(tmp_path):
    (command,) = (command for command in commands() if " params " in command)
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    first = ["backbone", "method", "encoder", "head", "total", "as_published", "published"]
    assert list(rows[0])[:7] == first
    paper = [row for row in rows if row["backbone"].startswith("vit_")]
    assert len(paper) == 10
    assert all(row["as_published"] == row["published"] for row in paper)


def test_the_status_is_printed(tmp_path):
    (command,) = (command for command in commands() if " status " in command)
    done = run(f"{command} --results {tmp_path}", ROOT)
    assert done.returncode == 0, done.stderr
    assert "Cells: task" in done.stdout


def test_the_estimate_is_printed(tmp_path):
    (command,) = (command for command in commands() if " estimate " in command)
    done = run(f"{command} --results {tmp_path}", ROOT)
    assert done.returncode == 0, done.stderr
    assert "An estimate for one A100" in done.stdout


def test_a_whole_head_becomes_a_model_volume(tmp_path):
    (command,) = (command for command in commands() if " preprocess " in command)
    person = participants(1, seed=3, site="A", groups={"CN": 1.0}, age=(40, 60), scans_per_subject=1)[0]
    scan = write_scan(person, tmp_path, effect=1.0).rename(tmp_path / "sub-01_T1w.nii.gz")
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr

    printed = dict(line.split("\t") for line in done.stdout.splitlines())
    assert float(printed["template_correlation"]) > 0.5
    assert float(printed["template_overlap"]) > 0.9
    assert abs(float(printed["shear"])) < 1e-9
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "sub-01_desc-brain_mask.nii.gz",
        "sub-01_desc-qc_T1w.png",
        "sub-01_from-T1w_to-MNI152_mode-image_xfm.txt",
        "sub-01_space-MNI152_desc-model_T1w.npy",
        "sub-01_space-MNI152_desc-preproc_T1w.nii.gz",
    ]
    image = load_scan(scan)
    found = load_mask(out / "sub-01_desc-brain_mask.nii.gz", image) > 0
    truth = load_mask(mask_path(person, tmp_path), image) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
    volume = np.load(out / "sub-01_space-MNI152_desc-model_T1w.npy")
    assert volume.shape == (80, 80, 80)
    assert volume.dtype == np.float16
    assert load_scan(out / "sub-01_space-MNI152_desc-preproc_T1w.nii.gz").shape == (91, 109, 91)
    shear = decompose(load_itk(out / "sub-01_from-T1w_to-MNI152_mode-image_xfm.txt").matrix)["shear"]
    np.testing.assert_allclose(shear, 0, atol=1e-6)


def test_the_verbs_are_a_command_of_their_own(tmp_path):
    done = run(f"neuropeft status --results {tmp_path}", ROOT)
    assert done.returncode == 0, done.stderr
    assert "Cells: task" in done.stdout


def test_other_commands_are_known():
    known = (
        "make ",
        "snakemake ",
        "python -m neuropeft p",
        "python -m neuropeft estimate",
        "python -m neuropeft export",
        "python -m neuropeft status",
        "source .venv/bin/activate",
    )
    assert [c for c in commands() if not c.startswith(known) and "snakemake " not in c] == []
