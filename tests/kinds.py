"""Every kind of input, backbone, pretraining and method, tiny: a new kind enters its suite by a line here."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter

from neuropeft.backbones.base import InputSpec
from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.heads import Predictor
from neuropeft.config.backbones import Backbone
from neuropeft.config.methods import Combined, Method
from neuropeft.config.pretraining import Pretraining
from neuropeft.methods.adapt import adapt, method_of, parameter_groups
from scans import MOVED, STILL, brain_scan, save


class Files(NamedTuple):
    """Files of a kind of input.

    Attributes:
        suffix: of their names.
        write: writes a good one; each number gives another.
        settings: what all of its steps are told.
        bad: what makes a file of a good one that is refused, and words of the reason.
    """

    suffix: str
    write: Callable[[Path, int], object]
    settings: Mapping[str, Any]
    bad: Mapping[str, tuple[Callable[[Path], object], str]]


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    """Return what changes the voxels of a file."""

    def rewrite(path: Path) -> None:
        image = nib.load(path)
        save(path, nib.Nifti1Image(change(image.get_fdata(dtype=np.float32)), image.affine))

    return rewrite


def picture(number: int) -> np.ndarray:
    """Return an image in colours, uint8 [60, 80, 3]; each number gives another."""
    random = np.random.default_rng(number)
    return np.kron(random.integers(20, 256, (12, 16, 3), np.uint8), np.ones((5, 5, 1), np.uint8))


def _drawn(first: np.ndarray, *others: np.ndarray) -> Callable[[Path], object]:
    """Return what writes other images to a file."""
    return lambda path: Image.fromarray(first).save(
        path, save_all=bool(others), append_images=[Image.fromarray(other) for other in others]
    )


BAD_VOLUMES = {
    "zero": (_changed(np.zeros_like), "all zero"),
    "nan": (_changed(lambda data: np.where(data == data.max(), np.nan, data)), "NaN"),
    "flat": (_changed(lambda data: data[:, :, 20]), "2D"),
    "series": (_changed(lambda data: np.stack([data, data], -1)), "4D"),
}
SIZE = 32
VOLUMES = InputSpec(3, 1, SIZE)
DECODER = {"width": 48, "depth": 1, "heads": 4}
BACKBONES = [
    {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "decoder": DECODER},
    {"kind": "densenet121"},
    {"kind": "resnet50"},
    {"kind": "vit_2d", "width": 48, "depth": 2, "heads": 4, "layer_scale": True, "decoder": DECODER},
    {
        **{"kind": "vit_2d", "width": 48, "depth": 2, "heads": 4, "patch_size": 8, "decoder": DECODER},
        **{"channels": 1, "features": "mean", "positions": "sincos", "mean": [0.5], "sd": [0.3]},
    },
    {"kind": "resnet50_2d"},
    {"kind": "vit_slices", "width": 48, "depth": 2, "heads": 4, "channels": 2, "decoder": DECODER},
]
INPUTS = {
    "t1w": Files(
        ".nii.gz",
        lambda path, number: save(path, brain_scan((STILL, MOVED)[number], (4.0, 4.0, 4.0))),
        {"skull_strip": "stripped"},
        BAD_VOLUMES,
    ),
    "volume": Files(
        ".nii.gz",
        lambda path, number: save(path, brain_scan((STILL, MOVED)[number], (5.0, 4.0, 4.0), "PSR")),
        {"size": SIZE},
        BAD_VOLUMES,
    ),
    "image": Files(
        ".png",
        lambda path, number: Image.fromarray(picture(number)).save(path),
        {"size": SIZE, "channels": 3, "fit": "pad"},
        {
            "zero": (_drawn(np.zeros((40, 60), np.uint8)), "all black"),
            "pixel": (_drawn(np.ones((1, 1), np.uint8)), "1 x 1 pixels"),
            "wide": (_drawn(np.zeros((10, 30_000), np.uint8)), "30000 x 10 pixels"),
            "many": (_drawn(np.zeros((9000, 9000), bool)), "more than the 80 million"),
            "bomb": (_drawn(np.zeros((14_000, 14_000), bool)), "more than the 80 million"),
            "animated": (_drawn(picture(2), picture(3)), "2 images"),
        },
    ),
}
PRETRAININGS = [
    {"kind": "mae"},
    {"kind": "mae", "mask": "foreground", "normalize_targets": False},
    {"kind": "factors"},
    {"weights": "encoder.safetensors"},
    {"of": "mae", "percent": 25},
]
EVERYWHERE = ["q", "k", "v", "proj", "fc1", "fc2"]
METHODS = [
    {"kind": "scratch"},
    {"kind": "full"},
    {"kind": "attention"},
    {"kind": "layernorm"},
    {"kind": "lora", "r": 4, "alpha": 8},
    {"kind": "lora", "r": 4, "alpha": 8, "targets": EVERYWHERE, "dropout": 0.1},
    {"kind": "bitfit"},
    {"kind": "houlsby"},
    {"kind": "pfeiffer"},
    {"kind": "parallel"},
    {"kind": "adaptformer", "bottleneck": 8},
    {"kind": "adapter_plus", "reduction": 8},
    {"kind": "adapter_drop", "left_out": 1},
    {"kind": "compacter", "reduction": 2, "products": 12},
    {"kind": "adapter_bias"},
    {"kind": "pro_tuning", "bottleneck": 8},
    {"kind": "st_adapter", "bottleneck": 8},
    {"kind": "st_adapter", "bottleneck": 8, "kernel": [3, 3, 3]},
    {"kind": "convpass"},
    {"kind": "med_tuning"},
    {"kind": "linear"},
    {"kind": "partial"},
    {"kind": "attention_qv"},
    {"kind": "difffit"},
    {"kind": "fairtune", "mask": ["norm1+attn", "mlp"]},
    {"kind": "gps"},
    {"kind": "gps", "connections": 3},
    {"kind": "vpt_shallow", "prompts": 3},
    {"kind": "vpt_deep", "prompts": 3, "dropout": 0.1},
    {"kind": "prefix", "prompts": 3},
    {"kind": "prefix", "prompts": 3, "reparameterised": True},
    {"kind": "batchnorm"},
    {"kind": "batchnorm", "adapt_statistics": True},
    {"kind": "last_block"},
    {"kind": "ssf_conv"},
    {"kind": "lora_conv", "r": 2, "alpha": 4},
    {"kind": "tsa"},
    {"kind": "series"},
    {"kind": "conv_adapter"},
    {"kind": "hf", "tuner": "lora"},
    {"kind": "hf", "tuner": "dora", "config": {"target_modules": ["fc1"]}},
    {"kind": "hf", "tuner": "vera"},
    {"kind": "combined", "combine": ["bitfit", "lora"]},
    {"kind": "combined", "combine": ["lora_conv", "batchnorm"]},
    {"kind": "rslora", "r": 4},
    {"kind": "lora_plus", "r": 4},
    {"kind": "dora", "r": 4},
    {"kind": "dora", "r": 4, "targets": EVERYWHERE, "dropout": 0.1},
    {"kind": "lnlora", "r": 4},
    {"kind": "adalora", "init_r": 6, "target_r": 4},
    {"kind": "adalora", "init_r": 6, "target_r": 4, "targets": EVERYWHERE},
    {"kind": "dylora", "r": 4},
    {"kind": "vera", "r": 16},
    {"kind": "vera", "r": 16, "targets": EVERYWHERE},
    {"kind": "fact_tk", "r": 4},
    {"kind": "fact_tt", "r": 4},
    {"kind": "repadapter", "m": 4},
    {"kind": "svdiff"},
    {"kind": "untuned"},
    {"kind": "ssf"},
    {"kind": "ia3"},
]
KINDS = [one["kind"] for one in METHODS]
PEFT = find_spec("peft") is not None
# A thousand tests ask, and each takes milliseconds to be made.
ADAPTERS = {kind: TypeAdapter(kind) for kind in (Backbone, Method, Pretraining)}


def backbone_settings(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a backbone as a configuration holds them."""
    return ADAPTERS[Backbone].validate_python(dict(settings))


