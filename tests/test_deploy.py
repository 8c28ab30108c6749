"""Smaller forms of an exported model: fewer heads, a student, and what is measured of each."""

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.export import distil
from neuropeft.export.deploy import write_deployment
from neuropeft.export.distil import distilled, half_width
from neuropeft.export.interval import fit_interval
from neuropeft.export.model import WEIGHTS, Model, read_model, write_model
from neuropeft.export.network import save_network
from neuropeft.export.prune import attention_layers, head_importance, importance_in_training, without_heads
from neuropeft.export.reference import fit_features, quantiles
from neuropeft.export.sides import Learnt, Side, look
from neuropeft.store import open_store
from neuropeft.subsets import WHOLE
from neuropeft.tasks import task_kind
from neuropeft.tasks.base import Run
from neuropeft.train.data import Volumes
from neuropeft.train.finetune import make_model
from neuropeft.train.labels import read_sides, stored_sessions

BINARY = task_kind("binary", 2)
BACKBONE = {**tiny_cells.BACKBONE, "heads": 4}  # of six channels each


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A simulated store and split, and a cell that trains by them without validation."""
    work = tmp_path_factory.mktemp("learnt")
    store, split = tiny_cells.make_store(work / "store"), work / "simulated/seed-0.tsv"
    tiny_cells.make_split(split, store)
    training = {"min_validation": 99, "epochs": 20, "augment": {"flip": True}}
    spec = tiny_cells.cell("binary", {"kind": "scratch"}, backbone=BACKBONE, training=training)
    return Learnt(spec, split, read_sides(split, WHOLE, BINARY, stored_sessions(store)), open_store(store))


@pytest.fixture
def teacher(learnt):
    """A network of random weights whose outputs say the opposite of the labels."""
    network = make_model(learnt.spec, None).eval()
    features = look(network, BINARY, learnt.store, learnt.scans)[1]
    _, y = outputs_of(network, learnt)
    apart = torch.tensor(features[y == 0].mean(0) - features[y == 1].mean(0)).float()
    with torch.no_grad():
        network.head.linear.weight.copy_(apart)
        network.head.linear.weight.mul_(2 / outputs_of(network, learnt)[0].std())
        network.head.linear.bias.sub_(outputs_of(network, learnt)[0].mean())
    assert np.corrcoef(*outputs_of(network, learnt))[0, 1] < -0.8
    return network


def outputs_of(network, learnt):
    """The outputs of the training scans, and their labels."""
    outputs, _ = look(network, BINARY, learnt.store, learnt.scans)
    return outputs[:, 0].numpy(), np.array([float(row["y"]) for row in learnt.sides.train])


# -- fewer heads -----------------------------------------------------------------------------------


def test_a_head_is_as_important_as_the_loss_of_a_scan_depends_on_it(teacher, learnt):
    """Against differences of the loss: the output projection's columns of a head scale what it gives."""
    volumes = Volumes(torch.tensor(learnt.store.volumes[:5]), torch.device("cpu"))
    targets, scans, step = torch.tensor([0.0, 1, 1, 0, 1]), volumes.batch(torch.arange(5)).double(), 1e-3

    def losses(layer: int, head: int, factor: float) -> torch.Tensor:
        changed = copy.deepcopy(teacher).double()
        attention_layers(changed)[layer].proj.weight.data[:, head * 6 : head * 6 + 6] *= factor
        with torch.no_grad():
            tokens = changed.backbone.tokens(scans)
            return learnt.goal.loss(changed.head(tokens), targets.double())

    slopes = [
        [(losses(layer, head, 1 + step) - losses(layer, head, 1 - step)).abs().mean() for head in range(4)]
        for layer in range(2)
    ]
    expected = torch.nn.functional.normalize(torch.tensor(slopes), dim=1)
    found = torch.stack(head_importance(teacher, learnt.goal, volumes, targets))
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_least_important_heads_go_with_their_weights_and_each_layer_keeps_one(teacher, learnt):
    scans = torch.tensor(learnt.store.volumes[:3]).float()
    first, second = attention_layers(teacher)
    first.proj.weight[:, :18] = 0  # of its first three heads
    second.proj.weight[:, 6:12] = 0  # of its second
    before = teacher(scans)
    with torch.enable_grad():
        importance = importance_in_training(teacher, learnt)
    assert [one.eq(0).tolist() for one in importance] == [[1, 1, 1, 0], [0, 1, 0, 0]]
    pruned = without_heads(copy.deepcopy(teacher), importance, 4)
    torch.testing.assert_close(pruned(scans), before)
    assert [block.attn.heads for block in pruned.backbone.blocks] == [1, 3]
    assert pruned.backbone.blocks[0].attn.qkv.weight.shape == (18, 24)
    unequal = [torch.tensor([0.1, 0.2, 0.1, 0.1]), torch.ones(4)]
    assert [block.attn.heads for block in without_heads(teacher, unequal, 5).backbone.blocks] == [1, 2]


# -- a student -------------------------------------------------------------------------------------


