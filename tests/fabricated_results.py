"""FABRICATED results: files as a finished run leaves them, with invented numbers. For tests only.

No model made these scores and no person stands behind them; the names ADNI and OASIS serve to test where
published figures appear.
"""

import fcntl
import json
import shutil
import zlib
from pathlib import Path

import numpy as np

from neuropeft import layout
from neuropeft.cells.costs import cell_folder
from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders, controls_of, score_spec, scored_together
from neuropeft.evaluate.score import score
from neuropeft.evaluate.scores import Score, read_scores
from neuropeft.files import write_tsv
from neuropeft.grid import Cell, cells, encoders, subsets_of, used_tasks
from neuropeft.probe_grid import Probed, probe_folder, probed
from neuropeft.probe_names import PERMUTATIONS, PERMUTED, PROBES, null_file, null_method
from neuropeft.split_names import split_name
from neuropeft.subsets import WHOLE, Subset, fraction
from neuropeft.train.history import write_history

TRAINABLE = {
    ("vit_b", "scratch"): 88204034,
    ("vit_b", "full"): 88204034,
    ("vit_b", "attention"): 28349954,
    ("vit_b", "lora"): 1181186,
    ("vit_b", "layernorm"): 39938,
    ("vit_s", "scratch"): 12221570,
    ("vit_s", "full"): 12221570,
    ("vit_s", "attention"): 3548930,
    ("vit_s", "lora"): 295682,
    ("vit_s", "layernorm"): 10754,
    ("densenet121", "scratch"): 11244674,
}
SEPARATION = {"scratch": 0.7, "full": 1.4, "attention": 1.5, "lora": 1.2, "layernorm": 1.0, "shuffled": 0.0}
MISSING_CELL = Cell("ad", "vit_b", "mae", "lora", WHOLE, 2)
MISSING_GROUP = ("ad", "vit_s", "mae", "layernorm", fraction(10))
PREDICTION_COLUMNS = ("subset", "seed", "fold", "split", "scan_id", "subject", "session", "y", "score")
UNKNOWN = {"age": None, "sex": None}
SUBJECTS = {"ADNI": 60, "OASIS": 40, "SimA": 50, "SimB": 30}


def small_config(**changes: object) -> Config:
    """Two tasks (one real in name, one simulated), two ViTs and a CNN, three seeds, several fractions."""
    decoder = {"width": 96, "depth": 1, "heads": 4}
    raw: dict = {
        "cohorts": {
            "ADNI": {"bids": "adni"},
            "OASIS": {"bids": "oasis"},
            "SimA": {"simulated": {"subjects": 50}},
            "SimB": {"simulated": {"subjects": 30}},
        },
        "preprocessing": {"size": 64},
        "tasks": {
            "ad": {
                "kind": "binary",
                "target": "diagnosis",
                "classes": {"CN": "CN", "AD": "AD"},
                "train": "ADNI",
                "zero_shot": ["OASIS"],
            },
            "age": {
                "kind": "regression",
                "target": "age",
                "unit": "years",
                "train": "SimA",
                "zero_shot": ["SimB"],
            },
        },
        "backbones": {
            "vit_b": {"kind": "vit", "width": 768, "depth": 12, "heads": 12, "decoder": decoder},
            "vit_s": {"kind": "vit", "width": 384, "depth": 6, "heads": 8, "decoder": decoder},
            "densenet121": {"kind": "densenet121"},
        },
        "pretraining": {"mae": {"cohort": "SimA", "steps": 50, "batch_size": 8}},
        "methods": {
            "scratch": {"kind": "scratch", "lr": 1e-4},
            "full": {"kind": "full", "lr": 1e-4},
            "attention": {"kind": "attention", "lr": 1e-4},
            "lora": {"kind": "lora", "lr": 1e-3},
            "layernorm": {"kind": "layernorm", "lr": 1e-3},
            "shuffled": {"kind": "full", "lr": 1e-4, "shuffle_labels": True},
        },
        "grid": [
            {
                "tasks": ["ad"],
                "backbones": ["vit_b", "vit_s", "densenet121"],
                "pretraining": ["mae"],
                "methods": ["scratch", "full", "attention", "lora", "layernorm"],
                "fractions": [10, 50, 100],
                "seeds": [0, 1, 2],
            },
            {
                "tasks": ["age"],
                "backbones": ["vit_b"],
                "pretraining": ["mae"],
                "methods": ["scratch", "full", "lora", "shuffled"],
                "fractions": [25, 100],
                "seeds": [0, 1, 2],
            },
        ],
        "figures": {"tradeoff_fraction": 10},
    }
    return Config.model_validate(raw | changes)


