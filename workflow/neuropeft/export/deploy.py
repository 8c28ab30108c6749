"""Smaller forms of an exported network: what each changes in score, size and time on a CPU.

Number formats: bfloat16; int8 for the weights of linear layers, whose inputs are quantised as they come. A
quarter and a half of the attention heads removed, see `prune`. A student that learns its outputs, see
`distil`. Training scans rank the heads and teach the student, validation chooses its epoch, test subjects
nothing.
"""

import copy
import io
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuropeft.backbones.checkpoints import save_tensors
from neuropeft.backbones.heads import Predictor
from neuropeft.evaluate.bootstrap import percentile_interval, resamples
from neuropeft.export.distil import distilled, half_width
from neuropeft.export.interval import fit_interval
from neuropeft.export.model import DEPLOYMENT, STUDENT, WEIGHTS, Model, read_model, write_model
from neuropeft.export.prune import attention_layers, importance_in_training, without_heads
from neuropeft.export.reference import fit_features, quantiles
from neuropeft.export.sides import AT_ONCE, Learnt, Side, look
from neuropeft.publish.formats import write_sheet
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks.base import Array
from neuropeft.train.data import as_input, load_volumes
from neuropeft.train.memory import BatchSize
from neuropeft.train.supervised import all_outputs

REPEATS = 15
PRUNED = (0.25, 0.5)  # shares of the heads


