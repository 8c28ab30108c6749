"""Simulated cohorts whose truth is known in closed form, taken through the benchmark's own code.

A simulated scan is a cube of eight regions, each of a brightness that is drawn for each subject, and noise.
The disease brightens one region, age another, and the scanner a third. No brain is simulated: what is asked
is whether scores, intervals, checks and warnings are right. `make demo` asks about preprocessing.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from neuropeft import layout
from neuropeft.cohorts.leaks import check_leaks
from neuropeft.cohorts.splits import make_split, read_usable, write_split
from neuropeft.config import Config
from neuropeft.contenders import confound_spec, controls_of
from neuropeft.evaluate.confounds import write_confounds
from neuropeft.evaluate.controls import write_controls
from neuropeft.evaluate.partial import score_all
from neuropeft.evaluate.probes import write_probes
from neuropeft.evaluate.scores import Score, read_scores
from neuropeft.files import write_tsv
from neuropeft.grid import NO_PRETRAINING, backbone_spec, bases, cell_specs, cells, splits_of, subsets_of
from neuropeft.inputs.store import write_volumes
from neuropeft.inputs.volume import KIND
from neuropeft.probe_grid import Probed, probe_folder
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Array
from neuropeft.train.features import write_features
from neuropeft.train.pack import finetune_pack
from neuropeft.train.predict import predict
from neuropeft.train.state import CELL_FILES, FINISHED

COHORT, BACKBONE = "Simulated", "vit"
EDGE, REGION = 16, 8  # of the cube and of a region, voxels; a region is a patch of the network
NOISE = 0.5  # SD of a voxel, of which a region's brightness has 1
AGE, AGE_SD = 65.0, 8.0  # years
METHODS: dict[str, dict[str, Any]] = {
    "scratch": {"kind": "scratch", "lr": 5e-4, "head_lr": 1e-3},
    "lora": {"kind": "lora", "r": 4, "alpha": 4, "lr": 2e-3, "head_lr": 1e-3},
    "shuffled": {"kind": "scratch", "lr": 5e-4, "head_lr": 1e-3, "shuffle_labels": True},
}


@dataclass(frozen=True)
class Planted:
    """What a simulated cohort holds.

    Attributes:
        effect: by how many SDs the region of the disease is brighter in patients.
        ageing: correlation of the region of age with age.
        site: by how many SDs the region of the scanner is brighter at site B.
        agreement: share of the patients at site B, and of the others at site A.
        filed_twice: whether every scan is filed under a second subject's name, too.
        subjects: number of subjects, each counted once.
    """

    effect: float = 0.0
    ageing: float = 0.0
    site: float = 0.0
    agreement: float = 0.5
    filed_twice: bool = False
    subjects: int = 300

    @property
    def auc(self) -> float:
        """The best AUC that there can be."""
        return float(norm.cdf(self.effect / math.sqrt(2)))

    @property
    def mae(self) -> float:
        """The least mean absolute error that there can be, years."""
        return AGE_SD * math.sqrt(1 - self.ageing**2) * math.sqrt(2 / math.pi)


def config_of(methods: list[str]) -> Config:
    """Return a configuration of two tasks, an untrained network and some of METHODS."""
    raw: dict[str, Any] = {
        "cohorts": {COHORT: {"table": "simulated.tsv", "input": "volume"}},
        "preprocessing": {"size": EDGE},
        "tasks": {
            "ad": {"kind": "binary", "target": "group", "classes": {"CN": "CN", "AD": "AD"}, "train": COHORT},
            "age": {"kind": "regression", "target": "age", "unit": "years", "train": COHORT},
        },
        "splits": {"test": 0.3, "validation": 0.1},
        "backbones": {
            BACKBONE: {"kind": "vit", "width": 48, "depth": 2, "heads": 2, "patch_size": REGION,
                "decoder": {"width": 48, "depth": 1, "heads": 2}}
        },
        "methods": {name: METHODS[name] for name in methods},
        "training": {
            "epochs": 4, "batch_size": 16, "warmup_epochs": 1, "pool": "concat", "head_start": "probe",
        },
        "grid": [
            {
                "tasks": ["ad", "age"], "backbones": [BACKBONE], "pretraining": [NO_PRETRAINING],
                "methods": methods, "seeds": [0],
            }
        ],
    }  # fmt: skip
    return Config.model_validate(raw)


def draw(planted: Planted, seed: int) -> tuple[Array, list[dict[str, Any]]]:
    """Return the brightness of the regions of each subject, [subjects, 8], and who they are."""
    rng = np.random.default_rng(seed)
    n = planted.subjects
    group, sex = np.arange(n) % 2, np.arange(n) // 2 % 2
    age = rng.normal(0, 1, n)
    site = np.where(rng.random(n) < planted.agreement, group, 1 - group)
    brightness = rng.normal(0, 1, (n, 8))
    brightness[:, 0] += planted.effect * group
    brightness[:, 1] = planted.ageing * age + math.sqrt(1 - planted.ageing**2) * brightness[:, 1]
    brightness[:, 2] += planted.site * site
    years = np.round(AGE + AGE_SD * age, 2)
    return brightness, [
        {"group": int(group[i]), "age": years[i], "sex": "FM"[sex[i]], "site": "AB"[site[i]]}
        for i in range(n)
    ]


def write_cohort(results: Path, planted: Planted, seed: int) -> None:
    """Write the store, the labels and the sites of a simulated cohort."""
    brightness, drawn = draw(planted, seed)
    n = planted.subjects
    regions = brightness.reshape(n, 2, 2, 2).repeat(REGION, 1).repeat(REGION, 2).repeat(REGION, 3)
    volumes = regions + NOISE * np.random.default_rng([seed, 1]).normal(size=regions.shape)
    names = [f"{name}{i:04d}" for name in ("subject", "again")[: 1 + planted.filed_twice] for i in range(n)]
    people = [{**drawn[i % n], "subject": name, "scan_id": name} for i, name in enumerate(names)]
    arrays = (volumes[i % n][None].astype(np.float32) for i in range(len(people)))
    stored = layout.STORED_SCANS.at(results, cohort=COHORT)
    hashes = write_volumes(layout.VOLUMES.at(results, cohort=COHORT), arrays, len(people), KIND.signature)
    rows = [
        {**one, "row": i, "sha1": sha1, "raw_sha1": sha1}
        for i, (one, sha1) in enumerate(zip(people, hashes, strict=True))
    ]
    write_tsv(stored, rows, ("row", "scan_id", "subject", "session", "sha1", "raw_sha1"))
    write_tsv(layout.SITES.at(results, cohort=COHORT), rows, ("scan_id", "site"))
    for task, column in (("ad", "group"), ("age", "age")):
        labels = [{**row, "y": row[column]} for row in rows]
        path = layout.LABELS.at(results, task=task, cohort=COHORT)
        write_tsv(path, labels, ("scan_id", "subject", "session", "y", "sex", "age"))


def write_splits(results: Path, config: Config) -> list[Path]:
    """Split the subjects of each task; return the files."""
    written = []
    for name, task in config.tasks.items():
        stored = layout.STORED_SCANS.at(results, cohort=COHORT)
        rows = read_usable(layout.LABELS.at(results, task=name, cohort=COHORT), stored)
        shares = config.splits.test_share, config.splits.validation
        path = layout.SPLIT.at(results, task=name, split="seed-0")
        write_split(path, make_split(rows, 0, *shares, kind_of(task), name))
        written.append(path)
    return written


def check(results: Path, split: Path) -> None:
    """Check a split for leaks, as the workflow does before anything is trained."""
    stored = layout.STORED_SCANS.at(results, cohort=COHORT)
    out = layout.LEAKS.at(results, task=split.parent.name, cohort=COHORT, split=split.stem)
    check_leaks(split, stored, None, None, out, same=0.985)


def study(results: Path, planted: Planted, seed: int, methods: list[str]) -> list[Score]:
    """Simulate a cohort and run the benchmark on it, all but the check for leaks; return the scores."""
    config = config_of(methods)
    write_cohort(results, planted, seed)
    write_splits(results, config)
    store, spec = layout.STORE.at(results, cohort=COHORT), backbone_spec(config, BACKBONE)
    names = {"pretraining": NO_PRETRAINING, "backbone": BACKBONE, "fold_part": ""}
    features = layout.FEATURES.at(results, **names, cohort=COHORT)
    write_features(spec, None, store, features, "cpu")
    for name, task in config.tasks.items():
        kind, split = kind_of(task), layout.SPLIT.at(results, task=name, split="seed-0")
        subsets, targets = subsets_of(cells(config), name), list(task.target_columns.values())
        out = layout.CONTROLS.at(results, task=name, split=split.stem)
        write_controls(kind, controls_of(config, name), targets, split, subsets, [COHORT], out)
        one = Probed(name, BACKBONE, NO_PRETRAINING)
        write_probes(kind, split, subsets, [COHORT], [features], probe_folder(results, one, split.stem))
    for base in bases(config):
        _train(results, config, base)
    score_all(config, results, results)
    for name in config.tasks:
        write_confounds(confound_spec(config, name), results, layout.CONFOUNDS.at(results, task=name))
    return read_scores(config, results, with_draws=True)


def _train(results: Path, config: Config, base: tuple[str, ...]) -> None:
    """Fine-tune the cells of a base and predict their cohort."""
    some = [cell for cell in cells(config) if cell.base == base]
    store, states = layout.STORE.at(results, cohort=COHORT), layout.CELL_STATES.at(results)
    splits = [layout.SPLIT.at(results, task=base[0], split=name) for name in splits_of(some)]
    table = states / "-".join(base)
    finetune_pack(json.loads(cell_specs(config, some)), store, splits, None, states, table, device="cpu")
    deltas = [layout.CELL_STATE.at(results, **cell.names) / FINISHED / CELL_FILES[0] for cell in some]
    names = {**some[0].names, "cohort": COHORT}
    predict(deltas, [], store, splits, layout.PREDICTIONS.at(results, **names), "cpu")
