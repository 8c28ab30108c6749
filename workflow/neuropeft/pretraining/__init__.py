"""Pretrainings: where each kind is. Only the module of the kind in use is imported."""

from neuropeft.errors import known

# Named as `numerics` names modules. Each has `KIND`, a `base.Pretraining`, but for weights taken over.
MODULES = {
    "mae": "pretraining.mae",
    "factors": "pretraining.factors",
    "imported": "pretraining.imported",
    "kept": "pretraining.imported",
}
KEPT = (10, 25, 50)  # percent of its steps after which the encoder of a pretraining is kept, for kind `kept`


def module_of(kind: str) -> str:
    """Return the module of a kind of pretraining; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "pretraining")