def method_settings(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a method as a configuration holds them, with weight decay on all that it can."""
    found = ADAPTERS[Method].validate_python({"lr": 1e-2, "weight_decay": 0.1, **settings})
    if not isinstance(found, Combined):
        return found
    return found.resolved("it", {one: method_settings(METHODS[KINDS.index(one)]) for one in found.combine})


def pretraining_settings(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a pretraining as a configuration holds them, of 40 short steps if it trains."""
    short = {"steps": 40, "batch_size": 8, "lr": 5e-3, "warmup_steps": 4, "validation_share": 0.2}
    trained = {} if {"weights", "of"} & settings.keys() else {"cohort": "Any", **short}
    return ADAPTERS[Pretraining].validate_python({**trained, **settings})


def spec(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone as `build_backbone` takes it."""
    return {**backbone_settings(settings).model_dump(exclude={"decoder"}), "image_size": SIZE}


def label(settings: Mapping[str, Any]) -> str:
    """Return what tells a test's backbone or method from the others."""
    told = [settings.get("tuner", ""), settings.get("features", ""), *settings.get("combine", ())]
    return settings["kind"] + "".join(told) + str(len(settings.get("targets", "")) or "")


def fits(backbone: Mapping[str, Any], method: Mapping[str, Any]) -> bool:
    """Whether the backbone provides what the method needs."""
    return bool(method_settings(method).needs <= backbone_settings(backbone).provides)


# Of the transformers in 2D, one that averages places differs to methods that touch the tokens alone.
PLACES = [one for one in BACKBONES if one.get("features") == "mean" or one["kind"] == "vit_slices"]
TOUCH_TOKENS = {
    "full",
    "convpass",
    "pro_tuning",
    "st_adapter",
    "med_tuning",
    "vpt_shallow",
    "vpt_deep",
    "prefix",
}
PAIRS = [
    (backbone, method)
    for backbone in BACKBONES
    for method in METHODS
    if fits(backbone, method)
    and (PEFT or method["kind"] != "hf")
    # No layers of a CNN are told apart: `full` trains it as `scratch` does.
    and (backbone["kind"].startswith("vit") or method["kind"] != "full")
    and (backbone not in PLACES or method["kind"] in TOUCH_TOKENS)
]


def predictor(
    backbone: Mapping[str, Any], method: Mapping[str, Any] | None = None, seed: int = 0, drawn: int = 0
) -> Predictor:
    """Return a network of two outputs, its weights drawn by `seed`, what the method adds by `drawn`."""
    torch.manual_seed(seed)
    model = build_predictor(spec(backbone), 2)
    if method is not None:
        adapt(model, method_settings(method).model_dump(), torch.Generator().manual_seed(drawn))
    return model


def scans(number: int = 2, takes: InputSpec = VOLUMES) -> torch.Tensor:
    """Return a batch of noise."""
    shape = takes.channels, *[takes.size] * takes.dims
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))


def train(model: Predictor, method: Mapping[str, Any], steps: int) -> list[set[str]]:
    """Train for `steps`, with weight decay; return the names of the parameters with a gradient at each."""
    settings = method_settings(method).model_dump()
    hooks, optimiser = method_of(settings), torch.optim.AdamW(parameter_groups(model, settings))
    model.train()
    x, seen = scans(takes=model.backbone.takes), []
    for step in range(steps):
        hooks.before_step(model.backbone, settings, step, 0)
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 2)
        penalty = hooks.penalty(model.backbone, settings)
        (loss if penalty is None else loss + penalty).backward()
        seen.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        optimiser.step()
        hooks.after_step(model.backbone, settings, step, steps)
    return seen
