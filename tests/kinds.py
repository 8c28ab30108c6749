"""Every kind of backbone, pretraining and method, tiny: a new kind enters the suites by its line here."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter

from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.heads import Predictor
from neuropeft.config.backbones import Backbone
from neuropeft.config.methods import Method
from neuropeft.config.pretraining import Pretraining
from neuropeft.methods.adapt import adapt, parameter_groups

SIZE = 32
DECODER = {"width": 48, "depth": 1, "heads": 4}
BACKBONES = [
    {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "decoder": DECODER},
    {"kind": "densenet121"},
    {"kind": "resnet50"},
]
PRETRAININGS = [
    {"kind": "mae"},
    {"kind": "mae", "mask": "foreground", "normalize_targets": False},
    {"kind": "factors"},
    {"weights": "encoder.safetensors"},
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
]


def backbone_settings(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a backbone as a configuration holds them."""
    return TypeAdapter(Backbone).validate_python(dict(settings))


def method_settings(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a method as a configuration holds them, with weight decay on all that it can."""
    return TypeAdapter(Method).validate_python({"lr": 1e-2, "weight_decay": 0.1, **settings})


def pretraining_settings(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a pretraining as a configuration holds them, of 40 short steps if it trains."""
    short = {"steps": 40, "batch_size": 8, "lr": 5e-3, "warmup_steps": 4, "validation_share": 0.2}
    trained = {} if "weights" in settings else {"cohort": "Any", **short}
    return TypeAdapter(Pretraining).validate_python({**trained, **settings})


def spec(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone as `build_backbone` takes it."""
    return {**backbone_settings(settings).model_dump(exclude={"decoder"}), "image_size": SIZE}


def label(settings: Mapping[str, Any]) -> str:
    """Return what tells a test's backbone or method from the others."""
    return settings["kind"] + str(len(settings.get("targets", "")) or "")


def fits(backbone: Mapping[str, Any], method: Mapping[str, Any]) -> bool:
    """Whether the backbone provides what the method needs."""
    return bool(method_settings(method).needs <= backbone_settings(backbone).provides)


def predictor(
    backbone: Mapping[str, Any], method: Mapping[str, Any] | None = None, seed: int = 0, drawn: int = 0
) -> Predictor:
    """Return a network of two outputs, its weights drawn by `seed`, what the method adds by `drawn`."""
    torch.manual_seed(seed)
    model = build_predictor(spec(backbone), 2)
    if method is not None:
        adapt(model, method_settings(method).model_dump(), torch.Generator().manual_seed(drawn))
    return model


def scans(number: int = 2) -> torch.Tensor:
    """Return a batch of noise."""
    return torch.randn(number, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def train(model: Predictor, method: Mapping[str, Any], steps: int) -> list[set[str]]:
    """Train for `steps`, with weight decay; return the names of the parameters with a gradient at each."""
    model.train()
    optimiser = torch.optim.AdamW(parameter_groups(model, method_settings(method).model_dump()))
    x, seen = scans(), []
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 2).backward()
        seen.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        optimiser.step()
    return seen
