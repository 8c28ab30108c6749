"""Where encoders come from, in dry runs: trained here, part of the way, from another, or imported."""

import copy
import os
import re
import shutil

from neuropeft import grid
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import load_encoder, save_encoder
from neuropeft.config.read import load_config
from workflow_command import ROOT, TINY, dry_run, jobs_in, shown, snakemake, write_config


def test_weights_from_elsewhere_are_imported_instead_of_trained(tmp_path):
    encoder = vit.build(grid.backbone_spec(load_config(TINY, ROOT), "vit_xxs"))
    save_encoder(tmp_path / "theirs.safetensors", encoder, {})
    config = copy.deepcopy(TINY)
    config["pretraining"] = {"mae": {"weights": str(tmp_path / "theirs.safetensors")}}
    jobs = dry_run(tmp_path, config)
    assert jobs["import_encoder"] == 1
    assert jobs["cell"] == 10
    assert "pretrain" not in jobs
    path, imported = write_config(tmp_path, config), "results/pretraining/mae/vit_xxs/encoder.safetensors"
    done = snakemake(tmp_path, "--configfile", path, "--cores", "1", imported)
    assert done.returncode == 0, done.stdout + done.stderr
    load_encoder(tmp_path / imported, encoder)
    assert bytes(tmp_path) not in (tmp_path / imported).read_bytes(), "no path of this machine"
    shutil.rmtree(tmp_path / ".snakemake")
    for seed, again in ((0, {}), (1, {"import_encoder": 1})):
        if seed:
            encoder.norm.bias.data += 1
        save_encoder(tmp_path / "theirs.safetensors", encoder, {})
        os.utime(tmp_path / "theirs.safetensors", (60, 60))
        done = snakemake(tmp_path, "--configfile", path, "--cores", "1", "--dry-run", imported)
        assert jobs_in(done.stdout) == again


def test_a_start_part_of_the_way_is_taken_from_the_pretraining_that_goes_on(tmp_path):
    config = copy.deepcopy(TINY)
    config["pretraining"]["early"] = {"of": "mae", "percent": 25}
    config["grid"][1]["pretraining"] = ["mae", "early"]
    jobs = dry_run(tmp_path, config)
    assert (jobs["pretrain"], jobs["import_encoder"]) == (1, 1)
    assert jobs["check_pretraining"] == dry_run(tmp_path, TINY)["check_pretraining"]
    config["splits"] = {"folds": 2, "validation": 0.15}
    jobs = dry_run(tmp_path, config)
    assert (jobs["pretrain"], jobs["import_encoder"]) == (2, 2), "one for each fold"


def test_a_pretraining_goes_on_from_another_of_which_there_may_be_folds(tmp_path):
    config = copy.deepcopy(TINY)
    config["pretraining"]["second"] = config["pretraining"]["mae"] | {"start": "mae"}
    for block in config["grid"]:
        block["pretraining"] = ["second"]
    said = shown(tmp_path, config)
    assert jobs_in(said)["pretrain"] == 2
    start = "results/pretraining/mae/vit_xxs/encoder.safetensors"
    assert re.findall(r"neuropeft pretrain .*--start (\S+)", said) == [start]
    config["splits"] = {"folds": 2, "validation": 0.2}
    said = shown(tmp_path, config)
    starts = re.findall(r"neuropeft pretrain .*--start (\S+) .*--out \$\(dirname (\S+)\)", said)
    assert sorted(starts) == [
        tuple(
            f"results/pretraining/{name}/vit_xxs/fold-{fold}/encoder.safetensors"
            for name in ("mae", "second")
        )
        for fold in (1, 2)
    ]
