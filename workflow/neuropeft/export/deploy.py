"""Smaller forms of an exported network: what each changes in score, size and time on a CPU.

None is trained anew: number formats (bfloat16; int8 for the weights of linear layers, whose inputs are
quantised as they come) and half of the attention heads, those whose values reach the output least.
"""

import copy
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.heads import Predictor
from neuropeft.backbones.vit import Attention
from neuropeft.evaluate.bootstrap import percentile_interval, resamples
from neuropeft.export.model import DEPLOYMENT, Model, read_model
from neuropeft.export.sides import AT_ONCE, Side
from neuropeft.publish.formats import write_sheet
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks.base import Array
from neuropeft.train.data import load_volumes
from neuropeft.train.memory import BatchSize
from neuropeft.train.supervised import all_outputs

REPEATS = 15


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


class FewerHeads(nn.Module):
    """Self-attention with some of its heads."""

    def __init__(self, attention: Attention, kept: Tensor) -> None:
        """Keep the heads `kept` [h] of an attention layer."""
        super().__init__()
        width = attention.proj.in_features // attention.heads
        inner = (kept[:, None] * width + torch.arange(width)).flatten()  # [h * width]
        rows = torch.cat([part * attention.proj.in_features + inner for part in range(3)])
        self.heads = len(kept)
        self.qkv = _linear(attention.qkv.weight[rows], attention.qkv.bias[rows])
        self.proj = _linear(attention.proj.weight[:, inner], attention.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, n, d/heads]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def in_int8(model: Predictor) -> nn.Module:
    """Return a network whose linear layers hold int8; PyTorch quantises their inputs as they come."""
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():  # it goes in a later PyTorch; the version here is fixed
        warnings.simplefilter("ignore")
        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def with_half_of_the_heads(model: Predictor) -> nn.Module:
    """Return `model`, changed: of every attention layer half of the heads are gone, rounded down.

    A head counts by the Frobenius norm of its output projection times its value projection, which is what a
    token's content passes through on its way to another.
    """
    for site in model.backbone.sites("attention"):
        attention = site.module
        assert isinstance(attention, Attention)
        heads, (_, _, value) = attention.heads, attention.qkv.weight.chunk(3)
        values, outputs = value.chunk(heads), attention.proj.weight.chunk(heads, dim=1)
        worth = torch.stack([(out @ into).norm() for out, into in zip(outputs, values, strict=True)])
        kept = worth.topk(heads - heads // 2).indices.sort().values
        setattr(site.owner, site.name, FewerHeads(attention, kept))
    return model


@dataclass(frozen=True)
class Form:
    """A form of a network, measured.

    Attributes:
        name: what it is called.
        score: of each test subject, [n] or [n, columns].
        size: bytes that its tensors take in a file.
        seconds: processor time of one scan on one thread.
    """

    name: str
    score: Array
    size: int
    seconds: float


@torch.inference_mode()
def write_deployment(folder: Path, tested: Side) -> None:
    """Measure the forms of an exported model on test subjects and write a table into its folder.

    Args:
        folder: of the model.
        tested: the test subjects of its cell.
    """
    model, network, _ = read_model(folder)
    makers: dict[str, Callable[[Predictor], nn.Module]] = {
        "float32": lambda plain: plain,
        "bfloat16": InBfloat16,
        "int8, linear layers": in_int8,
    }
    # Not where a method has put something into the layers.
    attention = [part for part in network.modules() if isinstance(part, Attention)]
    if attention and model.is_plain and min(part.heads for part in attention) > 1:
        makers["float32, half of the heads"] = with_half_of_the_heads
    forms = [_measured(name, make(copy.deepcopy(network)), model, tested) for name, make in makers.items()]
    write_sheet(_sheet(model, tested, forms), folder)


def _measured(name: str, form: nn.Module, model: Model, tested: Side) -> Form:
    rows = [tested.store.index_of(scan) for scan in tested.scans]
    volumes = load_volumes(tested.store.volumes, rows, torch.device("cpu"))
    outputs = all_outputs(form, volumes, torch.arange(len(rows)), False, BatchSize(AT_ONCE))
    score = model.kind.scores(outputs, model.offset, model.scale).double().numpy()
    stored = io.BytesIO()
    torch.save(form.state_dict(), stored)
    seconds = _seconds(form, volumes.batch(torch.arange(1)))
    return Form(name, score.reshape(tested.run.score.shape), stored.tell(), seconds)


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
        numbers = f"{form.size / 1e6:.2f}", f"{1000 * form.seconds:.1f}", f"{value:.4g}"
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
            "Nothing was trained anew, and test subjects chose nothing. Only linear layers become int8; the "
            "projection of patches and convolutions stay float32.",
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
