"""Segmentation: regions, how they are compared, decoders, patches, training and figures."""

import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

import tiny_cells
from neuropeft import grid, layout
from neuropeft.backbones.base import InputSpec
from neuropeft.backbones.decoders import build_predictor
from neuropeft.config import Config, SegmentationTask
from neuropeft.contenders import contenders
from neuropeft.evaluate.scores import Score
from neuropeft.files import read_tsv, write_tsv
from neuropeft.publish.segmentations import draw_segmentations
from neuropeft.store import open_store
from neuropeft.subsets import WHOLE
from neuropeft.tasks import kind_of, of_spec
from neuropeft.tasks.overlap import overlap
from neuropeft.train.dense import patches, whole_outputs
from neuropeft.train.predict import predict
from neuropeft.train.sources import data_sources
from scans import save
from workflow_command import ROOT

TASK = SegmentationTask(kind="segmentation", train="C", classes={"rim": 1, "core": 4})


def segmentation(**changes):
    """Return a kind of task whose settings are those of TASK but for some."""
    settings = TASK.model_dump(exclude_unset=True) | changes
    return of_spec(SegmentationTask.model_validate(settings).spec("t"))


def test_regions_may_hold_one_another_and_are_painted_from_the_outside():
    kind = segmentation(classes={}, regions={"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]})
    labels = torch.tensor([[0, 1, 2, 4]])
    masks = kind.masks(labels)
    assert masks.tolist() == [[[False, True, True, True], [False, True, False, True], [False] * 3 + [True]]]
    assert kind.outputs == 3
    assert kind.label_map(masks[0].numpy().astype(np.float32)).tolist() == labels[0].tolist()
    classes = segmentation()
    assert classes.outputs == 3
    assert classes.label_map(np.array([[0.2, 0.5, 0.3], [0.2, 0.2, 0.6]])).tolist() == [0, 1, 4]


@pytest.mark.parametrize("nested", [False, True])
def test_a_head_starts_from_how_often_regions_are(nested):
    kind = segmentation(classes={}, regions={"all": [1, 4], "core": [4]}) if nested else segmentation()
    shares = torch.tensor([0.02, 0.001])
    model = build_predictor(tiny_cells.BACKBONE, kind.outputs)
    model.start_at(kind.prior_logits(shares))
    torch.testing.assert_close(kind.scores(model.head.classify.bias[None], (), 1.0)[0], shares)


@pytest.mark.parametrize("nested", [False, True])
def test_the_loss_is_each_scans_own_and_falls_to_nothing_where_all_is_right(nested):
    kind = segmentation(classes={}, regions={"all": [1, 4], "core": [4]}) if nested else segmentation()
    labels = torch.zeros(2, 12, 12, 12, dtype=torch.uint8)
    for of_scan, start in zip(labels, (1, 3), strict=True):
        of_scan[start : start + 7, 2:9, 3:9], of_scan[4:6, 4:7, 5:8] = 1, 4
    goal = kind.objective(np.array(["sub-a", "sub-b"]), [1.0, 1.0], "cell")
    masks = kind.masks(labels).float()
    right = masks if nested else torch.cat([1 - masks.sum(1, keepdim=True), masks], 1)
    wrong = torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    assert goal.loss(40 * right - 20, labels).tolist() == pytest.approx([0, 0], abs=1e-3)
    losses = goal.loss(wrong, labels)
    assert (losses > 1).all()
    torch.testing.assert_close(goal.loss(wrong[:1], labels[:1]), losses[:1])


def test_what_an_empty_region_counts_is_stated():
    nothing, something = np.zeros((6, 8, 8), bool), np.zeros((6, 8, 8), bool)
    something[2:4, 2:5, 2:5] = True
    assert overlap(nothing, nothing, (1, 1, 1), 1.0) == (1, 0, 1)
    for one, other in ((nothing, something), (something, nothing)):
        assert overlap(one, other, (2, 1, 1), 1.0) == (0, pytest.approx(np.sqrt(12**2 + 8**2 + 8**2)), 0)
    assert overlap(something, something, (2, 1, 1), 1.0) == (1, 0, 1)
    moved = np.roll(something, 1, axis=0)  # by 3 mm, of which half of the box is left
    dice, hd95, nsd = overlap(moved, something, (3, 1, 1), 1.0)
    assert dice == pytest.approx(0.5)
    assert hd95 == pytest.approx(3)
    assert nsd < 1
    assert overlap(moved, something, (3, 1, 1), 3.0).nsd == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": {}}, "either `classes` or `regions`"),
        ({"classes": {"a": [1, 2], "b": 2}}, "classes.a"),
        ({"classes": {}, "regions": {"a": [1], "b": [1, 2]}}, "regions.a"),
    ],
)
def test_regions_that_cannot_be_told_apart_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        segmentation(**settings)


