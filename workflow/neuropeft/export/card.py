"""The model card, in the form of Hugging Face's: what a model is for, how good it is, and its limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.scores import Score, read_scores
from neuropeft.export import model as folder
from neuropeft.export.choose import Chosen
from neuropeft.export.model import Model
from neuropeft.export.reference import SMALLEST_VALIDATION
from neuropeft.files import MISSING, write_text
from neuropeft.publish.cohort_table import cohort_records, cohort_sheet
from neuropeft.publish.labels import cohort_label, folds_text

TEMPLATE = "card.md.j2"
# By kind of input: what is done with a scan, and with what.
PREPARATION = {
    "t1w": "N4 bias correction, skull-stripping ({skull_strip}), registration to MNI152 with nine degrees of "
    "freedom, one trilinear resampling to a cube of {size} voxels, z-scores.",
    "volume": "Volumes are put into a cube of {size} voxels as they are, and z-scored.",
    "image": "Images are put into a square of {size} pixels, their aspect kept ({fit}), as values of 0 to 1.",
}
PACKAGES = {
    "t1w": "antspyx (Apache-2.0), the ICBM 2009a template (free with its notice), deepbet (MIT) or HD-BET",
    "volume": "nibabel (MIT)",
    "image": "Pillow (MIT-CMU) and pydicom (MIT)",
}


@dataclass(frozen=True)
class Held:
    """How well what validation gave holds on the test subjects of the exported cell."""

    n: int  # test subjects
    inside: float | None  # share of them whose interval or set holds the true value; None where there is none
    refused: float  # share of them, or of the first of many, that is refused for its features


@dataclass(frozen=True)
class Written:
    """What writing a model has found out."""

    trained: int  # subjects that it was trained on
    difference: float  # how far its scores are at most from those that the benchmark has stored
    has_adapter: bool  # whether there is an adapter in PEFT's format
    held: Mapping[str, Held]  # by cohort, the training cohort first
    forms: str  # the table of its smaller forms as Markdown; empty without


def write_card(
    config: Config, results: Path, out: Path, chosen: Chosen, model: Model, written: Written
) -> None:
    """Write the card of a model into its folder `out`."""
    from jinja2 import Environment, StrictUndefined

    text = package_files("neuropeft.export").joinpath(TEMPLATE).read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, trim_blocks=True).from_string(text)
    card = template.render(
        **_origin(config, chosen, model),
        **_scores(config, results, model, chosen),
        **_worth(config, model, written.held),
        cohorts=_cohorts(config, results, written.held),
        trained=written.trained,
        forms=written.forms,
        files=_files(model, written),
    )
    write_text(out / folder.CARD, card + "\n")


def _origin(config: Config, chosen: Chosen, model: Model) -> dict[str, Any]:
    """Return what the model is, what it was made from and how it was chosen."""
    contender = chosen.contender
    unit = f" ({model.unit})" if model.unit else ""
    starts = [] if chosen.encoder is None else config.starts(contender.pretraining)
    learnt_from = [model.cohort, *(config.trained[one].cohort for one in starts if one in config.trained)]
    return {
        "task": contender.task,
        "label": contender.label,
        "kind": model.spec["task"]["kind"],
        "target": contender.task + unit + (f" ({', '.join(model.names)})" if model.names else ""),
        "tags": ["neuropeft", "medical-imaging", model.input["kind"], model.spec["method"]["kind"]],
        "cohort": model.cohort,
        "simulated": model.simulated,
        "subset": contender.subset.text,
        "start": _start(config, contender.pretraining, starts),
        "preparation": PREPARATION[model.input["kind"]].format(size=model.size, **_without_size(model)),
        "packages": PACKAGES[model.input["kind"]],
        "start_licence": start_licence(config, starts),
        "learnt_from": " and ".join(dict.fromkeys(learnt_from)),
        "folds": f" and folds ({folds_text(config)})" if config.splits.folds else "",
        "has_folds": bool(config.splits.folds),
        "losses": ", ".join(f"{label} {loss:.4g}" for label, loss in chosen.losses.items()),
    }


def _start(config: Config, start: str, starts: Sequence[str]) -> str:
    if not starts:
        return "random weights"
    return f"`{start}`, " + (
        "pretrained by neuropeft" if starts[0] in config.trained else "weights from elsewhere"
    )


def start_licence(config: Config, starts: Sequence[str]) -> str:
    """Return whose the weights are that a network started from; see `Config.starts`."""
    if not starts:
        return "It starts from random weights, which nobody owns."
    if (imported := config.imported.get(starts[-1])) is None:
        return "It starts from weights made here."
    licence = f": {imported.licence}" if imported.licence else ", which is not given: state it here"
    cited = f". Cite {imported.citation}" if imported.citation else ""
    return f"The weights `{starts[-1]}` that it goes back to have a licence of their own{licence}{cited}."


def _without_size(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.told.items() if name != "size"}


def _scores(config: Config, results: Path, model: Model, chosen: Chosen) -> dict[str, Any]:
    """Return the scores of the exported method and of the controls, a column per cohort and metric."""
    exported = chosen.contender
    metrics = {metric.name: metric.title(model.unit) for metric in model.kind.metrics}
    shown = [
        score
        for score in read_scores(config, results)
        if score.metric in metrics
        and (score.contender.task, score.contender.subset) == (exported.task, exported.subset)
        and (score.contender.group == exported.group or score.contender.sort == "controls")
    ]
    columns = list(dict.fromkeys((score.cohort, score.metric) for score in shown))
    rows: dict[str, dict[tuple[str, str], Score]] = {}
    for score in shown:
        rows.setdefault(score.contender.label, {})[score.cohort, score.metric] = score
    return {
        "columns": [f"{metrics[metric]}, {cohort_label(config, cohort)}" for cohort, metric in columns],
        "scores": [
            [label, *(_score(of_label.get(column)) for column in columns)] for label, of_label in rows.items()
        ],
    }


def _score(score: Score | None) -> str:
    if score is None or math.isnan(score.mean):
        return MISSING
    return f"{score.mean:.3g} ({score.ci_low:.3g} to {score.ci_high:.3g})"


def _worth(config: Config, model: Model, held: Mapping[str, Held]) -> dict[str, Any]:
    """Return what predictions come with, and how that holds on test."""
    worth, kind = model.worth, model.kind
    unit = f" {model.unit}" if model.unit else ""
    share = f"{100 * worth.level:.0f} %"
    by = f"split conformal by {worth.n} validation subjects, {share}"
    if kind.regresses:
        told = f"A value with an interval of {worth.largest:.3g}{unit} to either side ({by})."
    elif kind.every_stratum:
        told = (
            "A class by the rule that validation chose; the score of the benchmark; the probability of each "
            f"class, calibrated on validation (temperature {worth.temperature:.2f}); and the set of classes "
            f"that are not excluded ({by})."
        )
    else:
        told = "The probability of each label, without an interval."
    rows = [
        [cohort_label(config, cohort), str(one.n), _share(one.inside), _share(one.refused)]
        for cohort, one in held.items()
    ]
    return {
        "worth": told,
        "validated": worth.n,
        "inside": f"{'interval' if kind.regresses else 'set'} holds the truth, of {share} wanted",
        "held": rows,
        "too_few": worth.n < SMALLEST_VALIDATION,
    }


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"


def _cohorts(config: Config, results: Path, held: Mapping[str, Held]) -> list[list[str]]:
    records = [
        record
        for record in cohort_records(config, results)
        if record["source"] == "ours" and record["cohort"] in {cohort_label(config, one) for one in held}
    ]
    return [[row[0], row[2], *row[5:8]] for row in cohort_sheet(records).rows]


def _files(model: Model, written: Written) -> dict[str, str]:
    """Return what each file is, by its name."""
    plain = "merged into a plain backbone" if model.is_plain else "with the method's own layers"
    found = {
        folder.WEIGHTS: f"the whole network, {plain}; on validation its scores differ from those that the "
        f"benchmark has stored by at most {written.difference:.1g}",
        folder.DESCRIPTION: "settings, interval, and the quantiles that scans are compared with",
        folder.FEATURES: "mean and directions of the features of training scans",
    }
    if written.has_adapter:
        found[f"{folder.ADAPTER}/"] = (
            "the adapter of the backbone in the format of Hugging Face PEFT, and `base.safetensors`, the "
            "network without it"
        )
    if written.forms:
        found[f"{folder.STUDENT}/"] = "a smaller network that has learnt from it, a model of its own"
    return found
