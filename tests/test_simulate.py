"""The simulated cohort: who takes part, where files go, and whether the planted truth is in the scans."""

import dataclasses
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import planned
from neuropeft.cli import main
from neuropeft.cohorts import phantom, simulate
from neuropeft.cohorts.prepare import prepare
from neuropeft.cohorts.readers import read_cohort
from neuropeft.cohorts.simulate_scan import SCANNERS
from neuropeft.cohorts.simulate_scan import simulate as simulate_with_truth
from neuropeft.config import Cohort
from neuropeft.config.read import load_config
from neuropeft.errors import UserError
from workflow_command import ROOT, TINY, write_config

COHORT: dict[str, Any] = {
    "subjects": 40,
    "seed": 1,
    "site": "A",
    "groups": {"CN": 0.4, "AD": 0.3, "PD": 0.3},
    "age": [50, 85],
    "scans_per_subject": 1,
}
TEMPLATE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])  # 2 mm MNI
HIPPOCAMPUS = (26, -18, -17)  # MNI mm, right-hand side
PUTAMEN = (26, 2, 1)
NIGRA = (10, -17, -12)
ELSEWHERE = ((36, -22, 58), (30, 50, 10), (20, -60, -35))  # motor cortex, frontal lobe, cerebellum


# -- participants ----------------------------------------------------------------------------------


def test_participants_are_a_function_of_the_arguments() -> None:
    rows = simulate.participants(**COHORT)
    assert rows == simulate.participants(**COHORT)
    assert rows[:25] == simulate.participants(**COHORT | {"subjects": 25})
    assert [row["age"] for row in rows] != [
        row["age"] for row in simulate.participants(**COHORT | {"seed": 2})
    ]
    assert len({row["anatomy_seed"] for row in rows}) == len({row["scan_seed"] for row in rows}) == 40
    assert [row["participant_id"] for row in rows[:2]] == ["sub-A001", "sub-A002"]


def test_groups_have_their_shares_and_neither_age_nor_sex_tells_them_apart() -> None:
    rows = simulate.participants(**COHORT)
    assert Counter(row["group"] for row in rows) == {"CN": 16, "AD": 12, "PD": 12}
    ages = {group: [row["age"] for row in rows if row["group"] == group] for group in COHORT["groups"]}
    means = [statistics.mean(values) for values in ages.values()]
    assert max(means) - min(means) < 3
    spreads = [statistics.stdev(values) for values in ages.values()]
    assert max(spreads) - min(spreads) < 1
    assert min(map(min, ages.values())) >= 50
    assert max(map(max, ages.values())) <= 85
    assert all(max(values) - min(values) > 25 for values in ages.values())
    women = Counter(row["group"] for row in rows if row["sex"] == "F")
    assert women == {"CN": 8, "AD": 6, "PD": 6}
    by_sex = [statistics.mean(row["age"] for row in rows if row["sex"] == sex) for sex in "FM"]
    assert abs(by_sex[0] - by_sex[1]) < 3


def test_sessions_of_a_subject_share_its_anatomy_and_grow_older() -> None:
    rows = simulate.participants(**COHORT | {"subjects": 3, "scans_per_subject": 3})
    assert [row["session"] for row in rows] == ["ses-1", "ses-2", "ses-3"] * 3
    first, second = rows[:2]
    assert second["age"] == pytest.approx(first["age"] + simulate.YEARS_BETWEEN_SESSIONS, abs=0.11)
    for key in ("participant_id", "sex", "group", "anatomy_seed"):
        assert first[key] == second[key]
    assert first["scan_seed"] != second["scan_seed"]
    assert simulate.participants(**COHORT)[0]["session"] is None


@pytest.mark.parametrize("change", [{"site": "C"}, {"groups": {"CN": 0.5, "MCI": 0.5}}])
def test_what_cannot_be_simulated_is_refused(change: dict) -> None:
    with pytest.raises(UserError, match=r"'(C|MCI)' does not exist; use one of"):
        simulate.participants(**COHORT | change)


