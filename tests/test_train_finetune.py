import json
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.models.build import build_vit
from neuropeft.models.checkpoints import read_tensors, save_encoder
from neuropeft.peft.adapt import load_delta
from neuropeft.store import open_store
from neuropeft.train import finetune as finetuning
from neuropeft.train.augment import Augmentation
from neuropeft.train.cost import seconds_since_process_start
from neuropeft.train.finetune import forward_outputs, make_model
from neuropeft.train.loop import Plan
from neuropeft.train.losses import objective
from neuropeft.train.pretrain import _autocast

COST = {
    "trainable", "head", "total", "delta_bytes", "peak_memory_bytes", "train_seconds", "start_seconds",
    "seconds_per_epoch", "epochs", "best_epoch", "best_val_loss", "train_subjects", "train_scans", "device",
    "torch", "flops_per_sample", "resumed", "fingerprint", "accumulation",
}  # fmt: skip
SCRATCH = {"kind": "scratch"}
FULL = {"kind": "full"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tiny_cells.make_store(tmp_path / "store")


def train(store: Path, spec: dict, encoder: Path | None = None, name: str = "out", **split) -> Path:
    out = store.parent / name
    path = tiny_cells.make_split(store.parent / f"seed-{spec['seed']}.tsv", store, **split)
    tiny_cells.finetune(spec, store, path, encoder, out, store.parent / "state")
    return out


def test_writes_delta_history_and_cost(store: Path) -> None:
    out = train(store, tiny_cells.cell())
    assert sorted(path.name for path in out.iterdir()) == ["cost.json", "delta.safetensors", "history.csv"]
    history = tiny_cells.read_history(out)
    assert list(history[0]) == [
        "epoch", "lr", "train_loss", "val_loss", "val_metric", "accumulation",
    ]  # fmt: skip
    assert len(history) == 3
    cost = tiny_cells.read_cost(out)
    assert set(cost) == COST
    state, metadata = read_tensors(out / "delta.safetensors")
    trained = sum(value.numel() for name, value in state.items() if not name.startswith("feature_norm."))
    assert cost["total"] == trained == cost["trainable"] + cost["head"]
    assert cost["delta_bytes"] == (out / "delta.safetensors").stat().st_size
    assert (cost["train_subjects"], cost["train_scans"], cost["resumed"]) == (16, 16, 0)
    assert cost["start_seconds"] > 0
    assert cost["flops_per_sample"] > 0
    assert cost["best_val_loss"] == min(float(row["val_loss"]) for row in history)
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
    monkeypatch.setattr(finetuning, "augment", changing)
    method = FULL | {"lr": 1e-4, "head_lr": 1e-2, "weight_decay": 0.05}
    training = {"epochs": 9, "batch_size": 4, "warmup_epochs": 2, "patience": 3, "clip": 0.5, "compile": True}
    spec = tiny_cells.cell(method=method, training=training, seed=6)
    split = tiny_cells.make_split(store.parent / "seed-6.tsv", store)
    paths = (store, split, None, store.parent / "out", store.parent / "state")
    given = tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)
    assert given["plan"] == Plan(
        name=spec["cell"], samples=16, epochs=9, batch_size=4, warmup_epochs=2, clip=0.5, seed=6, patience=3
    )
    assert {(group["name"], group["lr"], group["weight_decay"]) for group in given["groups"]} == {
        ("backbone", 1e-4, 0.05),
        ("backbone_no_decay", 1e-4, 0.0),
        ("head", 1e-2, 0.05),
        ("head_no_decay", 1e-2, 0.0),
    }
    learner = given["learner"]
    next(learner.batch_losses(torch.arange(4), 1, 2, 1))
    with torch.inference_mode():
        learner.validate()  # on the scans as they are, by the network as predictions use it
    augmentation = Augmentation(flip=True, rotate_deg=5, translate_voxels=1, intensity=0.1)
    assert changed == [(augmentation, 6, (1, 2), 0, 4)]
    assert (compiled, calls) == ([learner.module], ["compiled"])
    spec["training"]["compile"] = False
    tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("device", "wanted", "enabled"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_a_gpu_computes_in_bfloat16_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, device: str, wanted: bool, enabled: bool
) -> None:
    entered = []

    def entering(kind: str, **options: object) -> nullcontext[None]:
        entered.append((kind, options))
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", entering)
    there = SimpleNamespace(device=torch.device(device))  # scans as a GPU would hold them
    outputs = forward_outputs(lambda scans: torch.ones(2, 1, dtype=torch.bfloat16), there, wanted)
    assert outputs.dtype == torch.float32
    _autocast(SimpleNamespace(volumes=there, spec={"mixed_precision": wanted}))
    assert entered == 2 * [(device, {"dtype": torch.bfloat16, "enabled": enabled})]


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
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_pretrained_encoder_is_the_start_and_stays_frozen(store: Path) -> None:
    torch.manual_seed(5)
    encoder = build_vit(tiny_cells.BACKBONE)
    path = store.parent / "encoder.safetensors"
    save_encoder(path, encoder, {})
    for method in (FULL, {"kind": "attention"}, {"kind": "layernorm"}, tiny_cells.LORA):
        start = make_model(tiny_cells.cell(method=method), path).backbone.state_dict()
        for name, value in encoder.state_dict().items():
            assert torch.equal(start[name], value), (method["kind"], name)
    out = train(store, tiny_cells.cell(), path)
    assert {name.split(".")[0] for name in read_tensors(out / "delta.safetensors")[0]} == {
        "backbone",
        "feature_norm",
        "head",
    }


