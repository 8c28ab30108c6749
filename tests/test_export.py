"""An exported model: what it says of one scan, when it refuses one, and what that is worth."""

import json
import math

import numpy as np
import pytest
import torch

import tiny_cells
from fabricated_results import small_config
from kinds import INPUTS, SIZE
from neuropeft.cli import main
from neuropeft.config import Config
from neuropeft.config.inputs import Volume
from neuropeft.errors import UserError
from neuropeft.evaluate.calibration import probabilities
from neuropeft.export.card import start_licence
from neuropeft.export.interval import LEVEL, Interval, fit_interval, predicted_class
from neuropeft.export.model import WEIGHTS, Model, outputs_and_features, write_model
from neuropeft.export.network import save_network
from neuropeft.export.reference import away, fit_features, flags, quantiles
from neuropeft.export.scan import predict_scan
from neuropeft.files import write_tsv
from neuropeft.inputs import input_kind, step_of
from neuropeft.inputs.base import Folders, Number
from neuropeft.inputs.qc import OUTLIER
from neuropeft.inputs.steps import run_step
from neuropeft.inputs.store import pack
from neuropeft.store import open_store
from neuropeft.tasks import task_kind
from neuropeft.tasks.base import Run
from neuropeft.train.finetune import make_model

REGRESSION, BINARY, MULTICLASS = (
    task_kind("regression", 0),
    task_kind("binary", 2),
    task_kind("multiclass", 3),
)
RNG = np.random.default_rng(0)


def run(y, score, prior=()):
    y, score = np.asarray(y, float), np.asarray(score, float)
    return Run(tuple(f"{i:05d}" for i in range(len(y))), y, score, np.asarray(prior))


# -- what predictions are worth --------------------------------------------------------------------


def test_an_interval_reaches_as_far_as_the_rank_of_split_conformal():
    found = fit_interval(REGRESSION, run(np.arange(1, 20), np.zeros(19)))
    assert (found.n, found.level, found.largest) == (19, LEVEL, 18)  # the ceil(0.9 * 20)th
    few = fit_interval(REGRESSION, run([1, 2, 3, 4], np.zeros(4)))
    assert (few.level, few.largest) == (0.8, 4), "four subjects promise no more than 4 of 5"


@pytest.mark.parametrize("kind", [REGRESSION, BINARY, MULTICLASS], ids=["regression", "binary", "multiclass"])
def test_intervals_and_sets_hold_as_many_as_they_say(kind):
    def drawn(n):
        if kind is REGRESSION:
            return run(RNG.normal(size=n), np.zeros(n))
        score = RNG.dirichlet(np.ones(kind.size), n)
        y = [RNG.choice(kind.size, p=p) for p in score]
        return run(y, score[:, 1] if kind is BINARY else score, np.full(kind.size, 1 / kind.size))

    inside = [fit_interval(kind, drawn(24)).holds(kind, drawn(40)).mean() for _ in range(60)]
    assert LEVEL - 0.02 < np.mean(inside) < 0.94  # of 24, 23 are within: 0.92 on average


def test_probabilities_of_a_network_that_is_too_sure_are_drawn_together_by_how_sure_it_is():
    chance = RNG.uniform(0.05, 0.95, 3000)
    y = RNG.uniform(size=3000) < chance
    sure = 1 / (1 + ((1 - chance) / chance) ** 3)
    found = fit_interval(BINARY, run(y, sure))
    assert found.temperature == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(probabilities(sure, found.temperature)[:, 1], chance, atol=0.03)
    apart = fit_interval(BINARY, run([0, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]))
    assert apart.temperature == pytest.approx(1, abs=1e-3), "never surer than the network"


def test_a_class_is_predicted_as_the_metrics_take_it():
    assert [predicted_class(np.array([p]), (0.7,)) for p in (0.69, 0.7)] == [0, 1]
    assert predicted_class(np.array([0.5, 0.3, 0.2]), (0.8, 0.3, 0.1)) == 2
    found = fit_interval(BINARY, run([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]))
    assert found.rule == (float(BINARY.rule(run([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]), run([1], [0]))[0]),)


def test_what_has_no_interval_comes_back_from_json_too():
    labels = fit_interval(task_kind("multilabel", 2), run(np.ones((9, 2)), np.ones((9, 2))))
    assert math.isnan(labels.largest)
    assert str(Interval.read(json.loads(json.dumps(labels.stored())))) == str(labels)


def test_the_card_says_whose_the_weights_are_that_a_network_goes_back_to():
    raw = small_config().model_dump(mode="json")
    raw["pretraining"] |= {
        "other": {"weights": "w.pt", "licence": "CC BY 4.0", "citation": "Somebody 2025"},
        "unknown": {"weights": "w.pt"},
        "longer": {"cohort": "ADNI", "steps": 10, "warmup_steps": 1, "start": "other"},
    }
    config = Config.model_validate(raw)
    assert "CC BY 4.0. Cite Somebody 2025." in start_licence(config, config.starts("other"))
    assert "The weights `other`" in start_licence(config, config.starts("longer"))
    assert "state it here" in start_licence(config, config.starts("unknown"))
    assert "made here" in start_licence(config, ["mae"])


# -- what is refused -------------------------------------------------------------------------------


def test_features_that_are_far_from_those_of_training_stand_out():
    features = RNG.normal(size=(60, 20)) @ RNG.normal(size=(20, 20))
    known = fit_features(features[:40])
    held_out = quantiles(known.likeness(features[40:]))
    number = Number("it", -np.inf, np.inf, True)
    far = features[:5] + 10 * features.std(axis=0)
    assert all(away(number, held_out, one) <= OUTLIER for one in known.likeness(features[40:50]))
    assert all(away(number, held_out, one) > OUTLIER for one in known.likeness(far))


