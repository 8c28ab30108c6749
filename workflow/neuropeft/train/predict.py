"""Predict one cohort with all cells that share a base: the network and the volumes are loaded once."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuropeft import layout
from neuropeft.backbones.checkpoints import read_metadata, read_tensors
from neuropeft.backbones.heads import Predictor
from neuropeft.cohorts.splits import TEST, TRAIN, VALIDATION, ZERO_SHOT, first_rows, take_subset
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.methods.adapt import load_delta
from neuropeft.progress import track
from neuropeft.records import check_whole, file_digest, write_record
from neuropeft.split_names import seed_and_fold, split_name
from neuropeft.store import Store, open_store
from neuropeft.subsets import Subset
from neuropeft.tasks.base import COLUMNS
from neuropeft.train.choices import with_choice
from neuropeft.train.data import Volumes, load_volumes, pick_device
from neuropeft.train.finetune import make_model
from neuropeft.train.labels import stored_sessions, with_sessions
from neuropeft.train.memory import BatchSize
from neuropeft.train.sources import cell_key, data_sources, differing, kind_of, prediction_sources

Rows = Sequence[Mapping[str, Any]]


class Shown(NamedTuple):
    """Scans that a cell predicts."""

    store: Store  # where they are stored
    volumes: Volumes  # what is loaded of it
    places: Tensor  # their rows of `volumes`, [n]
    scans: list[str]  # their names, [n]
    at_once: BatchSize  # how many pass through the network at a time
    folder: Path  # where label maps or images go, of a kind that predicts them
    split: Rows = ()  # all rows of the cell's split
    delta: str = ""  # SHA-256 of the cell's delta
    described: Path | None = None  # what is said of the cohort's own images, of a kind that draws some


class CellShown(NamedTuple):
    """A trained cell, and the scans of a cohort that it is to predict."""

    delta: str | Path  # the file of what its training changed
    sha256: str  # of that file
    encoder: str | Path | None  # the file of the weights that it started from; None from random ones
    spec: dict[str, Any]  # what defines the cell
    metadata: dict[str, str]  # of the delta
    model: Predictor  # its network, in evaluation mode, which the next cell takes over
    rows: Rows  # the scans with their targets, see `predict`, [n]
    shown: Shown  # the same scans, as volumes

    def only(self, wanted: Callable[[Mapping[str, Any]], bool]) -> "CellShown":
        """Return the same cell with those of its scans whose rows are wanted."""
        kept = [place for place, row in enumerate(self.rows) if wanted(row)]
        places, scans = self.shown.places[kept], [self.shown.scans[place] for place in kept]
        shown = self.shown._replace(places=places, scans=scans)
        return self._replace(rows=[self.rows[place] for place in kept], shown=shown)

    def predictions(self) -> list[dict[str, Any]]:
        """Return the rows of the scans with what the network predicts of them; see `predict`."""
        kind, offset = kind_of(self.spec), json.loads(self.metadata["offset"])
        predictor = import_module(f"neuropeft.{kind.predictor or kind.learner}")
        scores = predictor.predicted(self.model, self.spec, self.metadata, self.shown)
        cell = {key: self.spec[key] for key in ("subset", "seed", "fold")}
        prior = _texts(kind.prior_columns, kind.prior(offset))
        return [
            {**row, **cell, **_texts(kind.score_columns, score), **prior}
            for row, score in zip(self.rows, scores, strict=True)
        ]


Place = tuple[int, int]  # seed and fold


def columns_of(spec: Mapping[str, Any]) -> list[str]:
    """Return the columns of the predictions of a cell's kind of task."""
    kind = kind_of(spec)
    return [*COLUMNS, *kind.score_columns, *kind.prior_columns]