def test_half_the_width_of_vit_b_is_vit_s_and_a_convolutional_network_has_none():
    vit_b = {"kind": "vit", "width": 768, "depth": 12, "heads": 12}
    assert half_width(vit_b) == {**vit_b, "width": 384, "heads": 6}
    assert half_width({"kind": "densenet121"}) is None
    odd = half_width({"kind": "vit", "width": 50, "heads": 5})
    assert odd["width"] % odd["heads"] == 0


def test_a_student_learns_what_its_teacher_gives_and_not_the_labels(teacher, learnt):
    student, spec = distilled(teacher, half_width(BACKBONE), learnt)
    assert spec["backbone"]["width"] == 12
    wanted, labels = outputs_of(teacher, learnt)
    given, _ = outputs_of(student, learnt)
    assert np.abs(given - wanted).mean() < np.abs(wanted).mean() / 2
    assert np.corrcoef(given, labels)[0, 1] < -0.8


def test_the_true_targets_of_validation_choose_the_epoch_of_a_student(teacher, learnt, monkeypatch):
    training, seen = {**learnt.spec["training"], "min_validation": 1, "patience": 3}, []
    own = replace(learnt, spec={**learnt.spec, "training": training})
    monkeypatch.setattr(distil, "fit", lambda taught, groups, plan, *rest: seen.append((taught, plan)))
    student, _ = distilled(teacher, half_width(BACKBONE), own)
    (taught, plan), rows = seen[0], own.sides.validation
    outputs, _ = look(student, BINARY, own.store, [row["scan_id"] for row in rows])
    loss = own.goal.loss(outputs, torch.tensor([float(row["y"]) for row in rows])).mean()
    with torch.inference_mode():
        found = taught.validate()
    assert found["val_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert (plan.patience, plan.samples, plan.steps) == (3, 16, 80)


def test_a_student_for_other_scans_than_its_teacher_is_refused(teacher, learnt):
    with pytest.raises(UserError, match="name a backbone for the same scans"):
        distilled(teacher, {**BACKBONE, "image_size": 8}, learnt)


# -- what is measured ------------------------------------------------------------------------------


def test_every_form_is_measured_and_the_student_is_a_model_of_its_own(teacher, learnt, tmp_path):
    own = replace(learnt, spec={**learnt.spec, "training": {**learnt.spec["training"], "epochs": 2}})

    def side(network, rows):
        scans, subjects = [row["scan_id"] for row in rows], tuple(row["subject"] for row in rows)
        y = np.array([float(row["y"]) for row in rows])
        score = look(network, BINARY, own.store, scans)[0][:, 0].sigmoid().double().numpy()
        return Side(Run(subjects, y, score, np.array([])), scans, own.store)

    def drawn(rows):
        """With labels that no network has learnt, so that scores differ."""
        return [{**row, "y": number // 2 % 2} for number, row in enumerate(rows)]

    validation, tested = side(teacher, own.sides.validation), side(teacher, drawn(own.sides.train))
    scans = torch.tensor(own.store.volumes[:4]).float()
    is_plain = save_network(tmp_path / WEIGHTS, teacher, own.spec, scans)
    model = Model(
        **{"spec": own.spec, "is_plain": is_plain, "offset": [0.0], "scale": 1.0, "names": ["no", "yes"]},
        **{
            "unit": "",
            "cohort": "Sim",
            "simulated": True,
            "targets": [],
            "input": {},
            "told": {},
            "size": 12,
        },
        interval=fit_interval(BINARY, validation.run).stored(),
        qc={},
        likeness=quantiles(np.zeros(1)),
    )
    write_model(tmp_path, model, fit_features(look(teacher, BINARY, own.store, own.scans)[1]))
    write_deployment(tmp_path, None, own, validation, tested)

    text = (tmp_path / "deployment.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [
        *("float32", "bfloat16", "int8, linear layers", "2 of 8 attention heads removed"),
        *("4 of 8 attention heads removed", "student, ViT3D of 0.0034 M parameters"),
    ]
    size = [float(row[1]) for row in rows]
    assert size[0] > size[3] > size[4]
    assert size[0] > max(size[1], size[5])
    assert all(float(row[2]) > 0 for row in rows)
    assert [row[4] == "-" for row in rows] == [True, *[False] * 5]
    assert [float(row[5]) > 0 for row in rows] == [False, *[True] * 5], "int8 is another network, too"
    assert "on 16 test subjects of Sim (simulated)" in text
    student, network, _ = read_model(tmp_path / "student")
    auc = [
        float(BINARY.metrics[0].value(one.run.y, one.run.score, np.nan, None))
        for one in (tested, side(network, drawn(own.sides.train)))
    ]
    assert [float(rows[place][3]) for place in (0, 5)] == pytest.approx(auc, abs=1e-3)
    change, low, high = (float(text) for text in re.findall(r"[-+]?[\d.]+", rows[5][4]))
    assert change == pytest.approx(auc[1] - auc[0], abs=2e-3)
    assert auc[0] != auc[1]
    assert low <= change <= high
    assert low < high
    assert abs((low + high) / 2 - change) < abs(change)
    found = fit_interval(BINARY, side(network, own.sides.validation).run)
    assert student.worth.largest == pytest.approx(found.largest), "by its own predictions"
    assert student.worth.largest != pytest.approx(model.worth.largest)
    assert math.isfinite(student.likeness[0])
