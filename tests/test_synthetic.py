"""Synthetic cohorts: the same whatever makes them, true to their factors, and for pretraining only."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuropeft.cohorts.synthetic import ANATOMY_FACTORS, FACTORS, IMAGE_FACTORS, Person, people
from neuropeft.cohorts.synthetic_brain import CELLS, Brain, paint
from neuropeft.cohorts.synthetic_store import write_synthetic
from neuropeft.config.read import load_config
from neuropeft.errors import UserError
from neuropeft.inputs.t1w.resample import to_model_grid
from neuropeft.publish.cohort_table import cohort_records, cohort_sheet
from neuropeft.records import write_record
from neuropeft.status.stages import Preprocessed, preprocessed
from neuropeft.store import open_store
from workflow_command import TINY, dry_run

SIZE = 32
GREY, WHITE, CSF = range(3)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The stores of four volumes, painted by one process, and of six, by two."""
    folder = tmp_path_factory.mktemp("stores")
    write_synthetic(4, 0, SIZE, folder / "four", processes=1)
    write_synthetic(6, 0, SIZE, folder / "six", processes=2)
    return folder / "four", folder / "six"


@pytest.mark.slow
def test_a_larger_cohort_starts_with_the_smaller_one(stores: tuple[Path, Path]) -> None:
    four, six = (open_store(path) for path in stores)
    assert np.array_equal(four.volumes, six.volumes[:4])
    assert four.rows == six.rows[:4]
    assert np.array_equal(*(np.load(path / "tissue.npy")[:4] for path in stores))
    assert len(set(six.hashes(six.scan_ids))) == 6


def test_another_seed_is_another_cohort() -> None:
    assert [person.factors for person in people(4, 0)] != [person.factors for person in people(4, 1)]


@pytest.mark.slow
def test_a_store_holds_what_models_and_learners_read(stores: tuple[Path, Path]) -> None:
    store = open_store(stores[0])
    assert store.volumes.dtype == np.float16
    assert store.volumes.shape == (4, 1, SIZE, SIZE, SIZE)
    assert abs(store.volumes.astype(float).mean(axis=(1, 2, 3, 4))).max() < 1e-3
    assert store.volumes.astype(float).std(axis=(1, 2, 3, 4)) == pytest.approx(1, abs=1e-3)
    assert set(FACTORS) == {*ANATOMY_FACTORS, *IMAGE_FACTORS} <= set(store.rows[0])
    assert np.isfinite([[float(row[name]) for name in FACTORS] for row in store.rows]).all()
    assert len({row["subject"] for row in store.rows}) == 4


@pytest.mark.slow
def test_shares_of_tissue_lie_where_the_volume_has_its_brain(stores: tuple[Path, Path]) -> None:
    tissue = np.load(stores[0] / "tissue.npy").astype(float)
    assert tissue.shape == (4, 3, CELLS, CELLS, CELLS)
    assert tissue.min() >= 0
    assert tissue.sum(axis=1).max() <= 1.001
    brain = paint(people(1, 0)[0])
    # At 2 * CELLS voxels, a cell is the mean of 2^3 voxels of the same cube.
    mask = _unscaled(brain.image > 0).reshape(CELLS, 2, CELLS, 2, CELLS, 2).mean(axis=(1, 3, 5))
    assert np.abs(tissue[0].sum(axis=0) - mask).max() < 0.1


def _unscaled(mask: np.ndarray) -> np.ndarray:
    """Return the share of a mask in the voxels of a cube, from its z-scores."""
    cube = to_model_grid(mask.astype(np.float32), 2 * CELLS)
    return (cube - cube.min()) / (cube.max() - cube.min())


def changed(person: Person, factor: str, value: float) -> Brain:
    return paint(person._replace(factors={**person.factors, factor: value}))


def middle_csf(brain: Brain) -> float:
    return brain.tissue[CSF, 4:6, 3:7, 4:6].mean()


def temporal_tissue(brain: Brain) -> float:
    return brain.tissue[:2, [3, 6], 5, 2:4].mean()