def fabricate(config: Config, results: Path) -> None:
    """Write every file that scores and figures derive from, leaving out MISSING_CELL and MISSING_GROUP."""
    present = [cell for cell in cells(config) if not _missing(cell)]
    for cell in present:
        _write_cell(config, results, cell)
    groups = sorted({(c.task, c.backbone, c.pretraining, c.method) for c in present})
    for group in groups:
        runs = [c for c in present if (c.task, c.backbone, c.pretraining, c.method) == group]
        task = config.tasks[group[0]]
        for cohort in (task.train, *task.zero_shot):
            rows = [row for cell in runs for row in _prediction_rows(config, cell, cohort)]
            write_tsv(Path(results, "predictions", *group, f"{cohort}.tsv"), rows, PREDICTION_COLUMNS)
    for name in used_tasks(config):
        task = config.tasks[name]
        for place in sorted({(cell.seed, cell.fold) for cell in present if cell.task == name}):
            for cohort in (task.train, *task.zero_shot):
                _write_controls(config, results, name, place, cohort)
                _write_probes(config, results, name, place, cohort)
    for encoder in encoders(config):
        _write_pretraining(config, layout.PRETRAINED.at(results, **encoder.names))
    for cohort, subjects in SUBJECTS.items():
        _write_cohort(results / "cohorts" / cohort, subjects)


def scored(config: Config, results: Path, only: str = "") -> list[Score]:
    """Score what is in a results folder, all of it or what begins with a name, and read the scores."""
    for name, some in scored_together(contenders(config)).items():
        if name.startswith(only):
            files = (place.at(results, scored=name) for place in (layout.SCORES, layout.SCORE_DRAWS))
            score(score_spec(config, some), results, *files)
    return read_scores(config, results, with_draws=True)


