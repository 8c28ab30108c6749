import json
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import tiny_cells
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import read_tensors, save_encoder
from neuropeft.backbones.heads import NORMS, POOLS, QUERIES, FeatureNorm
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.methods.adapt import load_delta
from neuropeft.store import open_store
from neuropeft.tasks import task_kind
from neuropeft.train import finetune as finetuning
from neuropeft.train import supervised
from neuropeft.train.augment import Augmentation
from neuropeft.train.cost import seconds_since_process_start
from neuropeft.train.finetune import make_model
from neuropeft.train.learner import Learner, Plan
from neuropeft.train.schedule import lr_scale

COST = {
    "trainable", "head", "total", "delta_bytes", "peak_memory_bytes", "train_seconds", "start_seconds",
    "seconds_per_step", "steps", "best_step", "best_val_loss", "train_subjects", "train_scans", "device",
    "torch", "flops_per_sample", "resumed", "fingerprint", "accumulation", "modules", "tensors", "stored",
    "peak_reserved_bytes", "samples_per_second", "mfu", "energy_joule", "most_steps",
}  # fmt: skip
SCRATCH = {"kind": "scratch"}
FULL = {"kind": "full"}


def train(store: Path, spec: dict, encoder: Path | None = None, name: str = "out", **split) -> Path:
    out = store.parent / name
    path = tiny_cells.make_split(store.parent / f"seed-{spec['seed']}.tsv", store, **split)
    tiny_cells.finetune(spec, store, path, encoder, out, store.parent / "state")
    return out


def test_writes_delta_history_and_cost(store: Path) -> None:
    out = train(store, tiny_cells.cell())
    assert sorted(path.name for path in out.iterdir()) == [
        "cost.json",
        "delta.safetensors",
        "delta.safetensors.json",
        "history.csv",
    ]
    history = tiny_cells.read_history(out)
    assert list(history[0]) == [
        "step", "lr", "train_loss", "val_loss", "val_metric", "accumulation",
    ]  # fmt: skip
    assert [row["step"] for row in history] == ["4", "8", "12"], "16 scans in batches of 5"
    cost = tiny_cells.read_cost(out)
    assert set(cost) == COST
    assert (cost["modules"], cost["tensors"]) == (2, 2 * 4), "qkv of two blocks: A and B of q and v"
    state, metadata = read_tensors(out / "delta.safetensors")
    trained = sum(value.numel() for name, value in state.items() if not name.startswith("head.norm."))
    assert cost["total"] == trained == cost["trainable"] + cost["head"]
    assert cost["delta_bytes"] == (out / "delta.safetensors").stat().st_size
    assert (cost["train_subjects"], cost["train_scans"], cost["resumed"]) == (16, 16, 0)
    assert [float(row["lr"]) for row in history] == pytest.approx(
        [3e-3 * lr_scale(step, 4, 12) for step in (3, 7, 11)], rel=1e-3
    )
    assert cost["start_seconds"] > 0
    assert cost["flops_per_sample"] > 0
    assert cost["stored"] == sum(value.numel() for value in state.values())
    assert cost["samples_per_second"] == pytest.approx(12 * 5 / cost["train_seconds"])
    assert cost["most_steps"] == 12
    assert [cost[key] for key in ("mfu", "energy_joule", "peak_reserved_bytes")] == [None] * 3, "of a CPU"
    best = min(history[1:], key=lambda row: float(row["val_loss"]))  # the first one is of the warm-up
    assert (cost["best_step"], cost["best_val_loss"]) == (int(best["step"]), float(best["val_loss"]))
    assert (cost["steps"], cost["seconds_per_step"]) == (12, pytest.approx(cost["train_seconds"] / 12))
    assert json.loads(metadata["spec"]) == tiny_cells.cell()
    assert not list((store.parent / "state").iterdir()), "the checkpoint is done with"