def test_a_number_stands_out_of_its_cohort_or_is_implausible_in_any():
    numbers = {"ml": Number("ml", 700, 2200), "fit": Number("fit", 0, 1, True)}
    known = {"ml": quantiles(np.linspace(1300, 1500, 50)), "fit": quantiles(np.linspace(0.5, 0.6, 500))}
    assert len(known["fit"]) == 101, "no value of a large cohort belongs to a person"
    assert flags(numbers, known, {"ml": 1400, "fit": 0.9}) == {}
    assert flags(numbers, known, {"ml": 2100, "fit": 0.1}) == {"ml": False, "fit": False}
    assert flags(numbers, known, {"ml": 2300, "fit": 0.55}) == {"ml": True}


# -- one scan --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of a model of volumes; a raw scan, and what the network says of the scan in its store."""
    work = tmp_path_factory.mktemp("exported")
    suffix, write, settings, _ = INPUTS["volume"]
    rows = []
    for number in (0, 1):
        path = work / f"raw-{number}{suffix}"
        write(path, number)
        row = {"scan_id": f"s{number}", "subject": f"s{number}", "session": "n/a", "path": path}
        rows.append({**row, "size": path.stat().st_size, "mask": "n/a", "mask_size": "n/a", "chunk": "x"})
    write_tsv(work / "scans.tsv", rows, list(rows[0]))
    step, kind = step_of("inputs.volume"), input_kind("volume")
    run_step(step, work / "scans.tsv", "x", Folders(work / "derivatives"), settings, work / "chunk.tsv")
    places = work / "store/volumes.npy", work / "store/scans.tsv"
    pack(kind, [work / "chunk.tsv"], "excluded.tsv", *places, max_excluded_share=0, size=SIZE)
    store = open_store(work / "store")
    backbone = {**tiny_cells.BACKBONE, "image_size": SIZE, "patch_size": 8}
    spec = tiny_cells.cell("regression", {**tiny_cells.LORA}, backbone=backbone)
    network = make_model(spec, None).eval()
    scans = torch.tensor(store.volumes).float()
    with torch.inference_mode():
        is_plain = save_network(work / "model" / WEIGHTS, network, spec, scans)
        both = outputs_and_features(network, scans)
    seen = both[:, 1:].double().numpy()
    apart = np.linalg.norm(seen[1] - seen[0]) / math.sqrt(len(seen[0]))
    near = seen[0] + 0.05 * apart * RNG.normal(size=(40, len(seen[0])))  # so the other scan is far
    features = fit_features(near[:30])
    model = Model(
        **{"spec": spec, "is_plain": is_plain, "offset": [50.0], "scale": 12.0, "names": [], "unit": "years"},
        **{"cohort": "Sim", "simulated": True, "targets": [20.0, 80.0], "told": settings, "size": SIZE},
        input=Volume().model_dump(),
        interval=fit_interval(REGRESSION, run(np.arange(1, 20), np.zeros(19))).stored(),
        qc={name: quantiles([float(row[name]) for row in store.rows]) for name in kind.numbers},
        likeness=quantiles(features.likeness(near[30:])),
    )
    write_model(work / "model", model, features)
    return work, float(both[0, 0]) * 12 + 50, store


def told(exported, capsys, scan, *options):
    """Return what `predict-scan` prints of a scan, by name, and its error."""
    folder = exported[0]
    code = main(["predict-scan", str(folder / scan), "--model", str(folder / "model"), *options])
    printed = capsys.readouterr()
    assert code == (1 if printed.err else 0)
    return dict(line.split("\t") for line in printed.out.splitlines()), printed.err


def test_a_raw_scan_gets_the_number_of_the_scan_in_the_store(exported, capsys):
    found, error = told(exported, capsys, "raw-0.nii.gz")
    assert error == ""
    value, unit = found["simulated"].split()
    assert (unit, float(value)) == ("years", pytest.approx(exported[1], abs=1e-5))
    low, high = float(value) - 18, float(value) + 18
    assert found["interval"] == f"{low:.4g} to {high:.4g} years (90 %, by 19 validation subjects)"
    assert found["qc"] == "no flag"
    assert found["note"] == "Sim is simulated: this says nothing of people"


@pytest.mark.parametrize(
    ("scan", "options", "words"),
    [
        (
            "raw-1.nii.gz",
            (),
            "raw-1.nii.gz is refused: what the network sees of it is unlike the scans of Sim",
        ),
        ("none.nii.gz", (), "none.nii.gz is missing"),
        ("scans.tsv", (), "is not .nii, .nii.gz or .mgz"),
        ("raw-0.nii.gz", ("--skull-strip", "deepbet"), "takes input volume"),
        ("raw-0.nii.gz", ("--mask", "raw-0.nii.gz"), "go together: give both or neither"),
    ],
)
def test_a_scan_that_does_not_fit_is_refused_in_one_line(exported, capsys, scan, options, words):
    found, error = told(exported, capsys, scan, *options)
    assert found == {}
    assert words in error
    assert error.count("\n") == 1


def test_a_scan_that_was_not_prepared_well_is_refused(exported, monkeypatch):
    number = Number("edge of a voxel, mm", 0.05, 2.0)
    monkeypatch.setitem(type(input_kind("volume")).numbers, "voxel_mm", number)
    with pytest.raises(UserError, match=r"edge of a voxel, mm 6\.49 is not plausible"):
        predict_scan(exported[0] / "raw-0.nii.gz", exported[0] / "model")


def test_a_folder_that_holds_no_model_is_named(exported, tmp_path):
    with pytest.raises(UserError, match=f"--model {tmp_path}` is no exported model"):
        predict_scan(exported[0] / "raw-0.nii.gz", tmp_path)