def test_regression_keeps_the_training_statistics_beside_the_delta(store: Path) -> None:
    out = train(store, tiny_cells.cell("regression"), regression=True)
    metadata = read_tensors(out / "delta.safetensors")[1]
    y = torch.tensor([60 + 10.5 * (i % 2) + 0.1 * i for i in range(16)], dtype=torch.float64)
    assert json.loads(metadata["offset"])[0] == pytest.approx(float(y.mean()))
    assert float(metadata["scale"]) == pytest.approx(float(y.std(correction=0)))


def test_what_is_evaluated_is_standardised_by_the_training_scans(store: Path) -> None:
    """However far the backbone moved: running means over batches would lag behind."""
    spec = tiny_cells.cell(method=FULL | {"lr": 0.01})
    out = train(store, spec)
    model = make_model(spec, None).eval()
    load_delta(model, read_tensors(out / "delta.safetensors")[0])
    scans = torch.from_numpy(open_store(store).volumes[:16].astype(np.float32))[:, None]  # those trained on
    with torch.inference_mode():
        standard = model.feature_norm(model.backbone(scans))
    torch.testing.assert_close(standard.mean(0), torch.zeros(standard.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(standard.shape[1]), atol=1e-2, rtol=0)


def test_a_cnn_is_stored_as_it_was_validated(tmp_path: Path) -> None:
    """Its batch norms too, which move with whatever passes through in training mode."""
    store = tiny_cells.make_store(tmp_path / "store", scans=5, edge=32)
    short = {"epochs": 1, "warmup_epochs": 0}
    spec = tiny_cells.cell(method=SCRATCH, backbone={"kind": "densenet121"}, training=short)
    out = train(store, spec, validation=2, test=1)
    model = make_model(spec, None).eval()
    load_delta(model, read_tensors(out / "delta.safetensors")[0])
    scans = torch.from_numpy(open_store(store).volumes[2:4].astype(np.float32))[:, None]
    with torch.inference_mode():
        loss = objective(spec["task"], [0, 1], "cell").loss(model(scans), torch.tensor([0.0, 1]))
    assert float(loss) == pytest.approx(tiny_cells.read_cost(out)["best_val_loss"], rel=1e-4)


def test_multiclass(store: Path) -> None:
    out = train(store, tiny_cells.cell("multiclass"), classes=3)
    assert read_tensors(out / "delta.safetensors")[0]["head.weight"].shape == (
        3,
        tiny_cells.BACKBONE["width"],
    )


def test_a_delta_of_the_best_epoch_fits_its_model(store: Path) -> None:
    spec = tiny_cells.cell(method=FULL)
    out = train(store, spec)
    load_delta(make_model(spec, None), read_tensors(out / "delta.safetensors")[0])


def test_a_class_that_a_small_fraction_lacks_is_named(store: Path) -> None:
    with pytest.raises(UserError, match=r"lora/100/0: no training scan has class 2 of task 'simulated'"):
        train(store, tiny_cells.cell("multiclass", fraction=10), classes=3)


def test_shuffled_labels_leave_nothing_to_learn_from(store: Path) -> None:
    plain = train(store, tiny_cells.cell(method=SCRATCH), name="plain")
    control = train(store, tiny_cells.cell(method=SCRATCH, shuffle_labels=True), name="control")
    assert tiny_cells.read_history(plain)[0] != tiny_cells.read_history(control)[0]


def test_too_high_a_learning_rate_is_explained(store: Path) -> None:
    method = SCRATCH | {"lr": 1e30}
    with pytest.raises(UserError, match=r"scratch/100/0: the \w+ loss is not finite in epoch 1 .*lower lr"):
        train(store, tiny_cells.cell(method=method, training={"augment": {}}))


def test_a_fine_tune_imports_nothing_slow(store: Path) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    slow = (
        "monai",
        "pandas",
        "matplotlib",
        "torch._dynamo",
        "sympy",
        "sklearn",
        "scipy",
        "nibabel",
        "pydantic",
        "yaml",
    )
    encoder = store.parent / "encoder.safetensors"
    save_encoder(encoder, build_vit(tiny_cells.BACKBONE), {})
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