def measured(name: str) -> Callable[[Brain], float]:
    return lambda brain: brain.measured[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "low", "high", "grows", "shrinks"),
    [
        ("ventricle_mm", -1, 5, middle_csf, measured("white_share")),
        ("ventricle_mm", -1, 5, measured("ventricle_csf_share"), measured("white_share")),
        ("thinning", -0.5, 1, measured("csf_share"), measured("rim_grey_share")),
        ("association_thinning", -0.5, 0.5, measured("csf_share"), measured("rim_grey_share")),
        ("medial_temporal_loss", 0, 0.5, measured("csf_share"), temporal_tissue),
        ("sulcal_opening", 0.2, 1, measured("csf_share"), measured("rim_grey_share")),
        ("white_shift", -0.5, 0.5, measured("white_share"), measured("rim_grey_share")),
        ("rim_csf_mm", 0, 2, measured("csf_share"), measured("rim_grey_share")),
    ],
)
def test_anatomy_does_what_its_name_says(
    factor: str, low: float, high: float, grows: Callable[[Brain], float], shrinks: Callable[[Brain], float]
) -> None:
    (person,) = people(1, 3)
    less, more = changed(person, factor, low), changed(person, factor, high)
    assert grows(more) > grows(less)
    assert shrinks(more) < shrinks(less)


@pytest.mark.parametrize("factor", [name for name in IMAGE_FACTORS if name != "mask_mm"])
def test_the_image_changes_no_anatomy(factor: str) -> None:
    (person,) = people(1, 3)
    one, other = changed(person, factor, 0.5), changed(person, factor, 1.0)
    assert np.array_equal(one.tissue, other.tissue)
    assert one.measured == other.measured
    assert not np.array_equal(one.image, other.image)


@pytest.fixture
def config() -> dict[str, Any]:
    """The tiny benchmark, pretrained on a synthetic cohort."""
    config = copy.deepcopy(TINY)
    config["cohorts"]["Synth"] = {"synthetic": {"volumes": 8}}
    config["pretraining"]["mae"]["cohort"] = "Synth"
    return config


@pytest.mark.parametrize(("key", "value"), [("train", "Synth"), ("zero_shot", ["SimB", "Synth"])])
def test_no_task_is_about_a_synthetic_cohort(config: dict[str, Any], key: str, value: object) -> None:
    config["tasks"]["ad"][key] = value
    with pytest.raises(UserError, match=rf"^[^\n]*`tasks.ad.{key}` names 'Synth', which is synthetic[^\n]*$"):
        load_config(config, None)


def test_a_cohort_is_synthetic_and_nothing_else(config: dict[str, Any]) -> None:
    config["cohorts"]["Synth"]["bids"] = "/data"
    with pytest.raises(UserError, match=r"`cohorts\.Synth`: a cohort needs exactly one of"):
        load_config(config, None)
    config["cohorts"]["Synth"] = {"synthetic": {"volumes": 8}, "columns": {"age": "AGE"}}
    with pytest.raises(UserError, match="neither tables nor skulls: remove `columns`"):
        load_config(config, None)


@pytest.mark.slow
def test_its_jobs_are_one_synthesis_and_the_checks_of_pretraining(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    jobs = dry_run(tmp_path, config)
    assert jobs["synthesize"] == jobs["pretrain"] == 1
    assert jobs["pack_cohort"] == jobs["qc"] == 2
    assert jobs["check_pretraining"] == 4
    assert not (tmp_path / "results/cohorts/Synth").exists(), "there is no index"
    del config["cohorts"]["Synth"]
    config["pretraining"]["mae"]["cohort"] = "SimA"
    assert "synthesize" not in dry_run(tmp_path, config)


def test_status_and_table_call_it_synthetic(tmp_path: Path, config: dict[str, Any]) -> None:
    read = load_config(config, None)
    assert Preprocessed("Synth", 1, 0, 8, 0, False) in list(preprocessed(read, tmp_path))
    store = tmp_path / "cohorts/Synth/store"
    write_synthetic(8, 0, 16, store, processes=1)
    write_record([store / "volumes.npy", store / "scans.tsv"], {})
    assert Preprocessed("Synth", 1, 1, 8, 0, True) in list(preprocessed(read, tmp_path))
    *_, record = cohort_records(read, tmp_path)
    assert (record["cohort"], record["scans"], record["use"]) == ("Synth (synthetic)", 8, "pretraining mae")
    assert "of no real people" in " ".join(cohort_sheet([record]).notes)
