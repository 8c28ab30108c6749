"""Methods that adapt a backbone: where each kind is. Only the module of the kind in use is imported."""

from collections.abc import Mapping
from typing import Any

from neuropeft.errors import known

# Named as `numerics` names modules. Each has `METHODS`, {kind: method}, for a family may share a module.
MODULES = {
    "scratch": "methods.selective",
    "full": "methods.selective",
    "linear": "methods.selective",
    "untuned": "methods.selective",
    "partial": "methods.selective",
    "attention": "methods.selective",
    "attention_qv": "methods.selective",
    "layernorm": "methods.selective",
    "bitfit": "methods.selective",
    "difffit": "methods.selective",
    "fairtune": "methods.selective",
    "gps": "methods.selective",
    "lora": "methods.lora",
    "houlsby": "methods.adapters",
    "pfeiffer": "methods.adapters",
    "parallel": "methods.adapters",
    "adaptformer": "methods.adapters",
    "adapter_plus": "methods.adapters",
    "adapter_drop": "methods.adapters",
    "compacter": "methods.adapters",
    "adapter_bias": "methods.adapters",
    "pro_tuning": "methods.adapters3d",
    "st_adapter": "methods.adapters3d",
    "convpass": "methods.adapters3d",
    "med_tuning": "methods.adapters3d",
    "vpt_shallow": "methods.prompts",
    "vpt_deep": "methods.prompts",
    "prefix": "methods.prompts",
    "batchnorm": "methods.convolutional",
    "last_block": "methods.convolutional",
    "ssf_conv": "methods.convolutional",
    "lora_conv": "methods.convolutional",
    "tsa": "methods.convolutional",
    "series": "methods.convolutional",
    "conv_adapter": "methods.convolutional",
    "hf": "methods.hugging_face",
    "combined": "methods.combined",
    "rslora": "methods.lora",
    "lora_plus": "methods.lora",
    "dora": "methods.lora",
    "lnlora": "methods.lora",
    "adalora": "methods.adalora",
    "dylora": "methods.dylora",
    "vera": "methods.vera",
    "fact_tk": "methods.fact",
    "fact_tt": "methods.fact",
    "repadapter": "methods.repadapter",
    "svdiff": "methods.svdiff",
    "ssf": "methods.scaling",
    "ia3": "methods.scaling",
}


def module_of(kind: str) -> str:
    """Return the module of a kind of method; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "method")


def modules_of(method: Mapping[str, Any]) -> list[str]:
    """Return the modules of a configured method and, if it combines others, of those."""
    return [module_of(one["kind"]) for one in (method, *method.get("parts", ()))]
