"""What the workflow would do, in many settings: linted and dry-run, nothing computed."""

import copy
import os
import re
import shutil

import pytest

from neuropeft.cohorts.chunks import chunk_tables
from neuropeft.cohorts.prepare import prepare
from neuropeft.cohorts.sources import record_chunk
from neuropeft.config.read import load_config
from neuropeft.files import write_tsv
from neuropeft.jobs import Jobs
from workflow_command import (
    ROOT,
    STEPS,
    TINY,
    dry_run,
    empty_cohort,
    jobs_in,
    shown,
    skull_stripping,
    snakemake,
    write_config,
)


def test_lint_is_clean(tmp_path):
    done = snakemake(tmp_path, "--lint", "--configfile", ROOT / "workflow/configs/demo.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_checkout_may_lie_where_a_path_has_a_space(tmp_path):
    checkout = tmp_path / "my checkout"
    shutil.copytree(ROOT / "workflow", checkout / "workflow")
    shutil.copyfile(ROOT / "Snakefile", checkout / "Snakefile")
    run = ["--configfile", checkout / "workflow/configs/demo.yaml", "--cores", "2", "--dry-run"]
    done = snakemake(tmp_path / "results folder", "--snakefile", checkout / "Snakefile", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs_in(done.stdout)["cell"] > 10


def test_a_configfile_replaces_config_yaml_whole(tmp_path):
    jobs = dry_run(tmp_path, TINY)  # merged with config.yaml it would ask for UKB
    assert jobs["cell"] == 10
    assert jobs["finetune"] == 4  # ad and age by scratch and lora
    assert jobs["qc"] == 2
    assert jobs["features"] == 2 * 2  # pretrained and untrained, on SimA and SimB
    assert jobs["probes"] == 2 * 2 * 2  # of both, on ad and age, with each seed


def test_every_zero_shot_cohort_is_predicted_and_settings_reach_the_commands(tmp_path):
    config = copy.deepcopy(TINY)
    # a relative path starts at the Snakefile's folder, wherever the results go
    root = os.path.relpath(empty_cohort(tmp_path / "C", 6), ROOT)
    config["cohorts"]["C"] = {"bids": root, "columns": {"group": "diagnosis"}, "skull_strip": "stripped"}
    config["tasks"]["ad"]["zero_shot"] = ["SimB", "C"]
    config["preprocessing"]["max_excluded_share"] = 0.37
    said = shown(tmp_path, config)
    jobs = jobs_in(said)
    assert jobs["pack_cohort"] == jobs["qc"] == 3
    # ad and age by scratch and lora on their own cohort and SimB, and ad on C too
    assert jobs["predict"] == 4 * 2 + 2
    assert skull_stripping(said) == {"SimA": "deepbet", "SimB": "given", "C": "stripped"}
    assert said.count("--max-excluded-share 0.37 --size 32 ") == 3
    # each of two seeds: ad on SimA, SimB and C, and age on SimA and SimB; pretraining knows no seed
    assert (jobs["check_leaks"], jobs["check_pretraining"]) == (2 * 5, 5)
    stores = [f"results/cohorts/{cohort}/store/scans.tsv" for cohort in ("SimA", "C")]
    for seed in (0, 1):
        split = f"results/splits/ad/seed-{seed}.tsv"
        assert f"--seed {seed} --test 0.3 --validation 0.15 --out {split}" in said
        compared = f"--stored {stores[0]} --labels results/tasks/ad/C.tsv --zero-shot {stores[1]}"
        assert f"check-leaks --split {split} {compared}" in said
        assert (
            "controls --kind regression --size 0 --methods mean sex_site ridge_voxels --targets age"
            f" --split results/splits/age/seed-{seed}.tsv" in said
        )
    trained = re.findall(r"^Reason: Missing output files: results/packs/.*", said, re.MULTILINE)
    assert len(trained) == jobs["finetune"]
    for reason in trained:
        assert set(re.findall(r"leaks/(\S+)-seed-(\d)\.tsv", reason)) == {("SimA", "0"), ("SimA", "1")}


def test_folds(tmp_path):
    config = copy.deepcopy(TINY) | {"splits": {"folds": 2, "validation": 0.15}}
    said = shown(tmp_path, config)
    jobs = jobs_in(said)
    # two seeds and two folds of two tasks, which share the two encoders
    assert (jobs["split"], jobs["controls"], jobs["pretrain"], jobs["cell"]) == (8, 8, 2, 20)
    assert (jobs["check_leaks"], jobs["check_pretraining"]) == (16, 8)
    # A job for each encoder of a method; scratch has one for all folds. All folds are predicted at once.
    assert (jobs["finetune"], jobs["predict"]) == (2 * (2 + 1), 4 * 2)
    assert "--seed 1 --fold 2 --folds 2 --validation 0.15 --out results/splits/ad/seed-1_fold-2.tsv" in said
    assert (
        "controls --kind binary --size 2 --methods mean age_sex ridge_voxels --targets group"
        " --split results/splits/ad/seed-0_fold-1.tsv --subsets shots-1 fraction-100" in said
    )
    encoder = "results/pretraining/mae/vit_xxs/fold-{}/encoder.safetensors"
    for fold in (1, 2):
        held_out = " ".join(f"results/splits/{task}/seed-0_fold-{fold}.tsv" for task in ("ad", "age"))
        state = f"results/_state/pretraining/mae/vit_xxs/fold-{fold}"
        assert re.search(rf"--hold-out {held_out} --people \S+ +--state {state}", said)
        trained = re.findall(
            rf"--splits (\S+fold-\d.tsv) (\S+fold-\d.tsv) --encoder {encoder.format(fold)}", said
        )
        assert len(trained) == 2  # ad and age by lora
        assert {split[-len("fold-1.tsv") :] for pair in trained for split in pair} == {f"fold-{fold}.tsv"}
    assert said.count(f"--encoders {encoder.format(1)} {encoder.format(2)} --store") == 4


def test_an_encoder_of_another_cohort_serves_all_folds(tmp_path):
    config = copy.deepcopy(TINY) | {"splits": {"folds": 2}}
    for task in config["tasks"].values():
        task["zero_shot"] = []
    config["pretraining"]["mae"]["cohort"] = "SimB"
    said = shown(tmp_path, config)
    jobs = jobs_in(said)
    assert (jobs["pretrain"], jobs["check_pretraining"]) == (1, 4)  # each fold of both tasks is tested
    assert "--encoder results/pretraining/mae/vit_xxs/encoder.safetensors" in said


def test_a_changed_raw_scan_is_preprocessed_again_with_its_chunk_only(tmp_path):
    config = copy.deepcopy(TINY)
    root = tmp_path / "C"
    config["cohorts"]["C"] = {"bids": empty_cohort(root, 12), "columns": {"group": "diagnosis"}}
    config["tasks"]["ad"]["zero_shot"] = ["C"]
    wanted = [f"results/cohorts/C/chunks/{chunk}/resample.tsv" for chunk in ("x0", "x1")]

    def run(*options):
        path = write_config(tmp_path, config)
        done = snakemake(tmp_path, "--configfile", path, "--cores", "2", *options, *wanted)
        assert done.returncode == 0, done.stdout + done.stderr
        return jobs_in(done.stdout)

    run()  # empty scans fail at once, and are rows of the tables
    (root / "sub-004/anat/sub-004_T1w.nii.gz").touch()
    assert run("--dry-run") == {}, "only touched"
    root = root.rename(tmp_path / "moved")
    config["cohorts"]["C"]["bids"] = str(root)
    assert run("--dry-run") == {}, "on another disk"
    (root / "sub-003/anat/sub-003_T1w.nii.gz").write_text("another scan")
    assert run("--dry-run") == dict.fromkeys(STEPS, 1)
    run()
    assert run("--dry-run") == {}
    (root / "sub-004/anat/sub-004_T1w.nii.gz").touch()
    config["cohorts"]["C"]["skull_strip"] = "stripped"
    assert run("--dry-run") == dict.fromkeys(STEPS, 2)
    run()
    assert run("--dry-run") == {}, "made once, though a scan was touched as well"


def test_a_corrected_scan_or_mask_is_noticed_by_its_content_without_snakemakes_records(tmp_path):
    config = copy.deepcopy(TINY)
    root, masks = tmp_path / "C", "masks/{subject}.nii.gz"
    masked = {"skull_strip": "given", "brain_masks": masks}
    config["cohorts"]["C"] = {"bids": empty_cohort(root, 12), "columns": {"group": "diagnosis"}} | masked
    config["tasks"]["ad"]["zero_shot"] = ["C"]
    (root / "masks").mkdir()
    for number in range(12):
        (root / f"masks/{number:03}.nii.gz").write_text("a mask")
        (root / f"sub-{number:03}/anat/sub-{number:03}_T1w.nii.gz").write_text("a scan")
    read = load_config(config, ROOT)
    prepare(read, tmp_path / "results").publish(["C"])
    sources = Jobs(read, tmp_path / "results").chunk_sources("C")
    wanted = chunk_tables(tmp_path / "results", "C", "resample")
    for table in wanted:
        write_tsv(table, [], ["scan_id"])
        record_chunk(table, tmp_path / "results/cohorts/C/scans.tsv", sources)

    def again():
        path = write_config(tmp_path, config)
        places = [table.relative_to(tmp_path) for table in wanted]
        done = snakemake(tmp_path, "--configfile", path, "--cores", "2", "--dry-run", *places)
        assert done.returncode == 0, done.stdout + done.stderr
        return jobs_in(done.stdout), done.stderr + done.stdout

    def correct(file, text):
        before = file.stat()
        file.write_text(text)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time

    assert len(wanted) == 2
    assert again()[0] == {}
    (root / "sub-004/anat/sub-004_T1w.nii.gz").touch()
    assert again()[0] == {}, "only touched"
    for file, kind in (("sub-003/anat/sub-003_T1w.nii.gz", "scan"), ("masks/003.nii.gz", "mask")):
        old = (root / file).read_text()
        correct(root / file, old.upper())
        jobs, said = again()
        assert jobs == dict.fromkeys(STEPS, 1), "its chunk alone"
        assert f"the {kind} of sub-003 has changed" in said
        correct(root / file, old)
        assert again()[0] == {}
    config["cohorts"]["C"] |= {"skull_strip": "stripped", "brain_masks": None}
    assert again()[0] == dict.fromkeys(STEPS, 2)


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_profiles_dry_run(tmp_path, profile):
    jobs = dry_run(tmp_path, TINY, "--profile", ROOT / "profiles" / profile)
    assert jobs["cell"] == 10


def test_one_scan_per_job(tmp_path):
    config = copy.deepcopy(TINY)
    config["preprocessing"]["scans_per_job"] = 1
    jobs = dry_run(tmp_path, config)
    assert [jobs[step] for step in STEPS] == [14] * 4


def test_settings_are_searched_once_for_all_cells_of_a_base(tmp_path):
    config = copy.deepcopy(TINY)
    search = {"trials": 3, "trials_per_job": 2, "sampler": "tpe", "ranges": {"lr": [0.3, 1, 3]}}
    config["training"]["search"] = search
    said = shown(tmp_path, config)
    jobs = jobs_in(said)
    assert (jobs["trial"], jobs["choose"]) == (8, 4), "two tasks by two methods, two jobs of trials each"
    places = {f"results/search/{task}/vit_xxs/{start}" for task in ("ad", "age") for start in
              ("mae/lora", "none/scratch")}  # fmt: skip
    trained = re.findall(r"neuropeft trial .*?(--earlier \S+)? +--state .*--table (\S+)", said)
    later = {(f"--earlier {place}/trials-0.tsv", f"{place}/trials-2.tsv") for place in places}
    assert set(trained) == later | {("", f"{place}/trials-0.tsv") for place in places}
    chosen = {f"{place}/chosen.tsv" for place in places}
    assert set(re.findall(r"neuropeft finetune .*--choices (\S+)", said)) == chosen
    assert set(re.findall(r"neuropeft take-cell .*--choices (\S+)", said)) == chosen
    config["training"]["search"] = search | {"sampler": "random"}
    assert "--earlier" not in shown(tmp_path, config), "drawn at random, all at once"
    assert "trial" not in dry_run(tmp_path, TINY)


def test_only_cohorts_and_pretraining_in_use_are_processed(tmp_path):
    config = copy.deepcopy(TINY)
    config["grid"] = [{"tasks": ["age"], "backbones": ["vit_xxs"], "methods": ["scratch"], "seeds": [0]}]
    config["tasks"]["age"]["zero_shot"] = []
    jobs = dry_run(tmp_path, config)
    assert "pretrain" not in jobs
    assert (jobs["pack_cohort"], jobs["finetune"], jobs["predict"]) == (1, 1, 1)


def test_a_table_and_a_multiclass_task(tmp_path):
    rows = ["path,subject,session,label"]
    for number in range(30):
        scan = tmp_path / "scans" / f"{number}.nii"
        scan.parent.mkdir(exist_ok=True)
        scan.touch()
        rows.append(f"{scan},P{number // 2},{number % 2},{'abc'[number // 2 % 3]}")
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    config = copy.deepcopy(TINY)
    config["cohorts"] = {"Local": {"table": str(tmp_path / "scans.csv")}}
    config["tasks"] = {
        "abc": {
            "kind": "multiclass",
            "target": "label",
            "classes": {"first": "a", "second": "b", "third": "c"},
            "train": "Local",
        }
    }
    config["pretraining"]["mae"]["cohort"] = "Local"
    config["grid"] = [
        {
            "tasks": ["abc"],
            "backbones": ["vit_xxs"],
            "methods": ["lora"],
            "pretraining": ["mae"],
            "seeds": [0],
        }
    ]
    assert dry_run(tmp_path, config)["finetune"] == 1