class InBfloat16(nn.Module):
    """A network whose backbone has weights and activations in bfloat16; the head stays in float32."""

    def __init__(self, model: Predictor) -> None:
        """Convert `model`, which is changed."""
        super().__init__()
        self.model = model
        model.backbone.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, outputs] of scans [B, C, *S]."""
        return self.model.outputs(self.model.backbone.tokens(x.bfloat16()))


def in_int8(model: Predictor) -> nn.Module:
    """Return a network whose linear layers hold int8; PyTorch quantises their inputs as they come."""
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():  # it goes in a later PyTorch; the version here is fixed
        warnings.simplefilter("ignore")
        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@dataclass(frozen=True)
class Form:
    """A form of a network, measured."""

    name: str  # what it is called
    score: Array  # of each test subject, [n] or [n, columns]
    size: int  # bytes that its tensors take in a file
    seconds: float  # processor time of one scan on one thread


def write_deployment(
    folder: Path, backbone: Mapping[str, Any] | None, learnt: Learnt, validation: Side, tested: Side
) -> Sheet:
    """Measure the forms of an exported model on test subjects and write a table, and the student, into it.

    Args:
        folder: of the model.
        backbone: the student's; None for half of the width, where there is one.
        learnt: what its cell was trained on.
        validation: the validation subjects of its cell.
        tested: its test subjects.

    Returns:
        The table.
    """
    model, network, _ = read_model(folder)

    def measured(name: str, form: nn.Module) -> Form:
        return _measured(name, form, model, tested)

    forms = [
        measured("float32", network),
        measured("bfloat16", InBfloat16(copy.deepcopy(network))),
        measured("int8, linear layers", in_int8(network)),
    ]
    # Not where a method has put something into the layers.
    attention = attention_layers(network) if model.is_plain else []
    if attention and min(layer.heads for layer in attention) > 1:
        importance = importance_in_training(network, learnt)
        heads = sum(map(len, importance))
        for share in PRUNED:
            gone = int(share * heads)
            pruned = without_heads(copy.deepcopy(network), importance, gone)
            forms.append(measured(f"{gone} of {heads} attention heads removed", pruned))
    if chosen := backbone or half_width(learnt.spec["backbone"]):
        student, spec = distilled(network, chosen, learnt)
        _write_student(folder / STUDENT, model, student, spec, learnt, validation)
        forms.append(measured(f"student, {_size(student)}", student))
    sheet = _sheet(model, tested, forms)
    write_sheet(sheet, folder)
    return sheet


def _size(student: Predictor) -> str:
    parameters = sum(value.numel() for value in student.parameters()) / 1e6
    return f"{type(student.backbone).__name__} of {parameters:.2g} M parameters"


def _write_student(
    folder: Path, model: Model, student: Predictor, spec: Mapping[str, Any], learnt: Learnt, validation: Side
) -> None:
    """Write the student as a model of its own, with what validation says of its predictions."""
    kind = model.kind
    features = fit_features(look(student, kind, learnt.store, learnt.scans)[1])
    _, seen = look(student, kind, validation.store, validation.scans)
    run = replace(validation.run, score=_scores(student, model, validation))
    own = replace(
        model,
        spec=spec,
        is_plain=True,
        interval=fit_interval(kind, run).stored(),
        likeness=quantiles(features.likeness(seen)),
    )
    save_tensors(folder / WEIGHTS, student.state_dict(), {})
    write_model(folder, own, features)


@torch.inference_mode()
def _scores(form: nn.Module, model: Model, side: Side) -> Array:
    """Return what a form predicts of the subjects of a side, as their run has it."""
    rows = [side.store.index_of(scan) for scan in side.scans]
    volumes = load_volumes(side.store.volumes, rows, torch.device("cpu"))
    outputs = all_outputs(form, volumes, torch.arange(len(rows)), False, BatchSize(AT_ONCE))
    score = model.kind.scores(outputs, model.offset, model.scale).double().numpy()
    return score.reshape(side.run.score.shape)


def _measured(name: str, form: nn.Module, model: Model, tested: Side) -> Form:
    stored = io.BytesIO()
    torch.save(form.state_dict(), stored)
    scan = as_input(torch.from_numpy(np.asarray(tested.store.volumes[:1])))
    return Form(name, _scores(form, model, tested), stored.tell(), _seconds(form, scan))


@torch.inference_mode()
def _seconds(form: nn.Module, scan: Tensor) -> float:
    """Return the processor time of a pass on one thread, which a busy machine does not stretch."""
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(REPEATS):
            began = time.process_time()
            form(scan)
            times.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    return median(times)


def _sheet(model: Model, tested: Side, forms: list[Form]) -> Sheet:
    metric = model.kind.metrics[0]
    plain, *_ = forms
    rows = []
    for form in forms:
        value, change = _change(model, tested, form, plain)
        moved = float(np.abs(form.score - plain.score).mean())
        numbers = f"{form.size / 1e6:.3g}", f"{1000 * form.seconds:.1f}", f"{value:.4g}"
        rows.append([form.name, *numbers, "-" if form is plain else change, f"{moved:.2g}"])
    return Sheet(
        DEPLOYMENT,
        f"forms of the network on {len(tested.scans)} test subjects of {model.cohort}"
        + (" (simulated)" if model.simulated else ""),
        (
            *("Form", "Size\n(MB)", "Processor\ntime (ms)", metric.title(model.unit)),
            *("Change\n(95 % interval)", "Predictions\nmove by"),
        ),
        rows,
        [
            "Processor time is that of one scan on one thread, the median of "
            f"{REPEATS} passes, without preprocessing. Changes are paired, over subjects. Predictions move "
            f"by the mean absolute change of a score{f', in {model.unit}' if model.unit else ''}.",
            "Only linear layers become int8; the projection of patches and convolutions stay float32. Heads "
            "are removed by the gradient of the training loss by a factor on each (Michel 2019), the least "
            "important of all layers first; nothing is trained afterwards. The student starts from random "
            "weights and learns the network's outputs of the training scans, as long as its cell was "
            f"trained; it is a model of its own, in `{STUDENT}/`. Test subjects chose nothing.",
        ],
    )


def _change(model: Model, tested: Side, form: Form, plain: Form) -> tuple[float, str]:
    """Return the primary metric of a form, and its change from the plain one with its interval."""
    measure, y = model.kind.metrics[0].value, tested.run.y
    no_rule = np.full(len(y), np.nan)  # which the primary metrics do not ask for

    def value(one: Form, weights: Array | None = None) -> Array:
        return measure(y, one.score, no_rule, weights)

    draws = [value(form, weights) - value(plain, weights) for weights in resamples(len(y))]
    low, high = percentile_interval(np.concatenate(draws))
    own = float(value(form))
    return own, f"{own - float(value(plain)):+.3g} ({low:+.3g} to {high:+.3g})"
