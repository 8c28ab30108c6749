"""Writing an exported model: weights, what scans are compared with, and how well that holds on test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuropeft import layout
from neuropeft.backbones.heads import Predictor
from neuropeft.cohorts.splits import TEST, VALIDATION, ZERO_SHOT
from neuropeft.config import Config
from neuropeft.errors import UserError, suggest
from neuropeft.export import model as folder
from neuropeft.export.adapter import write_adapter
from neuropeft.export.card import Held, Written, write_card
from neuropeft.export.choose import Chosen, choose
from neuropeft.export.deploy import write_deployment
from neuropeft.export.interval import fit_interval
from neuropeft.export.model import Model, write_model
from neuropeft.export.network import load_network, save_network, trained_network
from neuropeft.export.reference import LIKENESS, Features, away, fit_features, quantiles
from neuropeft.export.sides import AT_ONCE, Learnt, Side, look, read_side
from neuropeft.grid import backbone_spec
from neuropeft.inputs import input_kind
from neuropeft.inputs.qc import OUTLIER
from neuropeft.publish.labels import is_simulated
from neuropeft.publish.sheet import markdown
from neuropeft.store import Store
from neuropeft.tasks.base import Run
from neuropeft.train.labels import read_sides, stored_sessions
from neuropeft.train.sources import kind_of

MOST = (0.025, 0.975)  # of training targets; the extreme ones belong to persons
FAR = 0.05  # of the stored scores' SD: as far may a CPU be from the bfloat16 of a GPU


def export_model(config: Config, results: Path, task: str, out: Path, student: str | None = None) -> Chosen:
    """Write the best model of a task, see `choose`, to a folder of its own.

    Args:
        config: the configuration.
        results: folder of a finished run.
        task: whose model.
        out: the folder to write.
        student: the backbone of a smaller network that learns from it, measured with other smaller forms; if
            empty, one of half the width. None to measure nothing.

    Returns:
        What was chosen.

    Raises:
        UserError: the folder is not empty, nothing is finished, the network does not give the stored
            predictions again, or there is no such backbone, or none that takes the same scans.
    """
    if student and student not in config.backbones:
        raise UserError(
            f"`--deploy {student}` is no backbone of the configuration; {suggest(student, config.backbones)}"
        )
    if out.exists() and any(out.iterdir()):
        raise UserError(f"`--out {out}` is not empty; give a folder that is new")
    chosen = choose(config, results, task)
    cohort = config.tasks[task].train
    trained, spec, metadata = trained_network(chosen.delta, chosen.encoder)
    kind = kind_of(spec)
    sides = {side: read_side(results, chosen, kind, cohort, side) for side in (VALIDATION, TEST)}
    store, scans = sides[VALIDATION].store, sides[VALIDATION].scans
    few = torch.from_numpy(
        np.asarray(store.volumes[[store.index_of(scan) for scan in scans[:AT_ONCE]]])
    ).float()
    is_plain = save_network(out / folder.WEIGHTS, trained, spec, few)
    has_adapter = write_adapter(out / folder.ADAPTER, trained, spec, few)
    network = load_network(out / folder.WEIGHTS, spec, is_plain)
    split = layout.SPLIT.at(results, **chosen.cell.names)
    learnt = Learnt(
        spec, split, read_sides(split, chosen.cell.subset, kind, stored_sessions(store.path)), store
    )
    train = learnt.sides.train
    features = fit_features(look(network, kind, store, learnt.scans)[1])
    outputs, seen = look(network, kind, store, scans)
    targets = kind.array(row["y"] for row in train)
    model = Model(
        spec=spec,
        is_plain=is_plain,
        offset=json.loads(metadata["offset"]),
        scale=float(metadata["scale"]),
        targets=np.quantile(targets, MOST).tolist() if kind.regresses else [],
        interval=fit_interval(kind, sides[VALIDATION].run).stored(),
        likeness=quantiles(features.likeness(seen)),
        **_of_task(config, task),
        **_of_input(config, cohort, store),
    )
    difference = _difference(model, outputs, sides[VALIDATION].run)
    write_model(out, model, features)
    tested = {cohort: sides[TEST]}
    for other in config.tasks[task].zero_shot:
        tested[other] = read_side(results, chosen, kind, other, ZERO_SHOT)
    held = {name: _held(model, network, features, side) for name, side in tested.items()}
    forms = ""
    if student is not None:
        backbone = backbone_spec(config, student) if student else None
        forms = markdown(write_deployment(out, backbone, learnt, sides[VALIDATION], sides[TEST]))
    subjects = len({row["subject"] for row in train})
    write_card(config, results, out, chosen, model, Written(subjects, difference, has_adapter, held, forms))
    return chosen


def _of_task(config: Config, name: str) -> dict[str, Any]:
    task = config.tasks[name]
    names = list(getattr(task, "classes", ())) or task.part_names
    simulated = is_simulated(config, task.train)
    return {"names": names, "unit": task.unit, "cohort": task.train, "simulated": simulated}


def _of_input(config: Config, name: str, store: Store) -> dict[str, Any]:
    cohort, size = config.cohorts[name], config.preprocessing.size
    numbers = input_kind(cohort.input.kind).numbers
    return {
        "input": cohort.input.model_dump(mode="json"),
        "told": cohort.input.told(cohort, size),
        "size": size,
        "qc": {number: quantiles([float(row[number]) for row in store.rows]) for number in numbers},
    }


def _difference(model: Model, outputs: torch.Tensor, stored: Run) -> float:
    """Return how far the exported network's scores are at most from the stored ones.

    Raises:
        UserError: further than numbers of other precision explain.
    """
    scores = model.kind.scores(outputs, model.offset, model.scale).double().numpy()
    before = stored.score[: len(scores)].reshape(scores.shape)
    difference = float(np.abs(scores - before).max())
    if difference > FAR * before.std():
        raise UserError(
            f"the network of {model.spec['cell']} gives scores that differ by {difference:.3g} from "
            "the stored ones; start the workflow again, which makes damaged results anew"
        )
    return difference


def _held(model: Model, network: Predictor, features: Features, side: Side) -> Held:
    _, seen = look(network, model.kind, side.store, side.scans)
    distances = [away(LIKENESS, model.likeness, value) for value in features.likeness(seen)]
    inside = model.worth.holds(model.kind, side.run)
    return Held(
        len(side.run.subjects),
        float(inside.mean()) if model.worth.largest == model.worth.largest else None,
        float(np.mean([distance > OUTLIER for distance in distances])),
    )
