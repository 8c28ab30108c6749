"""The configuration refuses every mistake in one sentence that names the key and what to change."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from neuropeft.cli import main
from neuropeft.config import Config
from neuropeft.config.read import load_config, read_config, read_yaml
from neuropeft.errors import UserError
from neuropeft.grid import cells
from neuropeft.methods.counts import BACKBONES, METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def raw():
    return yaml.safe_load((ROOT / "workflow/configs/demo.yaml").read_text())


def _set(raw, key, value):
    *path, last = key.split(".")
    for part in path:
        raw = raw[int(part)] if isinstance(raw, list) else raw[part]
    raw[last] = value


MISTAKES = [
    ("tasks.ad.tarrget", "group", "unknown key `tasks.ad.tarrget`: did you mean 'target'?"),
    ("cohorts.SimA.input", "volum", "`cohorts.SimA.input.kind` is 'volum': choose from 't1w', 'volume'"),
    (
        "cohorts.SimA.input",
        {"kind": "t1w", "siz": 3},
        "unknown key `cohorts.SimA.input.siz`: did you mean 'size'",
    ),
    (
        "cohorts.SimA.input",
        "volume",
        "`cohorts.SimA`: `input: volume` cannot come from `simulated`: give `table`",
    ),
    (
        "cohorts.SimB",
        {"table": "scans.tsv", "input": "volume"},
        "`tasks.ad.zero_shot` names 'SimB' of input volume, but 'SimA' is of input t1w: name cohorts of one",
    ),
    (
        "cohorts.SimB",
        {"table": "scans.tsv", "input": "volume", "skull_strip": "stripped"},
        "`cohorts.SimB`: `skull_strip` and `brain_masks` are for `input: t1w`: remove them",
    ),
    ("methods.lora.alfa", 3, "unknown key `methods.lora.alfa`: did you mean 'alpha'?"),
    ("tasks.ad.train", "SimC", "`tasks.ad.train` names 'SimC', which is not there; did you mean 'Sim"),
    ("tasks.ad.zero_shot", ["SimC"], "`tasks.ad.zero_shot` names 'SimC', which is not there"),
    ("tasks.ad.zero_shot", ["SimA"], "`tasks.ad`: `zero_shot` names the training cohort 'SimA'"),
    ("tasks.ad.kind", "regresion", "`tasks.ad.kind` is 'regresion': choose from 'binary'"),
    ("tasks.ad.classes", {"CN": "CN"}, "`tasks.ad.classes`: a binary task has two `classes`, not 1"),
    ("tasks.ad.classes", None, "`tasks.ad.classes`: input should be a valid dictionary"),
    (
        "tasks.ad.kind",
        "multiclass",
        "`tasks.ad.classes`: a multiclass task has three or more `classes`; use `kind: b",
    ),
    ("tasks.ad.classes", {"CN": False, "AD": "AD"}, "`tasks.ad.classes.CN`: YAML reads this as true/false"),
    (
        "tasks.age.classes",
        {"a": 1, "b": 2},
        "unknown key `tasks.age.classes`: 'classes' is a key of another place",
    ),
    ("methods.lora.r", "x", "`methods.lora.r`: input should be a valid integer"),
    ("methods.lora.kind", "lorra", "`methods.lora.kind` is 'lorra': choose from"),
    ("backbones.vit_xs.heads", 5, "`backbones.vit_xs`: `width` 96 is not divisible by `heads` 5"),
    (
        "backbones.vit_xs.decoder.heads",
        5,
        "`backbones.vit_xs`: `decoder.width` 96 is not divisible by `decoder.heads` 5",
    ),
    ("backbones.vit_xs.patch_size", 24, "`backbones.vit_xs.patch_size` 24 does not divide"),
    (
        "cohorts.IXI-HH",
        {"bids": "."},
        "`cohorts.IXI-HH`: 'IXI-HH' is no name; a name has letters, digits and",
    ),
    ("cohorts.X", {"bids": "no/such/place"}, "`cohorts.X.bids` is 'no/such/place', but there is no folder"),
    ("cohorts.X", {"table": "none.tsv"}, "`cohorts.X.table` is 'none.tsv', but there is no file"),
    (
        "cohorts.X",
        {},
        "`cohorts.X`: a cohort needs exactly one of `bids`, `table`, `simulated` and `synthetic`",
    ),
    ("cohorts.SimA.skull_strip", "given", "`skull_strip: given` and `brain_masks` go together"),
    ("cohorts.SimA.brain_masks", "{scan_id}.nii", "`skull_strip: given` and `brain_masks` go together"),
    ("cohorts.SimA.simulated.groups", {"CN": 0.5, "AD": 0.4}, "the shares of `groups` must sum to 1"),
    ("cohorts.SimA.simulated.age", [85, 45], "`age` must be [youngest, oldest]"),
    ("training.epochs", 0, "`training.epochs`: input should be greater than or equal to 1, but it is 0"),
    ("training.warmup_epochs", 30, "`training`: `warmup_epochs` 30 must be fewer than `epochs` 25"),
    ("training.epochs", float("nan"), "`training.epochs`: "),
    ("splits.test", 0.2, "`splits`: `folds` test every subject, so `test` has no use: remove one of the two"),
    ("splits", {"folds": 2, "validation": 0.5}, "`splits`: a fold and `validation` together must leave"),
    ("splits", {"test": 0.9}, "`splits`: `test` and `validation` together must leave subjects for training"),
    ("tasks.ad.zero_shot", ["SimB", "SimB"], "`tasks.ad`: `zero_shot` names 'SimB' twice: remove one"),
    ("methods.lora.targets", ["q", "v", "q"], "`methods.lora`: `targets` names 'q' twice: remove one"),
    ("methods.full.r", 4, "unknown key `methods.full.r`: 'r' is a key of another place; remove it here"),
    ("pretraining.mae.betas", [0.9, 1.0], "`pretraining.mae.betas.1`: input should be less than 1"),
    ("pretraining.mae.seed", 2**32, "`pretraining.mae.seed`: input should be less than 4294967296"),
    ("pretraining.mae.mask_ratio", 0.999, "`pretraining.mae.mask_ratio` 0.999 hides all of the 64"),
    ("grid.0.seeds", [2**32], "`grid.0.seeds.0`: input should be less than 4294967296"),
    ("methods.knn", {"kind": "scratch", "lr": 1e-4}, "`knn` is the name of a probe"),
    ("backbones.control", {"kind": "densenet121"}, "`control` stands for what controls have"),
    ("grid.0.methods", ["lorra"], "`grid.0.methods` names 'lorra', which is not there; did you mean 'lora'?"),
    ("grid.0.tasks", ["adx"], "`grid.0.tasks` names 'adx', which is not there; did you mean 'ad'?"),
    ("grid.0.backbones", ["vit_x"], "`grid.0.backbones` names 'vit_x', which is not there"),
    ("grid.0.pretraining", ["mae_x"], "`grid.0.pretraining` names 'mae_x', which is not there"),
    ("pretraining.mae.cohort", "SimC", "`pretraining.mae.cohort` names 'SimC', which is not there"),
    ("pretraining.none", {"cohort": "SimA"}, "`none` stands for no pretraining"),
    ("pretraining.mae.step", 3, "unknown key `pretraining.mae.step`: did you mean 'steps'?"),
    ("pretraining.mae.weights", "a.pt", "`pretraining.mae`: weights that are there are not trained"),
    ("pretraining.mae.mask", "brain", "`pretraining.mae.mask`: input should be 'all' or 'foreground'"),
    ("pretraining.mae.kind", "factor", "`pretraining.mae.kind` is 'factor': choose from"),
    (
        "pretraining.mae.warmup_steps",
        10**6,
        "`pretraining.mae`: `warmup_steps` 1000000 must be fewer than `steps`",
    ),
    ("pretraining.mae.start", "mae_x", "`pretraining.mae.start` names 'mae_x', which is not there"),
    ("pretraining.mae.start", "mae", "`pretraining.mae.start` leads back to 'mae': give another start"),
    (
        "pretraining.X",
        {"kind": "factors", "cohort": "SimA"},
        "`pretraining.X.cohort` is 'SimA', whose anatomy nobody knows: kind factors needs a synthetic cohort",
    ),
    ("methods.lora.layer_decay", 0.7, "unknown key `methods.lora.layer_decay`"),
    ("methods.full.layer_decay", 1.5, "`methods.full.layer_decay`: input should be less than or equal to 1"),
    ("training.pool", "max", "`training.pool`: input should be 'mean', 'attentive' or 'concat'"),
    ("training.feature_norm", "batch", "`training.feature_norm`: input should be 'fixed', 'refreshed' or 'l"),
    ("training.search", {"lr": []}, "`training.search.lr`: "),
    ("training.search", {"ranges": {"lr": ["x"]}}, "`ranges.lr` has text: give factors, which are numbers"),
    (
        "training.search",
        {"ranges": {"r": ["4"]}},
        "`training.search.ranges.r` tries '4', but `methods.lora` reads it as 4: give that",
    ),
    ("training.search", {"share": 0}, "`training.search.share`: input should be greater than 0"),
    ("training.min_steps", -1, "`training.min_steps`: input should be greater than or equal to 0"),
    ("backbones.vit_xs.drop_path", 0.1, "unknown key `backbones.vit_xs.drop_path`"),
    ("pretraining.X", {"weights": "no.pt"}, "`pretraining.X.weights` is 'no.pt', but there is no file"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), MISTAKES)
def test_mistake_names_key_and_remedy(raw, key, value, sentence):
    _set(raw, key, value)
    with pytest.raises(UserError) as error:
        load_config(raw, ROOT, "demo.yaml")
    text = str(error.value)
    assert text.startswith("demo.yaml: ")
    assert sentence in text
    assert "\n" not in text, "one mistake is one sentence"


def test_starts_that_lead_in_a_circle_are_refused_however_long_it_is(raw):
    mae = raw["pretraining"]["mae"]
    raw["pretraining"] |= {f"mae_{n}": mae | {"start": f"mae_{(n + 1) % 3}"} for n in range(3)}
    with pytest.raises(UserError, match=r"`pretraining\.mae_0\.start` leads back to 'mae_0'"):
        load_config(raw, ROOT)
    raw["pretraining"]["mae_2"]["start"] = "mae"
    config = load_config(raw, ROOT)
    assert config.starts("mae_0") == ["mae_0", "mae_1", "mae_2", "mae"]


def test_a_volume_too_small_for_a_densenet_is_told(raw):
    raw["backbones"]["cnn"] = {"kind": "densenet121"}
    load_config(raw, ROOT)
    _set(raw, "preprocessing", {"size": 48})
    with pytest.raises(UserError, match=r"`backbones\.cnn` .* needs a `preprocessing\.size` of at least 64"):
        load_config(raw, ROOT)


def test_every_mistake_is_told_at_once(raw):
    _set(raw, "tasks.ad.tarrget", 1)
    _set(raw, "training.epochs", 0)
    with pytest.raises(UserError) as error:
        load_config(raw, ROOT)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("key", ["tasks.ad.target", "methods.lora.kind", "backbones.vit_xs.kind"])
def test_missing_key_is_named(raw, key):
    part, name, last = key.split(".")
    del raw[part][name][last]
    with pytest.raises(UserError, match=f"`{re.escape(key)}` is missing: add it"):
        load_config(raw, ROOT)


def test_broken_yaml_is_one_sentence(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("cohorts: [unclosed")
    with pytest.raises(UserError, match=r"cannot read the configuration .*broken\.yaml"):
        read_config(path, ROOT)


def test_a_key_that_is_no_text_and_a_file_that_is_not_there_are_one_sentence(tmp_path):
    path = tmp_path / "odd.yaml"
    with pytest.raises(UserError, match=r"cannot read .*odd\.yaml: No such file or directory; give"):
        read_config(path, ROOT)
    path.write_text("{a: 1}: 2")
    with pytest.raises(UserError, match=r"cannot read the configuration .*odd\.yaml.*unhashable key"):
        read_config(path, ROOT)


def test_paths_expand_variables_and_start_at_the_project(raw, tmp_path, monkeypatch):
    (tmp_path / "cohort").mkdir()
    monkeypatch.setenv("COHORT_ROOT", str(tmp_path))
    changed = copy.deepcopy(raw)
    changed["cohorts"]["X"] = {"bids": "$COHORT_ROOT/cohort"}
    changed["cohorts"]["Y"] = {"bids": "cohort"}
    cohorts = load_config(changed, tmp_path).cohorts
    assert cohorts["X"].bids == cohorts["Y"].bids == str(tmp_path / "cohort")


def test_exported_schema_is_current(capsys):
    exported = (ROOT / "workflow/schemas/config.schema.json").read_text()
    assert main(["schema"]) == 0
    assert exported == capsys.readouterr().out, "run `make schema`"


def test_a_key_that_is_given_twice_is_named(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text((ROOT / "workflow/configs/demo.yaml").read_text() + "\ntraining: {epochs: 3}\n")
    with pytest.raises(UserError, match="the key 'training' is given twice"):
        read_config(path, ROOT)


@pytest.mark.parametrize(
    "name", ["config.yaml", *(f"workflow/configs/{n}.yaml" for n in ("demo", "ixi", "hippocampus"))]
)
def test_our_own_configurations_give_each_key_once_and_lead_editors_to_the_schema(name):
    path = ROOT / name
    assert read_yaml(path)
    first, _ = path.read_text().split("\n", 1)
    _, schema = first.split("$schema=")
    assert (path.parent / schema).resolve() == ROOT / "workflow/schemas/config.schema.json"


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("config.yaml", ["methods"]),
        ("config.yaml", ["ablations"]),
        ("config.yaml", ["methods", "cap5516"]),
        ("workflow/configs/ixi.yaml", ["methods", "ixi_methods"]),
    ],
)
def test_ready_configurations_fit_what_they_are_merged_into_and_use_all_that_they_add(
    first, names, monkeypatch
):
    for name in ("IXI_ROOT", "DS002748_ROOT"):
        monkeypatch.setenv(name, "somewhere")
    whole = read_yaml(ROOT / first)
    for name in names:
        added = read_yaml(ROOT / f"workflow/configs/{name}.yaml")
        update_config(whole, added)
    config = load_config(whole, None)
    assert Config.model_validate_json(config.model_dump_json()) == config, "jobs read what the workflow read"
    table = cells(config)
    for part, column in (("methods", "method"), ("backbones", "backbone"), ("pretraining", "pretraining")):
        assert set(added.get(part, [])) <= {getattr(cell, column) for cell in table}
    wanted = {
        (task, backbone, method)
        for block in added["grid"]
        for task in block["tasks"]
        for backbone in block["backbones"]
        for method in block["methods"]
    }
    assert wanted == {(cell.task, cell.backbone, cell.method) for cell in table}, "nothing is skipped"


@pytest.mark.parametrize("parts", [[{"kind": "lora", "r": 2}], 5])
def test_parts_of_a_combination_are_not_for_users(parts):
    whole = read_yaml(ROOT / "config.yaml")
    update_config(whole, read_yaml(ROOT / "workflow/configs/methods.yaml"))
    whole["methods"]["lora_bitfit"]["parts"] = parts
    with pytest.raises(UserError, match=r"`methods\.lora_bitfit\.parts"):
        load_config(whole, None)


def test_several_files_are_merged_as_snakemake_does(tmp_path):
    first, added = ROOT / "config.yaml", ROOT / "workflow/configs/methods.yaml"
    whole = read_yaml(first)
    update_config(whole, read_yaml(added))
    assert read_config(first, None, added) == load_config(whole, None)


def test_config_yaml_is_the_papers_benchmark():
    config = read_config(ROOT / "config.yaml", None)
    tasks = {
        name: (task.target, task.train, task.zero_shot, task.where) for name, task in config.tasks.items()
    }
    assert tasks == {
        "ad": ("diagnosis", "ADNI", ["OASIS"], {}),
        "age": ("age", "ADNI", ["OASIS"], {"diagnosis": "CN"}),  # of controls only
        "pd": ("diagnosis", "Taiwan", ["UPenn"], {}),
    }
    for name in ("ad", "pd"):  # the second class is the positive one
        assert [*config.tasks[name].class_values().values()] == [["CN"], [name.upper()]]
    assert {name: mae.cohort for name, mae in config.trained.items()} == {"mae_ukb": "UKB"}
    # Table 1 counts the parameters of these networks and methods.
    methods = {name: method for name, method in config.methods.items() if not method.shuffle_labels}
    for ours, counted in ((config.backbones, BACKBONES), (methods, METHODS)):
        assert ours.keys() == counted.keys()
        for name, settings in counted.items():
            assert settings.items() <= ours[name].model_dump().items()
