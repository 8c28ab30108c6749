"""One raw scan to a prediction, through the steps of the workflow and the network of an exported model."""

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from neuropeft.config.inputs import Input
from neuropeft.errors import UserError, fault
from neuropeft.evaluate.calibration import probabilities
from neuropeft.export.interval import predicted_class
from neuropeft.export.model import Model, outputs_and_features, read_model
from neuropeft.export.reference import LIKENESS, away, flags
from neuropeft.files import MISSING
from neuropeft.inputs import input_kind, step_of
from neuropeft.inputs.base import Folders, InputKind
from neuropeft.inputs.io import check_there
from neuropeft.inputs.qc import OUTLIER
from neuropeft.tasks.base import Array


def predict_scan(
    scan: Path, folder: Path, skull_strip: str | None = None, mask: Path | None = None
) -> dict[str, str]:
    """Return what an exported model says of a raw scan, as text.

    Args:
        scan: a file of the kind that the training cohort has.
        folder: of the model.
        skull_strip: how the brain is found, of a T1-weighted scan; as in the training cohort if None.
        mask: brain mask on the scan's own grid, for `given`.

    Raises:
        UserError: the folder holds no model; the scan cannot be prepared, or is unlike those that the model
            was trained on, so that its prediction would mean nothing.
    """
    import torch

    from neuropeft.train.data import as_input

    if (skull_strip == "given") != (mask is not None):
        raise UserError("`--skull-strip given` and `--mask` go together: give both or neither")
    model, network, features = read_model(folder)
    if skull_strip is not None and "skull_strip" not in model.told:
        raise UserError(f"`--skull-strip` is for brain scans; the model takes input {model.input['kind']}")
    kind = input_kind(model.input["kind"])
    told = {**model.told, **({} if skull_strip is None else {"skull_strip": skull_strip})}
    with tempfile.TemporaryDirectory() as work:
        row = _prepared(scan, mask, model, told, Path(work))
        array = kind.array(row, model.size).astype("<f2")  # as stores hold it
    stands_out = _checked(scan, kind, model, row)
    with torch.inference_mode():
        both = outputs_and_features(network, as_input(torch.from_numpy(array)[None]))
    outputs, seen = both.split([model.kind.outputs, both.shape[1] - model.kind.outputs], dim=1)
    distance = away(LIKENESS, model.likeness, float(features.likeness(seen.double().numpy())[0]))
    if not distance <= OUTLIER:
        raise UserError(
            f"{scan} is refused: what the network sees of it is unlike the scans of {model.cohort} that it "
            f"was trained on (modified z-score {distance:.1f}, at most {OUTLIER}); give a scan of their kind"
        )
    score = model.kind.scores(outputs, model.offset, model.scale)[0].double().numpy()
    return {
        **_prediction(model, score),
        "qc": "flagged: " + ", ".join(stands_out) if stands_out else "no flag",
        "distance from training scans": f"{distance:.2f} (modified z-score; refused above {OUTLIER})",
        **({"note": f"{model.cohort} is simulated: this says nothing of people"} if model.simulated else {}),
    }


def _prepared(
    scan: Path, mask: Path | None, model: Model, told: Mapping[str, Any], work: Path
) -> dict[str, str]:
    """Return the row that the last step gives of a scan, whose files are in the folder `work`."""
    row = {
        **{"scan_id": "scan", "subject": "scan", "session": MISSING, "path": str(scan)},
        **{"mask": MISSING if mask is None else str(mask), "mask_size": _size(mask)},
    }
    check_there(row["path"], _size(scan))
    settings: Any = TypeAdapter(Input).validate_python(model.input)
    for module in settings.steps.values():
        step = step_of(module)
        try:
            row |= {name: str(value) for name, value in step.work(row, Folders(work, work), told).items()}
        except UserError:
            raise
        except Exception as error:  # what libraries raise of a scan that they cannot take has no common class
            raise fault(error, str(scan)) or UserError(
                f"{scan} cannot be prepared: {step.name} fails ({type(error).__name__}: {error}); give a "
                f"scan of the kind {settings.kind}"
            ) from error
    return row


def _size(path: Path | None) -> str:
    return MISSING if path is None else str(path.stat().st_size if os.access(path, os.R_OK) else -1)


def _checked(scan: Path, kind: InputKind, model: Model, row: Mapping[str, str]) -> list[str]:
    """Return the QC numbers by which a scan stands out from its model's training cohort.

    Raises:
        UserError: one is implausible in any cohort: the scan was not prepared well, or is another thing.
    """
    found = flags(kind.numbers, model.qc, {name: float(row[name]) for name in kind.numbers})
    told = {name: f"{kind.numbers[name].label} {float(row[name]):.3g}" for name in found}
    if bad := [told[name] for name, implausible in found.items() if implausible]:
        raise UserError(
            f"{scan} is refused: {' and '.join(bad)} is not plausible, so it was not prepared well; look at "
            "it by `neuropeft preprocess`"
        )
    return list(told.values())


def _prediction(model: Model, score: Array) -> dict[str, str]:
    """Return the prediction of scores [columns] with its interval or set."""
    worth, unit = model.worth, f" {model.unit}" if model.unit else ""
    name = model.spec["task"]["name"]
    by = f"{100 * worth.level:.0f} %, by {worth.n} validation subjects"
    if model.kind.regresses:
        value, (low, high) = float(score[0]), model.targets
        beyond = "" if low <= value <= high else f"; 95 % of training had {low:.3g} to {high:.3g}"
        return {
            name: f"{value:.7g}{unit}{beyond}",
            "interval": f"{value - worth.largest:.4g} to {value + worth.largest:.4g}{unit} ({by})",
        }
    if not model.kind.every_stratum:
        return {label: f"{chance:.7g}" for label, chance in zip(model.names, score, strict=True)}
    own = score if len(score) > 1 else score[0]
    raw, drawn = (probabilities(np.array([own]), heat)[0] for heat in (1.0, worth.temperature))
    inside = [label for label, chance in zip(model.names, raw, strict=True) if 1 - chance <= worth.largest]
    decided = math.isfinite(sum(worth.rule))
    return {
        name: model.names[predicted_class(score, worth.rule)] if decided else MISSING,
        "score": " ".join(f"{chance:.7g}" for chance in score),
        **{
            f"probability of {label}": f"{chance:.4f}"
            for label, chance in zip(model.names, drawn, strict=True)
        },
        "set": f"{', '.join(inside) or 'none'} ({by})",
    }
