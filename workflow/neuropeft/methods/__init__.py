"""Methods that adapt a backbone: where each kind is. Only the module of the kind in use is imported."""

from neuropeft.errors import known

# Named as `numerics` names modules. Each has `METHODS`, {kind: method}, for a family may share a module.
MODULES = {
    "scratch": "methods.selective",
    "full": "methods.selective",
    "attention": "methods.selective",
    "layernorm": "methods.selective",
    "bitfit": "methods.selective",
    "lora": "methods.lora",
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
    "ssf": "methods.scaling",
    "ia3": "methods.scaling",
}


def module_of(kind: str) -> str:
    """Return the module of a kind of method; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "method")
