import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import tiny_cells
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import read_tensors, save_encoder
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.methods.adapt import load_delta
from neuropeft.store import open_store
from neuropeft.subsets import fraction
from neuropeft.train.finetune import make_model
from neuropeft.train.predict import predict

HEAD = ["subset", "seed", "fold", "split", "scan_id", "subject", "session", "y"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tiny_cells.make_store(tmp_path / "store", scans=40, sessions=2)


def trained(
    store: Path, kind: str = "binary", percent: int = 100, seed: int = 0, **split
) -> tuple[Path, Path]:
    folder = store.parent / f"{kind}-{percent}-{seed}"
    path = tiny_cells.make_split(store.parent / f"seed-{seed}.tsv", store, **split)
    spec = tiny_cells.cell(kind, subset=str(fraction(percent)), seed=seed)
    tiny_cells.finetune(spec, store, path, None, folder, store.parent / "state")
    return folder / "delta.safetensors", path


def predicted(store: Path, deltas: list[Path], subjects: list[Path]) -> list[dict[str, str]]:
    out = store.parent / "predictions.tsv"
    predict(deltas, [], store, subjects, out, device="cpu")
    return read_tsv(out)


def outputs_of(store: Path, delta: Path, kind: str, scans: list[str]) -> torch.Tensor:
    """Predict scan by scan, the plain way."""
    model = make_model(tiny_cells.cell(kind), None).eval()
    # What LoRA leaves frozen came from the cell's seed here, as no encoder was given.
    load_delta(model, read_tensors(delta)[0])
    opened = open_store(store)
    volumes = [torch.from_numpy(opened.volumes[opened.index_of(scan)].astype("float32")) for scan in scans]
    with torch.no_grad():
        return torch.cat([model(volume[None]) for volume in volumes])


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tiny_cells,
        "cell",
        lambda *a, plain=tiny_cells.cell, **k: plain(*a, **({"method": {"kind": "full"}} | k)),
    )


def test_every_scan_of_validation_and_test_subjects_per_delta(store: Path, monkeypatch) -> None:
    full(monkeypatch)
    cells = [trained(store, percent=percent) for percent in (50, 100)]
    other, split = trained(store, seed=1, validation=4)
    table = predicted(store, [*(delta for delta, _ in cells), other], [cells[0][1], split])
    assert list(table[0]) == [*HEAD, "score"]
    counts = {}
    for row in table:
        key = (row["subset"], row["seed"], row["split"])
        counts[key] = counts.get(key, 0) + 1
        assert row["session"] in ("ses-1", "ses-2")
    sizes = {
        ("fraction-50", "0"): 3,
        ("fraction-100", "0"): 6,
        ("fraction-100", "1"): 4,
    }  # subjects, of two scans each
    expected = {(*cell, "val"): 2 * size for cell, size in sizes.items()}
    expected |= {(*cell, "test"): 4 for cell in sizes}
    assert counts == expected


def test_scores_are_probabilities_of_the_plain_forward_pass(store: Path, monkeypatch) -> None:
    full(monkeypatch)
    cells = {f"fraction-{percent}": trained(store, percent=percent) for percent in (50, 100)}
    table = predicted(store, [delta for delta, _ in cells.values()], [cells["fraction-100"][1]])
    for subset, (delta, _) in cells.items():
        rows = [row for row in table if row["subset"] == subset]
        outputs = outputs_of(store, delta, "binary", [row["scan_id"] for row in rows])
        outputs += json.loads(read_tensors(delta)[1]["offset"])[0]
        scores = [float(row["score"]) for row in rows]
        assert scores == pytest.approx(outputs.sigmoid()[:, 0].tolist(), abs=1e-5)


def test_regression_is_in_the_targets_unit(store: Path, monkeypatch) -> None:
    full(monkeypatch)
    delta, split = trained(store, "regression", regression=True)
    table = predicted(store, [delta], [split])
    outputs = outputs_of(store, delta, "regression", [row["scan_id"] for row in table])[:, 0]
    metadata = read_tensors(delta)[1]
    values = outputs * float(metadata["scale"]) + json.loads(metadata["offset"])[0]
    assert [float(row["score"]) for row in table] == pytest.approx(values.tolist(), abs=1e-3)


def test_multiclass_has_a_score_per_class(store: Path, monkeypatch) -> None:
    full(monkeypatch)
    delta, split = trained(store, "multiclass", classes=3)
    table = predicted(store, [delta], [split])
    names = [f"{name}_{k}" for name in ("score", "prior") for k in range(3)]
    assert list(table[0])[len(HEAD) :] == names
    trained_on = Counter(row["y"] for row in read_tsv(split) if row["side"] == "train")
    prior = [float(table[0][f"prior_{k}"]) for k in range(3)]
    assert prior == pytest.approx([trained_on[str(k)] / trained_on.total() for k in range(3)])
    assert sum(float(table[0][f"score_{i}"]) for i in range(3)) == pytest.approx(1, abs=1e-5)


