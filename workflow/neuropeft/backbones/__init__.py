"""Networks: where each kind is. Only the module of the kind in use is imported."""

from neuropeft.errors import known

# Named as `numerics` names modules. Each has `build`, which makes a network from its settings.
MODULES = {
    "vit": "backbones.vit",
    "vit_2d": "backbones.vit_2d",
    "vit_slices": "backbones.vit_slices",
    "densenet121": "backbones.densenet121",
    "resnet50": "backbones.resnet50",
    "resnet50_2d": "backbones.resnet50_2d",
    "diffusion": "backbones.diffusion",
}


def module_of(kind: str) -> str:
    """Return the module of a kind of backbone; raise `UserError` if there is no such kind."""
    return known(kind, MODULES, "backbone")
