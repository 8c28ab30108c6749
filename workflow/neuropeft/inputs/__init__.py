"""Kinds of input, where each is: how a cohort's files become arrays. Only the module in use is imported."""

from importlib import import_module
from typing import TYPE_CHECKING

from neuropeft.errors import known

if TYPE_CHECKING:
    from neuropeft.inputs.base import InputKind, Step

# Named as `numerics` names modules. Each has KIND, an `InputKind`.
MODULES = {
    "t1w": "inputs.t1w.kind",
    "volume": "inputs.volume",
    "image": "inputs.image",
}


def module_of(kind: str) -> str:
    """Return the module of a kind of input; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "input")


def input_kind(kind: str) -> "InputKind":
    """Return a kind of input; raise `UserError` if there is no such kind."""
    found: InputKind = import_module(f"neuropeft.{module_of(kind)}").KIND
    return found


def step_of(module: str) -> "Step":
    """Return the step of a module that the settings of a kind name."""
    found: Step = import_module(f"neuropeft.{module}").STEP
    return found
