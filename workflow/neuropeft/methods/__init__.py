"""Methods that adapt a backbone: where each kind is. Only the module of the kind in use is imported."""

from collections.abc import Mapping
from typing import Any

from neuropeft.errors import known

# Named as `numerics` names modules. Each has `METHODS`, {kind: method}, for a family may share a module.
MODULES = {
    "scratch": "methods.selective",
    "full": "methods.selective",
    "attention": "methods.selective",
    "layernorm": "methods.selective",
    "bitfit": "methods.selective",
    "lora": "methods.lora",
    "batchnorm": "methods.convolutional",
    "last_block": "methods.convolutional",
    "ssf_conv": "methods.convolutional",
    "lora_conv": "methods.convolutional",
    "tsa": "methods.convolutional",
    "series": "methods.convolutional",
    "conv_adapter": "methods.convolutional",
    "hf": "methods.hugging_face",
    "combined": "methods.combined",
}


def module_of(kind: str) -> str:
    """Return the module of a kind of method; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "method")


def modules_of(method: Mapping[str, Any]) -> list[str]:
    """Return the modules of a configured method and, if it combines others, of those."""
    return [module_of(one["kind"]) for one in (method, *method.get("parts", ()))]
