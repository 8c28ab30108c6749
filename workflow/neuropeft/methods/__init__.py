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
    "batchnorm": "methods.convolutional",
    "last_block": "methods.convolutional",
    "ssf_conv": "methods.convolutional",
    "lora_conv": "methods.convolutional",
    "tsa": "methods.convolutional",
    "series": "methods.convolutional",
    "conv_adapter": "methods.convolutional",
}


def module_of(kind: str) -> str:
    """Return the module of a kind of method; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "method")