def predict(
    deltas: Sequence[str | Path],
    encoders: Sequence[str | Path],
    store_dir: str | Path,
    subjects: Sequence[str | Path],
    out_tsv: str | Path,
    device: str | None = None,
    told: str = "",
    described: Path | None = None,
) -> None:
    """Write the predictions of every delta, a row per scan.

    Args:
        deltas: Files that `finetune` wrote, of cells that differ in subset, seed and fold alone.
        encoders: The pretrained encoders that they started from, in any order: one, or one for each fold;
            none if they started from random weights.
        store_dir: Store of the cohort.
        subjects: Who is predicted: the split of each seed and fold, called as `split_names` says, of which
            the test side is and, of the validation side, the subset of a cell; or one table of labels of a
            zero-shot cohort, of which everybody is.
        out_tsv: The table to write: subset, seed, fold, split (the side), scan_id, subject, session, y and
            score (a probability, or a value in the target's unit); with more than two classes score_0,
            score_1, ... and prior_0, prior_1, ..., how frequent a class was in training. Of a segmentation,
            how well each region was found, of a generation how much like others an image is; the label maps
            and images go to `layout.predicted_files`.
        device: As torch names it; the GPU if there is one.
        told: What the kind of the task must know besides, where that trains nothing, as JSON.
        described: What `describe` wrote of the cohort's images, of a kind that draws some.

    Raises:
        UserError: A delta or an encoder is damaged; a delta belongs to another base, started from none of the
            encoders, has no split, or was trained on another split or other volumes than these.
    """
    table: list[dict[str, Any]] = []
    made_from: dict[str, str] = {}
    for cell in cells_shown(deltas, encoders, store_dir, subjects, out_tsv, device, told, described):
        made_from[cell_key(cell.spec)] = cell.sha256
        table += cell.predictions()
    write_tsv(out_tsv, table, columns_of(cell.spec))
    stored, tables = file_digest(Path(store_dir) / "scans.tsv"), [file_digest(path) for path in subjects]
    write_record([Path(out_tsv)], prediction_sources(cell.spec, made_from, stored, tables, told))


def cells_shown(
    deltas: Sequence[str | Path],
    encoders: Sequence[str | Path],
    store_dir: str | Path,
    subjects: Sequence[str | Path],
    out_tsv: str | Path,
    device: str | None = None,
    told: str = "",
    described: Path | None = None,
) -> Iterator[CellShown]:
    """Yield every cell with the scans that it predicts; arguments and errors are those of `predict`."""
    where = pick_device(device)
    store = open_store(store_dir)
    sessions = stored_sessions(store_dir)
    wanted = _wanted(subjects, sessions, store_dir)
    tested = [row for rows in wanted.values() for row in with_sessions(_tested(rows), sessions)]
    scans = sorted({row["scan_id"] for row in tested})
    volumes = load_volumes(store.volumes, [store.index_of(scan) for scan in scans], where)
    places = {scan: place for place, scan in enumerate(scans)}
    at_once: BatchSize | None = None
    whole = {path: check_whole(path) for path in deltas}
    splits = {seed_and_fold(path): Path(path) for path in subjects if None not in wanted}
    for path, encoder, trained, metadata, model in _models(deltas, encoders, where):
        spec = trained | ({"task": {**trained["task"], "told": told}} if told else {})
        _check_trained_on(path, spec, metadata, splits, Path(store_dir))
        at_once = at_once or BatchSize(int(spec["training"]["batch_size"]))
        kind = kind_of(spec)
        rows = with_sessions(_rows_of(wanted, spec, path), sessions)
        if not kind.predicts_validation:  # nor scans that no score counts
            rows = list(first_rows(row for row in rows if row["split"] != VALIDATION).values())
        index = torch.tensor([places[row["scan_id"]] for row in rows], device=where)
        folder = layout.predicted_files(Path(out_tsv), spec["subset"], split_name(spec["seed"], spec["fold"]))
        split = wanted.get((int(spec["seed"]), int(spec["fold"])), [])
        names = [row["scan_id"] for row in rows]
        shown = Shown(store, volumes, index, names, at_once, folder, split, whole[path], described)
        yield CellShown(path, whole[path], encoder, spec, metadata, model, rows, shown)