def test_the_settings_of_a_cell_reach_its_training(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a value that no other setting and no default has."""
    compiled, changed, calls = [], [], []

    def compiling(model):
        compiled.append(model)
        return lambda scans: calls.append("compiled") or model(scans)

    def changing(scans, changes, *place):
        changed.append((changes, *place))
        return scans

    monkeypatch.setattr(torch, "compile", compiling)
    monkeypatch.setattr(supervised, "augment", changing)
    method = FULL | {"lr": 1e-4, "head_lr": 1e-2, "weight_decay": 0.05, "layer_decay": 1.0}
    training = {"epochs": 9, "batch_size": 4, "warmup_epochs": 2, "patience": 3, "clip": 0.5, "compile": True}
    training |= {"pool": "attentive", "feature_norm": "refreshed", "drop_path": 0.3}
    spec = tiny_cells.cell(method=method, training=training, seed=6)
    split = tiny_cells.make_split(store.parent / "seed-6.tsv", store)
    paths = (store, split, None, store.parent / "out", store.parent / "state")
    given = tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)
    assert given["plan"] == Plan(
        name=spec["cell"],
        samples=16,
        steps=36,
        interval=4,
        batch_size=4,
        warmup_steps=8,
        clip=0.5,
        seed=6,
        lr=1e-4,
        patience=3,
    )
    width = tiny_cells.BACKBONE["width"]
    groups = {(group["name"], round(group["lr"], 9), group["weight_decay"]) for group in given["groups"]}
    assert groups == {
        ("backbone", 1e-4, 0.05),
        ("backbone_no_decay", 1e-4, 0.0),
        ("head", round(1e-2 * 768 / width, 9), 0.05),  # the queries
        ("head", round(1e-2 * 768 / (QUERIES * width), 9), 0.05),
        ("head_no_decay", 1e-2, 0.0),
    }
    learner = given["learner"]
    assert [block.drop_path for block in learner.module.backbone.blocks] == [0.0, pytest.approx(0.3)]
    assert (learner.module.head.pool, type(learner.module.head.norm)) == ("attentive", FeatureNorm)
    tiny_cells.passed(learner, torch.arange(4), 5)
    with torch.inference_mode():
        learner.validate()  # on the scans as they are, by the network as predictions use it
    augmentation = Augmentation(flip=True, rotate_deg=5, translate_voxels=1, intensity=0.1)
    assert changed == [(augmentation, 6, 5, 0, 4)]
    assert (compiled, calls) == ([learner.module], ["compiled"])
    spec["training"]["compile"] = False
    tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)
    assert len(compiled) == 1


def test_learns_what_the_simulation_plants(store: Path) -> None:
    settings = {"epochs": 15, "augment": {}}
    out = train(store, tiny_cells.cell(method=SCRATCH, training=settings))
    history = tiny_cells.read_history(out)
    assert float(history[-1]["train_loss"]) < 0.3 * float(history[0]["train_loss"])
    assert float(history[-1]["val_metric"]) == 1.0


def test_the_same_cell_gives_the_same_delta_and_another_seed_another(store: Path) -> None:
    dropout = tiny_cells.LORA | {"dropout": 0.2}
    runs = [
        train(store, tiny_cells.cell(method=dropout, seed=seed), name=f"out-{i}")
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (read_tensors(out / "delta.safetensors")[0] for out in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.linear.weight"], other["head.linear.weight"])


def test_a_pretrained_encoder_is_the_start_and_stays_frozen(store: Path) -> None:
    torch.manual_seed(5)
    encoder = vit.build(tiny_cells.BACKBONE)
    path = store.parent / "encoder.safetensors"
    save_encoder(path, encoder, {})
    for method in (FULL, {"kind": "attention"}, {"kind": "layernorm"}, tiny_cells.LORA):
        start = make_model(tiny_cells.cell(method=method), path).backbone.state_dict()
        for name, value in encoder.state_dict().items():
            assert torch.equal(start[name], value), (method["kind"], name)
    out = train(store, tiny_cells.cell(), path)
    assert {name.split(".")[0] for name in read_tensors(out / "delta.safetensors")[0]} == {"backbone", "head"}


def test_what_a_method_chooses_by_gradients_is_chosen_before_training_and_stored(store: Path) -> None:
    out = train(store, tiny_cells.cell(method={"kind": "gps", "connections": 1}))
    state, _ = read_tensors(out / "delta.safetensors")
    places = torch.cat([value for name, value in state.items() if name.endswith("places")])
    assert len(places) == 2 * (3 + 1 + 2 + 1) * 24
    assert len(places.unique()) > 20, "it has the first input of all neurons until it chooses"


def test_regression_keeps_the_training_statistics_beside_the_delta(store: Path) -> None:
    out = train(store, tiny_cells.cell("regression"), regression=True)
    metadata = read_tensors(out / "delta.safetensors")[1]
    y = torch.tensor([60 + 10.5 * (i % 2) + 0.1 * i for i in range(16)], dtype=torch.float64)
    assert json.loads(metadata["offset"])[0] == pytest.approx(float(y.median()))
    assert float(metadata["scale"]) == pytest.approx(float(y.std(correction=0)))


@pytest.mark.parametrize(("norm", "current"), [("fixed", False), ("refreshed", True)])
def test_features_are_standardised_by_the_training_scans(store: Path, norm: str, current: bool) -> None:
    """Of the network as it started, or of the one that is stored, however far it has moved."""
    spec = tiny_cells.cell(method=FULL | {"lr": 0.01}, training={"feature_norm": norm})
    state, _ = read_tensors(train(store, spec) / "delta.safetensors")
    torch.manual_seed(0)
    model = make_model(spec, None).eval()  # the random weights that the cell started from
    scans = torch.from_numpy(open_store(store).volumes[:16].astype(np.float32))  # those trained on
    for network_is_current in (False, True):
        if network_is_current:
            load_delta(model, state)
        with torch.inference_mode():
            features = model.backbone(scans)
        fits = torch.allclose(features.mean(0), state["head.norm.mean"], atol=1e-3)
        fits &= torch.allclose(features.var(0, correction=0), state["head.norm.variance"], rtol=1e-2)
        assert fits == (network_is_current == current)


def plan_of(store: Path, **changes) -> Plan:
    spec = tiny_cells.cell(**changes)
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    paths = (store, split, None, store.parent / "out", store.parent / "state")
    return tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)["plan"]


def test_every_fraction_trains_for_as_many_steps(store: Path) -> None:
    whole, part = plan_of(store), plan_of(store, subset="fraction-25")
    assert (whole.samples, part.samples) == (16, 4)
    for plan in (whole, part):
        assert (plan.steps, plan.interval, plan.warmup_steps, plan.batch_size) == (12, 4, 4, 5)


def test_few_scans_train_for_the_least_steps_in_whole_epochs(store: Path) -> None:
    plan = plan_of(store, training={"min_steps": 50})
    assert (plan.steps, plan.interval, plan.warmup_steps) == (52, 4, 4)
    assert plan_of(store, training={"min_steps": 12}).steps == 12


def test_few_validation_subjects_choose_nothing(store: Path) -> None:
    """Six of them in all, three at half of the labels."""
    assert plan_of(store, training={"min_validation": 6}).patience == 10
    assert plan_of(store, training={"min_validation": 7}).patience is None
    assert plan_of(store, training={"min_validation": 6}, subset="fraction-50").patience is None
    spec = tiny_cells.cell(method=FULL, training={"min_validation": 7, "patience": 1})
    out = train(store, spec)
    cost, last = tiny_cells.read_cost(out), tiny_cells.read_history(out)[-1]
    assert (cost["steps"], cost["best_step"]) == (12, 12)
    assert cost["best_val_loss"] == float(last["val_loss"])


def learner_of(store: Path, **changes) -> Learner:
    changes["training"] = {"augment": {"flip": True, "intensity": 0.1}} | changes.get("training", {})
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    paths = (store, split, None, store.parent / "out", store.parent / "state")
    spec = tiny_cells.cell(**changes)
    learner = tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)["learner"]
    learner.module.train()
    return learner


def test_a_head_starts_as_the_probe_where_settings_say_so(store: Path) -> None:
    losses = {}
    for start in ("random", "probe"):
        learner = learner_of(store, method=FULL, training={"head_start": start, "augment": {}})
        losses[start], _ = tiny_cells.passed(learner, torch.arange(16))
    assert losses["probe"] < 0.8 * losses["random"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("norm", NORMS)
def test_parts_of_a_batch_add_up_to_its_gradient(store: Path, pool: str, norm: str) -> None:
    learner = learner_of(store, method=FULL, training={"pool": pool, "feature_norm": norm})
    loss, gradients = tiny_cells.passed(learner, torch.arange(7), 2)
    for parts in (2, 3, 7):
        other, others = tiny_cells.passed(learner, torch.arange(7), 2, parts)
        assert other == pytest.approx(loss, abs=1e-6)
        for name, gradient in others.items():
            torch.testing.assert_close(gradient, gradients[name], atol=1e-6, rtol=1e-4)


def test_a_batch_weighs_subjects_and_not_their_scans(tmp_path: Path) -> None:
    store = tiny_cells.make_store(tmp_path / "store", scans=40, sessions=2)
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    rows = [row for row in read_tsv(split) if row["scan_id"] != "sub-000_ses-2"]
    write_tsv(split, rows, list(rows[0]))
    paths = (store, split, None, tmp_path / "out", tmp_path / "state")
    spec = tiny_cells.cell(training={"augment": {}})
    learner = tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)["learner"]
    whole, _ = tiny_cells.passed(learner, torch.arange(23))
    alone = torch.tensor([tiny_cells.passed(learner, torch.tensor([i]))[0] for i in range(23)])
    assert whole == pytest.approx(float(alone.mean()), rel=1e-5)
    unweighted = unweighted_losses(store, rows[:23], learner.module)
    weights = torch.tensor([2.0] + [1.0] * 22) * 23 / 24
    torch.testing.assert_close(alone, weights * unweighted, atol=1e-5, rtol=1e-4)


def unweighted_losses(store: Path, rows: list[dict], model: torch.nn.Module) -> torch.Tensor:
    """Return the loss of scans, of whose subjects half are of either class."""
    goal = task_kind("binary", 2).objective(np.array([0, 1]), [1, 1], "cell")
    opened = open_store(store)
    volumes = [opened.volumes[opened.index_of(row["scan_id"])].astype(np.float32) for row in rows]
    targets = torch.tensor([float(row["y"]) for row in rows])
    with torch.inference_mode():
        return goal.loss(model(torch.from_numpy(np.stack(volumes))), targets)


def test_chosen_rates_reach_the_optimiser_the_fingerprint_and_the_cost(store: Path) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    spec = tiny_cells.cell(method={"kind": "attention"}, training={"epochs": 2})
    shared = finetuning.open_shared([spec], store, [split], None, "cpu")

    def given(choice: dict[str, float] | None) -> dict:
        state = store.parent / "state"
        return tiny_cells.given_to_fit("finetune", finetuning.finetune, spec, shared, state, 1e9, 0.0, choice)

    plain, chosen = given(None), given({"lr": 5e-4, "head_lr": 7e-3})
    rates = [{group["name"]: group["lr"] for group in one["groups"]} for one in (plain, chosen)]
    assert (rates[0]["backbone"], rates[0]["head_no_decay"]) == (3e-3, 3e-3)
    assert (rates[1]["backbone"], rates[1]["head_no_decay"]) == (5e-4, 7e-3)
    assert plain["state"].fingerprint != chosen["state"].fingerprint
    assert chosen["state"].fingerprint != given({"lr": 5e-4, "head_lr": 8e-3})["state"].fingerprint
    state = store.parent / "trained"
    finetuning.finetune(spec, shared, state, choice={"lr": 5e-4, "head_lr": 7e-3})
    cost = tiny_cells.read_cost(state / "finished")
    assert (cost["chosen_lr"], cost["chosen_head_lr"]) == (5e-4, 7e-3)


@pytest.mark.slow
def test_a_cnn_is_stored_as_it_was_validated(tmp_path: Path) -> None:
    """Its batch norms too, which move with whatever passes through in training mode."""
    store = tiny_cells.make_store(tmp_path / "store", scans=5, edge=32)
    short = {"epochs": 1, "warmup_epochs": 0}
    spec = tiny_cells.cell(method=SCRATCH, backbone={"kind": "densenet121"}, training=short)
    out = train(store, spec, validation=2, test=1)
    first = float(tiny_cells.read_history(out)[0]["train_loss"])
    assert first < 2, "features are standardised as training sees them"
    model = make_model(spec, None).eval()
    load_delta(model, read_tensors(out / "delta.safetensors")[0])
    scans = torch.from_numpy(open_store(store).volumes[2:4].astype(np.float32))
    with torch.inference_mode():
        loss = (
            task_kind("binary", 2)
            .objective(np.array([0, 1]), [1, 1], "cell")
            .loss(model(scans), torch.tensor([0.0, 1]))
        )
    assert float(loss.mean()) == pytest.approx(tiny_cells.read_cost(out)["best_val_loss"], rel=1e-4)


def test_multiclass(store: Path) -> None:
    out = train(store, tiny_cells.cell("multiclass"), classes=3)
    assert read_tensors(out / "delta.safetensors")[0]["head.linear.weight"].shape == (
        3,
        tiny_cells.BACKBONE["width"],
    )


def test_a_class_that_a_small_fraction_lacks_is_named(store: Path) -> None:
    with pytest.raises(UserError, match=r"lora/fraction-100/0: no training scan has class 2 in this subset"):
        train(store, tiny_cells.cell("multiclass", subset="fraction-10"), classes=3)


def test_shuffled_labels_leave_nothing_to_learn_from(store: Path) -> None:
    plain = train(store, tiny_cells.cell(method=SCRATCH), name="plain")
    control = train(store, tiny_cells.cell(method=SCRATCH, shuffle_labels=True), name="control")
    assert tiny_cells.read_history(plain)[0] != tiny_cells.read_history(control)[0]


def test_too_high_a_learning_rate_is_explained(store: Path) -> None:
    method = SCRATCH | {"lr": 1e30}
    with pytest.raises(
        UserError,
        match=r"100/0: the \w+ loss is not finite at step 2 at peak learning rate 1e\+30; .*lower lr",
    ):
        train(store, tiny_cells.cell(method=method, training={"augment": {}}))


@pytest.mark.slow
def test_a_fine_tune_imports_nothing_slow(store: Path) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    slow = ("monai", "pandas", "matplotlib", "sklearn", "scipy", "nibabel", "pydantic", "yaml")
    encoder = store.parent / "encoder.safetensors"
    save_encoder(encoder, vit.build(tiny_cells.BACKBONE), {})
    process = tiny_cells.python(
        "import sys\n"
        "from neuropeft.cli import main\n"
        "status = main(sys.argv[1:])\n"
        f"print(status, [name for name in {slow!r} if name in sys.modules])",
        arguments=(
            "finetune", "--specs", json.dumps({"cell": tiny_cells.cell()}), "--store", store, "--splits",
            split, "--encoder", encoder, "--state", store.parent / "state", "--table", store.parent / "t.tsv",
        ),
    )  # fmt: skip
    output, errors = process.communicate(timeout=120)
    assert output.strip() == "0 []", errors


def test_a_process_ages_while_it_waits() -> None:
    """The time to the first step is one on the wall: what reading files takes belongs to it."""
    age, began = seconds_since_process_start(), time.time()
    assert age == pytest.approx(began - psutil.Process().create_time(), abs=2)
    time.sleep(0.3)
    assert seconds_since_process_start() - age == pytest.approx(time.time() - began, abs=0.1)