def test_listing_participants_loads_no_image_library() -> None:
    code = (
        "import sys; from neuropeft.cohorts.simulate import participants;"
        "participants(4, 1, 'A', {'CN': 1.0}, (50, 85), 1);"
        "print({'numpy', 'scipy', 'nibabel', 'nilearn', 'pandas', 'torch'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# -- scans -----------------------------------------------------------------------------------------


def person(**changes) -> dict:
    """A participant with some facts changed: the same head, had life gone otherwise."""
    return simulate.participants(**COHORT)[0] | {"age": 60.0, "group": "CN"} | changes


@cache
def scan(effect: float = 1.0, **changes):
    return simulate_with_truth(person(**changes), effect)


@cache
def in_template(effect: float = 1.0, **changes):
    """The scan at 2 mm in MNI space, by its true pose and size."""
    simulated = scan(effect, **changes)
    matrix = np.linalg.inv(simulated.template_from_scan @ simulated.image.affine) @ TEMPLATE
    data = np.asarray(simulated.image.dataobj, dtype=np.float32)
    return ndimage.affine_transform(data, matrix, output_shape=(91, 109, 91), order=1)


def level(volume, centre, half: float = 4.0) -> float:
    """Mean intensity of a cube of `half` mm each way around an MNI coordinate."""
    middle = np.linalg.inv(TEMPLATE)[:3] @ [*centre, 1]
    cube = [slice(round(at - half / 2), round(at + half / 2) + 1) for at in middle]
    return float(volume[tuple(cube)].mean())


def left(point):
    return (-point[0], *point[1:])


def inside(simulated):
    mask = np.asarray(simulated.mask.dataobj) > 0
    return np.asarray(simulated.image.dataobj)[mask].astype(float)


def dark_share(simulated) -> float:
    """Share of the brain mask that looks like CSF."""
    values = inside(simulated)
    return float((values < 0.45 * np.percentile(values, 95)).mean())


def test_a_scan_is_a_function_of_its_participant() -> None:
    one, again = scan(), simulate_with_truth(person(), 1.0)
    assert np.array_equal(one.image.dataobj, again.image.dataobj)
    assert np.array_equal(one.image.affine, again.image.affine)
    assert np.array_equal(simulate.simulate_scan(person(), 1.0).dataobj, one.image.dataobj)
    assert one.image.get_data_dtype() == np.int16
    assert not np.array_equal(one.image.dataobj, scan(scan_seed=5).image.dataobj)


def test_the_brain_has_its_size_and_tissue_its_order() -> None:
    simulated = scan()
    voxel = abs(np.linalg.det(simulated.mask.affine[:3, :3]))
    litres = float(np.asarray(simulated.mask.dataobj).sum() * voxel / 1e6)
    assert 1.2 < litres < 2.0
    volume = in_template()
    white = level(volume, (26, -30, 28), 2)
    assert level(volume, PUTAMEN) < white
    assert level(volume, (8, 2, 16), 1) < 0.6 * white  # lateral ventricle
    column = volume[60, 53, 50:]  # upwards through the vertex
    scalp = np.flatnonzero(column > 0.5 * white)[-1]
    assert scalp > 20, "the outermost bright layer lies above the brain"
    assert column[scalp - 5 : scalp].min() < 0.35 * white, "dark skull below the scalp"
    assert level(volume, (88, -20, 100), 2) < 0.1 * white  # air
    assert level(volume, (0, 38, -70), 2) > 0.2 * white  # face
    assert level(volume, (40, -60, -66), 2) > 0.1 * white  # neck


def test_fluid_lies_around_the_brain_then_skull_with_marrow_then_scalp() -> None:
    head = phantom.template_head()
    above = head.surroundings[60, 57, np.flatnonzero(head.brain[60, 57] > 0.5)[-1] + 1 :]
    layers = [label for label, _ in itertools.groupby(above)]
    shells = ("FLUID", "BONE", "MARROW", "BONE", "FAT", "AIR")
    assert layers == [getattr(phantom, name) for name in shells]


def test_heads_differ_in_size_and_shape() -> None:
    one, other = (scan(group="CN", anatomy_seed=seed) for seed in (1, 3))
    sizes = [np.linalg.norm(each.template_from_scan[:3, :3], axis=1) for each in (one, other)]
    assert np.abs(sizes[0] / sizes[1] - 1).max() > 0.01
    brain = (slice(20, 71), slice(25, 84), slice(20, 60))
    pair = [in_template(group="CN", anatomy_seed=seed)[brain].ravel() for seed in (1, 3)]
    assert np.corrcoef(*pair)[0, 1] < 0.95, "at the same size and in the same pose"


def test_an_image_has_a_bias_field_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.asarray(scan().image.dataobj, dtype=float)
    monkeypatch.setitem(SCANNERS, "A", dataclasses.replace(SCANNERS["A"], bias=0.0, noise=0.0))
    ideal = np.asarray(simulate_with_truth(person(), 1.0).image.dataobj, dtype=float)
    deep = ndimage.binary_erosion(np.asarray(scan().mask.dataobj) > 0, iterations=5)
    bias = ndimage.gaussian_filter(image, 3) / ndimage.gaussian_filter(ideal, 3).clip(1)
    assert 0.05 < bias[deep].std() < 0.3
    noise = (image - ideal * bias)[deep].std() / np.median(ideal[deep])
    assert 0.01 < noise < 0.06


def test_every_scan_has_a_pose_of_its_own() -> None:
    for one, other in ((scan(), scan(scan_seed=5)), (scan(site="B"), scan(site="B", scan_seed=5))):
        turn = one.template_from_scan[:3, :3] @ np.linalg.inv(other.template_from_scan[:3, :3])
        assert np.abs(turn - np.eye(3)).max() > 0.03
        assert not np.allclose(one.image.affine, other.image.affine)
        middles = [np.array(ndimage.center_of_mass(np.asarray(each.mask.dataobj))) for each in (one, other)]
        assert np.abs(middles[0] - middles[1]).max() > 3, "voxels: more than turns alone move it"


def test_women_have_smaller_heads() -> None:
    volumes = {sex: np.asarray(scan(sex=sex).mask.dataobj).sum() for sex in "FM"}
    assert volumes["F"] < 0.95 * volumes["M"]


def test_age_widens_ventricles_and_adds_csf_steadily() -> None:
    ages = (50.0, 60.0, 75.0, 88.0)
    shares = [dark_share(scan(age=age)) for age in ages]
    assert all(younger < older for younger, older in itertools.pairwise(shares))
    assert shares[-1] > 1.2 * shares[0]
    beside_ventricle = [level(in_template(age=age), (22, -38, 20)) for age in ages]
    assert all(younger > older for younger, older in itertools.pairwise(beside_ventricle))
    assert beside_ventricle[-1] < 0.75 * beside_ventricle[0], "thinning alone takes a twentieth"


def test_ad_takes_the_medial_temporal_lobe_and_the_left_more() -> None:
    excess = []
    for anatomy in (1, 3, 4):
        control, patient = (in_template(group=group, anatomy_seed=anatomy) for group in ("CN", "AD"))
        loss = {side: 1 - level(patient, at) / level(control, at) for side, at in both_sides(HIPPOCAMPUS)}
        assert min(loss.values()) > 0.06
        excess.append(loss["left"] - loss["right"])
        for place in (*ELSEWHERE, *map(left, ELSEWHERE)):
            assert level(patient, place) == pytest.approx(level(control, place), rel=0.02)
    assert statistics.mean(excess) > 0.04, "or left and right are swapped"


def test_the_pose_turns_the_head_but_never_mirrors_it() -> None:
    for simulated in (scan(), scan(site="B")):
        linear = simulated.template_from_scan[:3, :3]
        assert np.linalg.det(linear) > 0
        assert np.diag(linear).min() > 0.85  # right stays right, front front, up up


def both_sides(point):
    return (("left", left(point)), ("right", point))


def test_pd_changes_the_deep_grey_matter_a_little() -> None:
    control, patient = in_template(), in_template(group="PD")
    for _, at in both_sides(PUTAMEN):
        assert 1.005 < level(patient, at) / level(control, at) < 1.1
    for _, at in both_sides(NIGRA):
        assert level(patient, at, 1) < 0.95 * level(control, at, 1)
    for place in (HIPPOCAMPUS, *ELSEWHERE):
        assert level(patient, place) == pytest.approx(level(control, place), rel=0.01)


def test_without_effect_the_groups_are_alike_but_ageing_stays() -> None:
    control = scan(effect=0.0)
    for group in ("AD", "PD"):
        assert np.array_equal(scan(effect=0.0, group=group).image.dataobj, control.image.dataobj)
    assert dark_share(scan(effect=0.0, age=88.0)) > dark_share(control)


def test_sites_differ_in_contrast_and_grid() -> None:
    one, other = scan(), scan(site="B")
    assert nib.aff2axcodes(one.image.affine) == ("L", "A", "S")
    assert nib.aff2axcodes(other.image.affine) == ("P", "S", "R")
    assert not np.allclose(one.image.header.get_zooms(), other.image.header.get_zooms())
    # CSF against the median of the brain, which a bias field leaves alone.
    fluid = [np.percentile(inside(each), 2) / np.median(inside(each)) for each in (one, other)]
    assert fluid[1] > fluid[0] + 0.05


# -- files -----------------------------------------------------------------------------------------


def test_a_cohort_on_disk_is_bids_and_says_that_it_is_simulated(tmp_path) -> None:
    rows = simulate.participants(**COHORT | {"subjects": 2, "site": "B", "scans_per_subject": 2})
    simulate.write_cohort_tables(rows, tmp_path)
    path = simulate.write_scan(rows[1], tmp_path, 1.0)
    assert path == simulate.scan_path(rows[1], tmp_path)
    assert path == tmp_path / "sub-B001/ses-2/anat/sub-B001_ses-2_T1w.nii.gz"
    mask = nib.load(simulate.mask_path(rows[1], tmp_path))
    assert mask.get_filename() == str(
        tmp_path / "derivatives/brainmask/sub-B001/ses-2/anat/sub-B001_ses-2_desc-brain_mask.nii.gz"
    )
    scan_on_disk = nib.load(path)
    assert scan_on_disk.shape == mask.shape
    assert np.array_equal(scan_on_disk.affine, mask.affine)
    for folder in (tmp_path, tmp_path / "derivatives/brainmask"):
        assert "simulated" in json.loads((folder / "dataset_description.json").read_text())["Name"].lower()


def test_a_cohort_on_disk_reads_back_as_it_was_listed(tmp_path) -> None:
    rows = simulate.participants(**COHORT | {"subjects": 3, "scans_per_subject": 2})
    simulate.write_cohort_tables(rows, tmp_path)
    for row in rows:
        path = simulate.scan_path(row, tmp_path)
        path.parent.mkdir(parents=True)
        path.touch()
    records = read_cohort("sim", Cohort(bids=str(tmp_path)))
    found = {(record.scan_id, record.labels["group"], float(record.labels["age"])) for record in records}
    assert found == {(simulate.scan_name(row), row["group"], row["age"]) for row in rows}


def test_one_scan_per_subject_needs_no_session(tmp_path) -> None:
    rows = simulate.participants(**COHORT | {"subjects": 1})
    simulate.write_cohort_tables(rows, tmp_path)
    assert simulate.scan_path(rows[0], tmp_path) == tmp_path / "sub-A001/anat/sub-A001_T1w.nii.gz"
    assert not list(tmp_path.rglob("*_sessions.tsv"))


# -- in the workflow -------------------------------------------------------------------------------


def test_the_workflow_simulates_each_scan_once_and_calls_its_cohort_simulated(tmp_path, monkeypatch) -> None:
    rows = ["path,subject,age"]
    for subject, age in (("P1", 50), ("P2", 60)):
        (tmp_path / f"{subject}.nii").touch()
        rows.append(f"{tmp_path / subject}.nii,{subject},{age}")
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    spec = {"subjects": 10, "seed": 1, "site": "A", "effect": 2.5}
    config = TINY | {
        "cohorts": TINY["cohorts"]
        | {"SimA": {"simulated": spec}, "Real": {"table": str(tmp_path / "scans.csv")}},
        "tasks": TINY["tasks"] | {"age": TINY["tasks"]["age"] | {"zero_shot": ["SimB", "Real"]}},
    }
    jobs = planned.jobs(tmp_path, "--configfile", write_config(tmp_path, config))
    prepare(load_config(config, ROOT), tmp_path / "results").publish([])  # as the start of a run does
    monkeypatch.chdir(tmp_path)
    written, titles = [], []
    monkeypatch.setattr(simulate, "write_scan", lambda *given: written.append(given))
    monkeypatch.setattr("neuropeft.inputs.qc.write_qc", lambda *given: titles.append(given[-1]))
    for job in jobs:
        if job.rule.name in ("simulate_scans", "qc"):
            words = shlex.split(job.shellcmd.removeprefix("python -m neuropeft ").split(" > ")[0])
            assert main(words) == 0
    assert sorted((person["participant_id"], str(root), effect) for person, root, effect in written) == [
        *((f"sub-A{number:03}", "results/simulated/SimA", 2.5) for number in range(1, 11)),
        *((f"sub-B{number:03}", "results/simulated/SimB", 1.0) for number in range(1, 5)),
    ]
    assert sorted(titles) == ["Real", "SimA (simulated)", "SimB (simulated)"]