def small_results(folder: Path, shared: Path, config: Config | None = None) -> Path:
    """Write the results of a configuration, by default `small_config`, scored, into a folder; return it.

    They take half a minute, so they are made once in `shared`, which all processes of a run of the tests
    know, and copied from there: a test may change its own.
    """
    config = config or small_config()
    made = shared / f"fabricated-{zlib.crc32(config.model_dump_json().encode()):08x}"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that failed at it
            fabricate(config, unfinished)
            scored(config, unfinished)
            unfinished.rename(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


def contender(config: Config, *group: object) -> Contender:
    """Return the contender of a task, backbone, pretraining, method and subset."""
    return next(one for one in contenders(config) if one.group == group)


def truth(config: Config, task: str, cohort: str, split: str, fold: int = 0) -> list[tuple[str, float]]:
    """Subjects of one side with their targets, the same for all seeds."""
    subjects = range(SUBJECTS[cohort])
    if split != "zero-shot":  # every third subject, or a fold, is for testing, some others for validation
        folds, tested = (config.splits.folds, fold - 1) if config.splits.folds else (3, 0)
        subjects = [
            s
            for s in subjects
            if (s % folds == tested) == (split == "test") and (split == "test" or s % 4 == 1)
        ]
    if config.tasks[task].kind == "binary":
        return [(f"{cohort}{s:03d}", float(s // 3 % 2)) for s in subjects]
    return [(f"{cohort}{s:03d}", 50.0 + (7 * s) % 35) for s in subjects]


def _missing(cell: Cell) -> bool:
    of_group = (cell.task, cell.backbone, cell.pretraining, cell.method, cell.subset)
    return cell == MISSING_CELL or of_group == MISSING_GROUP


def _splits(config: Config, task: str, cohort: str) -> tuple[str, ...]:
    return ("val", "test") if cohort == config.tasks[task].train else ("zero-shot",)


def _prediction_rows(config: Config, cell: Cell, cohort: str) -> list[dict]:
    rng = np.random.default_rng(hash_of(cell, cohort))
    strength = SEPARATION[cell.method] * (0.4 + 0.6 * cell.subset.size / 100)
    rows = []
    for split in _splits(config, cell.task, cohort):
        for subject, y in truth(config, cell.task, cohort, split, cell.fold):
            if config.tasks[cell.task].kind == "binary":
                score = 1 / (1 + np.exp(-(strength * (2 * y - 1) + rng.normal())))
            else:
                score = 67 + (y - 67) * strength / 2 + rng.normal(0, 5)
            common = {
                "subset": cell.subset,
                "seed": cell.seed,
                "fold": cell.fold,
                "split": split,
                "subject": subject,
                "y": y,
            }
            rows.append(common | {"scan_id": f"{subject}_1", "session": "M6", "score": f"{score:.6f}"})
            # A later scan with a wrong score: it must not count.
            rows.append(common | {"scan_id": f"{subject}_2", "session": "M12", "score": f"{1 - y:.1f}"})
    return rows


def hash_of(cell: Cell, cohort: str) -> int:
    """A number that follows from the cell and does not change between runs of Python."""
    return zlib.crc32(f"{cell.path}{cohort}".encode())


def _write_cell(config: Config, results: Path, cell: Cell) -> None:
    folder = cell_folder(results, cell)
    folder.mkdir(parents=True, exist_ok=True)
    subjects = {10: 258, 25: 60, 50: 1290, 100: 2580}[cell.subset.size]
    backbone_method = (cell.backbone, "full" if cell.method == "shuffled" else cell.method)
    cost = {
        "trainable": TRAINABLE[backbone_method],
        "head": 1538,
        "total": 88204034,
        "modules": 12,
        "tensors": 48,
        "delta_bytes": 4 * TRAINABLE[backbone_method],
        "peak_memory_bytes": 3 * 2**30,
        "train_seconds": 61.5,
        "start_seconds": 4.2,
        "seconds_per_step": 2.1,
        "steps": 20,
        "best_step": 12,
        "best_val_loss": 0.4,
        "train_subjects": subjects // 3,
        "train_scans": subjects,
        "device": "cpu",
        "torch": "2.13.0",
        "flops_per_sample": None,
        "resumed": 0,
        "accumulation": 1,
    }
    (folder / "cost.json").write_text(json.dumps(cost))
    rng = np.random.default_rng(hash_of(cell, ""))
    losses = [0.35 + 0.35 * np.exp(-step / 6) for step in range(20)]
    write_history(
        folder / "history.csv",
        [
            {
                "step": step,
                "lr": 1e-4,
                "train_loss": loss * 0.9 + rng.normal(0, 0.005),
                "val_loss": loss + rng.normal(0, 0.02),
                "val_metric": 0.8,
                "seconds": 2.1,
            }
            for step, loss in enumerate(losses, start=1)
        ],
    )


def _write_controls(config: Config, results: Path, task: str, place: tuple[int, int], cohort: str) -> None:
    seed, fold = place
    rng = np.random.default_rng(place)
    rows = [
        row
        for subset in subsets_of(cells(config), task)
        for method in controls_of(config, task)
        for split in _splits(config, task, cohort)
        for row in _control_rows(
            config, task, cohort, rng, {"method": method, "subset": subset, "split": split, "fold": fold}
        )
    ]
    path = results / "controls" / task / split_name(*place) / f"{cohort}.tsv"
    write_tsv(path, [row | {"seed": seed} for row in rows], ("method", *PREDICTION_COLUMNS))


def _control_rows(config: Config, task: str, cohort: str, rng: np.random.Generator, run: dict) -> list[dict]:
    kind = config.tasks[task].kind
    rows = []
    for index, (subject, y) in enumerate(truth(config, task, cohort, run["split"], run["fold"])):
        noise = rng.normal()
        score = 0.5 if kind == "binary" else 67.0
        if run["method"] == "ridge_voxels":
            score = 1 / (1 + np.exp(-(2 * y - 1 + noise))) if kind == "binary" else y + 8 * noise
        elif run["method"] in ("age_sex", "sex_site"):
            # Unknown for every fifth subject, as where a table lacks an age.
            score = None if index % 5 == 0 else score + noise / 10
        rows.append(
            run | {"scan_id": f"{subject}_1", "subject": subject, "session": "M6", "y": y, "score": score}
        )
    return rows


def _write_probes(config: Config, results: Path, task: str, place: tuple[int, int], cohort: str) -> None:
    for one in probed(cells(config)):
        if one.task == task:
            path = probe_folder(results, one, split_name(*place)) / f"{cohort}.tsv"
            strength = 0.3 if one.pretraining == "none" else 0.9
            methods = dict.fromkeys(PROBES, strength)
            null = {null_method(probe, k): 0.0 for probe in PERMUTED for k in range(PERMUTATIONS)}
            for table, strengths in ((path, methods), (null_file(path), null)):
                rows = [
                    row
                    for method, strength in strengths.items()
                    for subset in subsets_of(cells(config), task)
                    for row in _probe_rows(config, one, cohort, method, strength, subset, place)
                ]
                write_tsv(table, rows, ("method", *PREDICTION_COLUMNS))


def _probe_rows(
    config: Config,
    one: Probed,
    cohort: str,
    method: str,
    strength: float,
    subset: Subset,
    place: tuple[int, int],
) -> list[dict]:
    rng = np.random.default_rng(zlib.crc32(f"{one}{cohort}{method}{subset}{place}".encode()))
    seed, fold = place
    rows = []
    for split in _splits(config, one.task, cohort):
        for subject, y in truth(config, one.task, cohort, split, fold):
            if config.tasks[one.task].kind == "binary":
                score = 1 / (1 + np.exp(-(strength * (2 * y - 1) + rng.normal())))
            else:
                score = 67 + (y - 67) * strength / 2 + rng.normal(0, 5)
            rows.append(
                {"method": method, "subset": subset, "seed": seed, "fold": fold, "split": split}
                | {"scan_id": f"{subject}_1", "subject": subject, "session": "M6", "y": y}
                | {"score": f"{score:.6f}"}
            )
    return rows


def _write_pretraining(config: Config, folder: Path) -> None:
    folder.mkdir(parents=True)
    write_history(
        folder / "history.csv",
        [
            {
                "step": step,
                "lr": 1e-4,
                "train_loss": 0.4 + 0.6 * np.exp(-step / 9),
                "val_loss": 0.42 + 0.6 * np.exp(-step / 9),
                "template_loss": 0.5,
                "participation_ratio": 1 + step / 10,
                "probe_age": 0.6 - 0.6 * np.exp(-step / 9),
                "probe_sex": 0.5 - 0.5 * np.exp(-step / 20),
                "seconds": 3.0,
            }
            for step in range(1, 41)
        ],
    )
    size = config.preprocessing.size
    grid = np.indices((size,) * 3) - size / 2
    ball = (np.sqrt((grid**2).sum(0)) < size * 0.4) * (1 + 0.5 * np.sin(grid[0] / 2)) - 0.5
    rng = np.random.default_rng(0)
    volumes = np.stack([ball + 0.1 * rng.normal(size=ball.shape) for _ in range(3)])
    hidden = np.kron(rng.random((3, 4, 4, 4)) < 0.75, np.ones((1, size // 4, size // 4, size // 4))) > 0
    np.savez(
        folder / "reconstructions.npz",
        input=volumes.astype(np.float16),
        mask=hidden,
        reconstruction=np.repeat(ball[None], 3, axis=0).astype(np.float16),
    )


def _write_cohort(folder: Path, subjects: int) -> None:
    rows = [
        {
            "row": 2 * s + scan,
            "scan_id": f"{folder.name}{s:03d}_{scan + 1}",
            "subject": f"{folder.name}{s:03d}",
            "session": ("M6", "M12")[scan],
            "age": 50.5 + s % 30 if (s, scan) != (0, 1) else 99.0,  # that of the excluded scan
            "sex": "FMM"[s % 3],
        }
        | (UNKNOWN if (folder.name, s) == ("OASIS", 1) else {})
        for s in range(subjects)
        for scan in range(2)
    ]
    stored = [row for row in rows if row["scan_id"] != f"{folder.name}000_2"]
    write_tsv(folder / "store" / "scans.tsv", stored, ("row", "scan_id", "subject", "session"))
    write_tsv(folder / "subjects.tsv", rows, ("subject", "session", "scan_id", "age", "sex"))
    excluded = [{"scan_id": f"{folder.name}000_2", "reason": "fabricated"}]
    write_tsv(folder / "excluded.tsv", excluded, ("scan_id", "subject", "session", "path", "step", "reason"))
