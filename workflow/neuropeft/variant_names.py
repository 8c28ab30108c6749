"""What variants of a trained cell are called, and what contenders that are made of its method are."""

from typing import Literal

Analysis = Literal["interpolation", "robustness"]  # what varies
INTERPOLATION: Analysis = "interpolation"
ROBUSTNESS: Analysis = "robustness"
VARIED: tuple[Analysis, ...] = (INTERPOLATION, ROBUSTNESS)
LEARNT, RANDOM = "learnt", "random"  # weights of which there is saliency


def interpolated(share: float) -> str:
    """Return the name of a variant whose weights are this share of the fine-tuned ones: `0.25`."""
    return f"{share:g}"


def changed(kind: str, strength: float) -> str:
    """Return the name of a variant that is shown scans with a change: `noise-0.2`."""
    return f"{kind}-{strength:g}"


def change_of(variant: str) -> tuple[str, float]:
    """Return the kind and the strength that `changed` has named."""
    kind, _, strength = variant.partition("-")
    return kind, float(strength)


def with_variant(method: str, variant: str) -> str:
    """Return what the contender of a method and a variant has for a method; no method has a hyphen."""
    return f"{method}-{variant}"


def variant_of(name: str) -> tuple[str, str]:
    """Return the method and the variant that `with_variant` has joined; the variant is empty without one."""
    method, _, variant = name.partition("-")
    return method, variant
