"""Variants of trained cells: interpolated weights and changed scans, from saved deltas."""

from pathlib import Path

import pytest
import torch

import planned
import tiny_cells
from neuropeft.analyses.interpolate import interpolated
from neuropeft.analyses.perturb import perturbed
from neuropeft.analyses.vary import vary
from neuropeft.backbones.checkpoints import save_encoder
from neuropeft.config.analyses import Analyses
from neuropeft.files import read_tsv
from neuropeft.methods.adapt import delta_state, load_delta
from neuropeft.train.finetune import make_model
from neuropeft.train.predict import cells_shown, predict
from workflow_command import TINY, write_config

SCANS = torch.randn(2, 1, 12, 12, 12, generator=torch.manual_seed(0))
BITFIT, PROMPTS = {"kind": "bitfit"}, {"kind": "vpt_deep", "prompts": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an encoder, and a cell that was trained from it."""
    folder = tmp_path_factory.mktemp("trained")
    network = make_model(tiny_cells.cell(seed=7, method={"kind": "full"}), None)
    save_encoder(folder / "encoder.safetensors", network.backbone, {})
    store = tiny_cells.make_store(folder / "store", scans=40, sessions=2)
    split = tiny_cells.make_split(folder / "seed-0.tsv", store, test=4)
    state = folder / "cell", folder / "state"
    spec = tiny_cells.cell(training={"epochs": 1, "warmup_epochs": 0})
    tiny_cells.finetune(spec, store, split, folder / "encoder.safetensors", *state)
    predict(*given(folder), folder / "plain.tsv", device="cpu")
    return folder


def given(folder: Path) -> tuple:
    deltas, encoders = [folder / "cell/delta.safetensors"], [folder / "encoder.safetensors"]
    return deltas, encoders, folder / "store", [folder / "seed-0.tsv"]


def varied(folder: Path, analysis: str, names: list[str]) -> tuple[list, list]:
    """Return what variants of the cell and what it itself predict."""
    out = folder / "varied.tsv"
    vary(analysis, names, cells_shown(*given(folder), out, device="cpu"), out)
    return read_tsv(folder / "varied.tsv"), read_tsv(folder / "plain.tsv")


def scores(rows: list, method: str = "") -> dict[str, float]:
    return {row["scan_id"]: float(row["score"]) for row in rows if row.get("method", "") == method}


def test_interpolation_begins_at_the_start_and_ends_at_what_was_trained(folder):
    found, plain = varied(folder, "interpolation", ["0", "0.5", "1"])
    ends = scores(found, "0"), scores(found, "1")
    assert ends[1].keys() == {scan for scan in scores(plain) if scan.endswith("ses-1")}, "first scans"
    assert all(score == pytest.approx(scores(plain)[scan], abs=1e-5) for scan, score in ends[1].items())
    assert ends[0] != ends[1]
    assert {row["split"] for row in found} == {"val", "test"}


def test_weights_lie_on_the_line_between_start_and_end(folder):
    spec, encoder = tiny_cells.cell(method=BITFIT), folder / "encoder.safetensors"
    model = make_model(spec, encoder).eval()
    start = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    load_delta(model, {name: value + 1 for name, value in delta_state(model).items()})
    end = model.backbone.state_dict()
    for share, network in zip((0.25, 1), interpolated(model, spec, encoder, [0.25, 1], SCANS), strict=True):
        for name, value in network.backbone.state_dict().items():
            assert torch.allclose(value, start[name] + share * (end[name] - start[name]), atol=1e-6), name
        assert torch.equal(network.head.linear.weight, model.head.linear.weight)


def test_nothing_lies_between_prompts_and_no_prompts(folder):
    spec, encoder = tiny_cells.cell(method=PROMPTS), folder / "encoder.safetensors"
    assert not list(interpolated(make_model(spec, encoder).eval(), spec, encoder, [0, 1], SCANS))


def test_test_scans_are_changed_and_no_others(folder):
    found, plain = varied(folder, "robustness", ["noise-0.001", "noise-3"])
    little, much = scores(found, "noise-0.001"), scores(found, "noise-3")
    tested = {row["scan_id"] for row in plain if row["split"] == "test" and row["session"] == "ses-1"}
    assert little.keys() == much.keys() == tested
    assert all(abs(little[scan] - scores(plain)[scan]) < 0.01 for scan in tested)
    assert any(abs(much[scan] - scores(plain)[scan]) > 0.01 for scan in tested)


@pytest.mark.parametrize("kind", ["noise", "bias", "contrast", "rotate_deg"])
def test_a_change_grows_with_its_strength_and_follows_from_the_scan(kind):
    volume = torch.nn.functional.pad(torch.rand(1, 1, 8, 8, 8) + 1, [2] * 6)
    near, far = (perturbed(volume, kind, strength, "sub-1") for strength in (0.1, 0.5))
    assert 0 < (near - volume).norm() < (far - volume).norm()
    assert torch.equal(near, perturbed(volume, kind, 0.1, "sub-1"))
    assert not torch.equal(near, perturbed(volume, kind, 0.1, "sub-2"))
    if kind != "rotate_deg":
        assert torch.equal(far[volume == 0], volume[volume == 0]), "no background was measured"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"interpolation": [1, 0]}, "`analyses.interpolation` must rise"),
        ({"robustness": {"noise": [0.2, 0.1]}}, "`analyses.robustness.noise` must rise"),
        ({"robustness": {"contrast": [0.5, 2]}}, "`analyses.robustness.contrast` is 2: give at most 1"),
    ],
)
def test_what_cannot_be_asked_is_told(asked, told):
    with pytest.raises(ValueError, match=told):
        Analyses.model_validate(asked)


def test_the_largest_subset_is_asked_and_a_start_is_needed_between_weights(tmp_path):
    asked = {"interpolation": [0, 1], "robustness": {"noise": [0.1]}, "retest": True, "saliency": 2}
    path = write_config(tmp_path, TINY | {"analyses": asked})
    jobs = planned.jobs(tmp_path, "--configfile", path)
    given = {
        (job.wildcards.get("analysis", "saliency"), *(job.wildcards[name] for name in ("task", "method"))): {
            Path(delta).parts[-3] for delta in job.input.deltas
        }
        for job in jobs
        if job.rule.name in ("vary", "saliency")
    }
    every = {(task, method) for task in ("ad", "age") for method in ("lora", "scratch")}
    assert given.keys() == {
        *((analysis, *one) for analysis in ("robustness", "saliency") for one in every),
        *(("interpolation", task, "lora") for task in ("ad", "age")),
    }
    assert set().union(*given.values()) == {"fraction-100"}
    assert sum(job.rule.name == "vary" for job in jobs) == 2 * (4 + 2), "on two cohorts"