SEGMENTS = {
    "cohorts": {"Skin": {"table": "images.csv", "input": {"kind": "image", "labels": [255]}}},
    "tasks": {
        "lesion": {"kind": "segmentation", "classes": {"lesion": 255}, "train": "Skin", "distances": "pixels"}
    },
    "backbones": {
        kind: {"kind": kind, "width": 48, "depth": 1, "heads": 4, "decoder": {"depth": 1, "heads": 4}}
        for kind in ("vit_2d", "vit_slices")
    }
    | {"resnet50_2d": {"kind": "resnet50_2d"}},
    "methods": {"scratch": {"kind": "scratch", "lr": 1e-3}},
    "grid": [
        {"tasks": ["lesion"], "backbones": ["vit_2d", "resnet50_2d"], "methods": ["scratch"], "seeds": [0]}
    ],
}


def with_task(**changes):
    """Return the configuration SEGMENTS, its task changed."""
    raw = json.loads(json.dumps(SEGMENTS))
    raw["tasks"]["lesion"] |= changes
    return Config.model_validate(raw)


def test_distances_in_images_are_in_pixels():
    with pytest.raises(ValidationError, match=r"`tasks.lesion.distances` is mm, .* set it to pixels"):
        with_task(distances="mm")
    labels = [metric.label for metric in kind_of(with_task().tasks["lesion"]).metrics]
    assert labels == ["Dice", "HD95 (pixels)", "surface Dice"]


@pytest.mark.parametrize(
    ("decoder", "left"),
    [(None, ["vit_2d", "resnet50_2d"]), ("unet", ["vit_2d", "resnet50_2d"]), ("upernet", ["vit_2d"])],
)
def test_a_decoder_stands_on_backbones_that_it_is_for(decoder, left):
    config = with_task(decoder=decoder)
    assert {cell.backbone for cell in grid.cells(config)} == {*left}
    reason = "lesion on resnet50_2d needs the decoder unet, not upernet"
    assert (reason in grid.skipped(config)) == (len(left) == 1)
    (cell, *_) = grid.cells(config)
    assert of_spec(grid.cell_spec(config, cell)["task"]).decoded_by == decoder


# -- scans that are larger than the network --------------------------------------------------------


def test_patches_are_cut_alike_from_scan_and_labels_and_often_around_a_region():
    labels = torch.zeros(1, 20, 20, 20)
    labels[0, 17, 3, 10] = 1
    x, cut = labels[:, None].expand(64, 2, -1, -1, -1), labels.expand(64, -1, -1, -1)
    of_x, of_labels = patches(x, cut, 6, seed=0, step=3, first=0)
    assert of_x.shape == (64, 2, 6, 6, 6)
    assert torch.equal(of_x[:, 0], of_labels)
    assert torch.equal(of_x[:, 1], of_labels)
    hit = of_labels.flatten(1).any(1)
    assert 0.2 < hit.float().mean() < 0.6
    later = patches(x[40:], cut[40:], 6, seed=0, step=3, first=40)
    assert torch.equal(of_x[40:], later[0]), "a scan's patch does not depend on who else is in its part"
    assert not torch.equal(of_x, patches(x, cut, 6, seed=0, step=4, first=0)[0])


def test_a_window_slides_over_the_whole_scan():
    class Doubling(torch.nn.Module):
        """Works voxel by voxel, on windows of 8."""

        class backbone:
            takes = InputSpec(3, 1, 8)

        def forward(self, x):
            assert x.shape[2:] == (8, 8, 8)
            return 2 * x

    x = torch.randn(2, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole_outputs(Doubling(), x, False), 2 * x)


@pytest.fixture
def with_regions(tmp_path):
    """A store with label maps, and its split."""
    store = tiny_cells.add_label_maps(tiny_cells.make_store(tmp_path / "store"))
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    rows = [row | {"y": row["scan_id"]} for row in read_tsv(split)]
    write_tsv(split, rows, list(rows[0]))
    return store, split


def test_training_starts_from_how_often_regions_are_in_its_label_maps(with_regions, tmp_path):
    store, split = with_regions
    still = {"kind": "full", "lr": 1e-12, "head_lr": 1e-12}
    spec = tiny_cells.cell("segmentation", still, training={"epochs": 1, "warmup_epochs": 0})
    tiny_cells.finetune(spec, store, split, None, tmp_path / "cell", tmp_path / "state", 1e9)
    logits = load_file(tmp_path / "cell/delta.safetensors")["head.classify.bias"]
    opened = open_store(store)
    of_train = [opened.index_of(row["scan_id"]) for row in read_tsv(split) if row["side"] == "train"]
    shares = [(opened.labels[of_train] == value).mean() for value in (0, 1, 2)]
    assert logits.exp().tolist() == pytest.approx(shares, rel=1e-3)