def test_a_zero_shot_cohort_is_predicted_whole_with_every_delta(store: Path, monkeypatch) -> None:
    full(monkeypatch)
    deltas = [trained(store, seed=seed)[0] for seed in (0, 1)]
    elsewhere = tiny_cells.make_store(store.parent / "elsewhere", scans=6, sessions=2)
    labels = store.parent / "labels.tsv"
    rows = [row | {"y": 1} for row in read_tsv(elsewhere / "scans.tsv")]
    absent = {"scan_id": "sub-900", "subject": "sub-900", "session": "n/a", "y": 0}
    write_tsv(labels, [*rows, absent], ["scan_id", "subject", "session", "y", "sex", "age"])
    table = predicted(elsewhere, deltas, [labels])
    assert {(row["split"], row["y"]) for row in table} == {("zero-shot", "1")}
    everybody = [f"sub-00{subject}" for subject in range(3) for _session in range(2)]
    assert [row["subject"] for row in table] == everybody * 2


def test_each_fold_is_predicted_from_its_own_encoder_and_a_wrong_one_is_refused(store: Path) -> None:
    encoders, deltas, splits = [], [], []
    for fold in (1, 2):
        encoders.append(store.parent / f"fold-{fold}" / "encoder.safetensors")
        torch.manual_seed(fold)
        save_encoder(encoders[-1], vit.build(tiny_cells.BACKBONE), {})
        splits.append(tiny_cells.make_split(store.parent / f"seed-0_fold-{fold}.tsv", store, test=2 + fold))
        out = store.parent / f"cell-{fold}"
        spec = tiny_cells.cell(fold=fold)
        tiny_cells.finetune(spec, store, splits[-1], encoders[-1], out, store.parent / "state")
        deltas.append(out / "delta.safetensors")
    out = store.parent / "predictions.tsv"
    predict(deltas, encoders[::-1], store, splits, out, device="cpu")
    table = read_tsv(out)
    tested = Counter(row["fold"] for row in table if row["split"] == "test")
    assert tested == {"1": 2 * 3, "2": 2 * 4}
    for fold, encoder, delta in zip("12", encoders, deltas, strict=True):
        alone = store.parent / "alone.tsv"
        predict([delta], [encoder], store, splits, alone, device="cpu")
        assert read_tsv(alone) == [row for row in table if row["fold"] == fold]
    words = (
        r"cell-1/delta.safetensors was not trained from any of the encoders given \(.*fold-2.*\); give the"
    )
    for given in ([encoders[1]], []):
        with pytest.raises(UserError, match=words if given else r"encoders given \(none\)"):
            predict(deltas[:1], given, store, splits, out, device="cpu")


def test_mistakes_are_named(store: Path, monkeypatch) -> None:
    full(monkeypatch)
    delta, split = trained(store)
    regression, _ = trained(store, "regression", seed=2, regression=True)
    with pytest.raises(UserError, match="another task, backbone or method"):
        predicted(store, [delta, regression], [split, store.parent / "seed-2.tsv"])
    with pytest.raises(UserError, match=r"trained on the split seed-2, which is not given; add seed-2\.tsv"):
        predicted(store, [regression], [split])
    renamed = split.rename(split.with_name("split.tsv"))
    with pytest.raises(UserError, match=r"call it seed-<number>\.tsv"):
        predicted(store, [delta], [renamed])


def test_methods_on_random_weights_are_predicted_by_the_weights_that_they_were_trained_on(
    store: Path,
) -> None:
    """What LoRA leaves frozen of an untrained backbone is no part of the delta."""
    cells = [trained(store, "regression", seed=seed, regression=True) for seed in (0, 1)]
    torch.manual_seed(99)  # whatever was drawn before
    table = predicted(store, [delta for delta, _ in cells], [split for _, split in cells])
    for seed, (delta, _) in enumerate(cells):
        first = {
            row["subject"]: row
            for row in sorted(table, key=lambda row: row["session"], reverse=True)
            if (row["seed"], row["split"]) == (str(seed), "val")
        }
        errors = [abs(float(row["score"]) - float(row["y"])) for row in first.values()]
        best = str(tiny_cells.read_cost(delta.parent)["best_step"])
        (row,) = (row for row in tiny_cells.read_history(delta.parent) if row["step"] == best)
        validated = float(row["val_metric"])
        assert sum(errors) / len(errors) == pytest.approx(validated, rel=1e-3)


def test_what_a_delta_was_not_trained_with_is_refused(store: Path) -> None:
    delta, split = trained(store)
    assert predicted(store, [delta], [split])
    other = tiny_cells.make_split(store.parent / "other" / split.name, store, validation=7)
    with pytest.raises(UserError, match="trained with other split and other volumes than those of"):
        predicted(store, [delta], [other])
    again = tiny_cells.make_store(store.parent / "again", scans=40, sessions=2, seed=1)
    with pytest.raises(UserError, match="trained with other volumes than those of"):
        predicted(again, [delta], [split])
    content = bytearray(delta.read_bytes())
    content[-1] ^= 1
    delta.write_bytes(content)
    with pytest.raises(UserError, match=r"delta\.safetensors is damaged"):
        predicted(store, [delta], [split])