def _check_trained_on(
    delta: str | Path,
    spec: Mapping[str, Any],
    metadata: Mapping[str, str],
    splits: Mapping[Place, Path],
    store_dir: Path,
) -> None:
    """Check that a cell was trained on what it is now tested beside; of another cohort nothing can be."""
    if (place := (int(spec["seed"]), int(spec["fold"]))) not in splits:
        return
    now = data_sources(splits[place], store_dir / "scans.tsv", Subset.parse(spec["subset"]), kind_of(spec))
    if other := differing(json.loads(metadata["made_from"]), now):
        raise UserError(
            f"{delta} was trained with other {' and other '.join(other)} than those of {splits[place]} and "
            f"{store_dir}; give what it was trained with, or train it again"
        )


def _models(
    deltas: Sequence[str | Path], encoders: Sequence[str | Path], device: torch.device
) -> Iterator[tuple[str | Path, str | Path | None, dict[str, Any], dict[str, str], Predictor]]:
    """Yield each delta, its encoder, settings, metadata and network; those of an encoder together."""
    digests: dict[str, str | Path | None] = {check_whole(path): path for path in encoders} or {"": None}
    of_encoder: dict[str, list[str | Path]] = {digest: [] for digest in digests}
    base = None
    for path in deltas:
        metadata = read_metadata(path)
        spec, digest = json.loads(metadata["spec"]), json.loads(metadata["made_from"])["encoder"]
        base = base or _base(spec)
        if _base(spec) != base:
            raise UserError(
                f"{path} has another task, backbone or method than {deltas[0]}; predict them apart"
            )
        if digest not in digests:
            given = ", ".join(map(str, encoders)) or "none"
            raise UserError(
                f"{path} was not trained from any of the encoders given ({given}); give the encoder that it "
                "started from, or train it again"
            )
        of_encoder[digest].append(path)
    model, model_of = None, None
    in_order = [(digest, path) for digest, paths in of_encoder.items() for path in paths]
    for digest, path in track(in_order, len(in_order), "predicting"):
        state, metadata = read_tensors(path)
        spec = json.loads(metadata["spec"])
        # Random weights that stay frozen follow from the seed.
        start = (digest, None if digest else spec["seed"], metadata["choice"])
        if model is None or model_of != start:
            settings = with_choice(spec, json.loads(metadata["choice"]))
            model, model_of = make_model(settings, digests[digest]).to(device).eval(), start
        load_delta(model, state)
        yield path, digests[digest], spec, metadata, model


def _wanted(
    paths: Sequence[str | Path], sessions: Mapping[str, str], store_dir: str | Path
) -> dict[Place | None, Rows]:
    """Return the rows of each split; under None, a zero-shot cohort's, for all cells."""
    wanted: dict[Place | None, Rows] = {}
    for path in map(Path, paths):
        rows: list[dict[str, str]] = read_tsv(path)
        is_split = bool(rows) and "side" in rows[0]
        if is_split:
            rows = [{**row, "split": row["side"]} for row in rows]
        else:
            rows = [{**row, "split": ZERO_SHOT} for row in rows]
        if not with_sessions(_tested(rows), sessions):
            raise UserError(
                f"no scan of {path} that is to be predicted is in the store {store_dir}; check both"
            )
        wanted[seed_and_fold(path) if is_split else None] = rows
    return wanted


def _tested(rows: Rows) -> Rows:
    return [row for row in rows if row["split"] != TRAIN]


def _rows_of(wanted: Mapping[Place | None, Rows], spec: Mapping[str, Any], delta: str | Path) -> Rows:
    """Return the rows to predict for a cell: of validation, only those that its subset holds."""
    if None in wanted:
        return wanted[None]
    place = int(spec["seed"]), int(spec["fold"])
    if place not in wanted:
        name = split_name(*place)
        raise UserError(f"{delta} was trained on the split {name}, which is not given; add {name}.tsv")
    rows = wanted[place]
    validation = take_subset(rows, Subset.parse(spec["subset"]), kind_of(spec), VALIDATION)
    return [*validation, *(row for row in rows if row["side"] == TEST)]


def _base(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: spec[key] for key in ("task", "backbone", "method")}


def _texts(names: Sequence[str], values: Sequence[float]) -> dict[str, str]:
    return {name: f"{value:.7g}" for name, value in zip(names, values, strict=True)}