def test_a_network_that_sees_patches_learns_and_predicts_whole_scans(with_regions, tmp_path):
    store, split = with_regions
    backbone = tiny_cells.BACKBONE | {"image_size": tiny_cells.EDGE - 4}
    spec = tiny_cells.cell(
        "segmentation", {"kind": "full", "lr": 1e-2}, backbone=backbone, training={"epochs": 10}
    )
    tiny_cells.finetune(spec, store, split, None, tmp_path / "cell", tmp_path / "state", 1e9)
    predict([tmp_path / "cell/delta.safetensors"], [], store, [split], tmp_path / "p.tsv", "cpu")
    found = [row for row in read_tsv(tmp_path / "p.tsv") if row["split"] == "test"]
    assert min(float(row["dice_front"]) for row in found) > 0.6
    assert nib.load(tmp_path / f"p/fraction-100/seed-0/{found[0]['scan_id']}_dseg.nii.gz").shape == (12,) * 3


def test_another_label_map_trains_a_cell_again(with_regions):
    store, split = with_regions
    scans = store / "scans.tsv"
    before = data_sources(split, scans, WHOLE, segmentation())
    stored = read_tsv(scans)
    stored[0]["label_sha1"] = "0"
    write_tsv(scans, stored, list(stored[0]))
    os.utime(scans, ns=(1, 1))
    after = data_sources(split, scans, WHOLE, segmentation())
    assert [part for part in before if before[part] != after[part]] == ["labels"]


def labelled(**changes):
    """Return the demo's settings with one task, which finds regions."""
    demo = yaml.safe_load((ROOT / "workflow/configs/demo.yaml").read_text())
    demo["cohorts"]["Labelled"] = {"table": "t.csv", "input": {"kind": "volume", "labels": [1, 4]}}
    demo["tasks"] = {"regions": TASK.model_dump(exclude_unset=True) | {"train": "Labelled", **changes}}
    backbone = next(name for name, one in demo["backbones"].items() if one["kind"] == "vit")
    block = {"tasks": ["regions"], "backbones": [backbone], "methods": list(demo["methods"]), "seeds": [0]}
    demo["grid"] = [block | {"pretraining": ["none", next(iter(demo["pretraining"]))]}]
    return Config.model_validate(demo)


def test_a_task_on_patches_starts_from_weights_of_whole_scans():
    config = labelled(patch=32)
    cells = grid.cells(config)
    (start,) = {cell.pretraining for cell in cells} - {"none"}
    assert not [line for line in grid.skipped(config) if start in line and "cannot" in line]
    assert grid.cell_spec(config, cells[0])["backbone"]["image_size"] == 32
    others = {one.label for one in contenders(config) if one.sort != "cells"}
    assert others == {"Control: mean label map"}, "no linear model finds regions"
    wrong = [
        ({"patch": 96}, "larger than"),
        ({"patch": 24}, "patch_size"),
        ({"classes": {"a": 9}}, "value 9"),
    ]
    for change, words in wrong:
        with pytest.raises(ValidationError, match=words):
            labelled(**change)


def test_the_best_the_median_and_the_worst_subject_are_shown(tmp_path):
    config = labelled(classes={"front": 1, "back": 4})
    store = tiny_cells.make_store(layout.STORE.at(tmp_path, cohort="Labelled"), scans=5)
    tiny_cells.add_label_maps(store)
    good = [one for one in contenders(config) if one.is_method]
    scores = [Score(one, "Labelled", False, "dice", True, {0: place}) for place, one in enumerate(good)]
    best = good[-1]
    names = dict(zip(grid.Cell._fields, best.group, strict=False))
    table = layout.PREDICTIONS.at(tmp_path, **names, cohort="Labelled")
    rows = [
        {"scan_id": row["scan_id"], "subset": str(best.subset), "seed": 0, "fold": 0, "split": "test"}
        | {"dice_front": value, "dice_back": value}
        for row, value in zip(read_tsv(store / "scans.tsv"), (0.5, 0.9, 0.2, 0.7, 0.6), strict=True)
    ]
    write_tsv(table, rows, list(rows[0]))
    folder = layout.predicted_files(table, str(best.subset), "seed-0")
    folder.mkdir(parents=True)
    for row in read_tsv(store / "scans.tsv"):
        save(folder / f"{row['scan_id']}_dseg.nii.gz", nib.load(row["dseg"]))
    figure = draw_segmentations(config, tmp_path, scores, "regions")
    beside = [axis.get_ylabel() for axis in figure.axes[::3]]
    assert beside == [
        "best: sub-001_ses-1\nDice 0.90",
        "median: sub-004_ses-1\nDice 0.60",
        "worst: sub-002_ses-1\nDice 0.20",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "front",
        "back",
        "true",
        "predicted",
    ]
    assert len(draw_segmentations(config, tmp_path, [], "regions").axes) == 0
