"""Synthetic cohorts: which volumes there are, and the numbers that each of them is painted from.

A synthetic cohort is for pretraining only: thousands of brains that are painted straight on the template grid
(see `synthetic_brain`), each with numbers that are known exactly. They are drawn independently of each other,
so that a learner has to tell one from the other, and widely enough for brains of 20 to 90 years. Ranges are
round numbers. They follow the simulated cohort where it has the same number; the others were checked against
unlabelled real scans with `benchmarks/synthetic.py`.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# What a brain is like, by the numbers that it is painted from.
DRAWN_ANATOMY = (
    "ventricle_mm",  # how far the walls of the ventricles move outwards, mm
    "thinning",  # logarithm of the exponent that eats into tissue where it borders CSF
    "association_thinning",  # what is added to it in the temporal and parietal lobes
    "medial_temporal_loss",  # share of the medial temporal tissue that is lost
    "sulcal_opening",  # share of CSF in the middle of a sulcus at the surface
    "white_shift",  # logit by which white matter wins against grey
    "rim_csf_mm",  # width of a layer of CSF over the cortex, mm
)
# What it has come to, measured on the true tissue maps of the finished brain.
MEASURED_ANATOMY = (
    "csf_share",  # of the brain's volume
    "white_share",
    "ventricle_csf_share",  # CSF in and next to the template's ventricles, as a share of the brain's volume
    "rim_grey_share",  # grey matter's share of the outer 15 mm
)
ANATOMY_FACTORS = (*DRAWN_ANATOMY, *MEASURED_ANATOMY)
# What the scanner and the preprocessing make of it. Intensities are relative to white matter.
IMAGE_FACTORS = (
    "grey_level",
    "csf_level",
    "texture",  # weight of what the template's T1 shows beyond its tissues
    "gamma",  # exponent of the intensities
    "bias",  # SD of the logarithm of the bias field that is left
    "blur_mm",  # full width at half maximum of the point spread, mm
    "slice_blur_mm",  # what is added to it along one axis
    "noise",  # SD
    "mask_mm",  # how far the edge of the brain mask lies outside the template's, mm
)
FACTORS = (*ANATOMY_FACTORS, *IMAGE_FACTORS)
TISSUE, DISPLACEMENT = MAPS = ("tissue.npy", "displacement.npy")  # in the store, beside the volumes


class Person(NamedTuple):
    """A synthetic volume before it is painted: its name, its seed, and the numbers that were drawn."""

    scan_id: str
    subject: str
    seed: int
    factors: dict[str, float]


def people(volumes: int, seed: int) -> list[Person]:
    """List the volumes of a synthetic cohort; a larger cohort of a seed starts with the smaller one."""
    return [_person(f"synthetic{number:06d}", seed) for number in range(1, volumes + 1)]


def _person(subject: str, seed: int) -> Person:
    digest = hashlib.sha256(f"synthetic/{seed}/{subject}".encode()).digest()
    own_seed = int.from_bytes(digest[:4], "big")
    rng = np.random.default_rng([own_seed, 0])  # 1 is for the fields of the volume
    return Person(f"sub-{subject}", subject, own_seed, _draw(rng))


def _draw(rng: np.random.Generator) -> dict[str, float]:
    drawn = {
        "ventricle_mm": -1.5 + 7.5 * rng.beta(1.3, 2.6),  # few brains have very wide ones
        "thinning": rng.uniform(-0.6, 1.0),
        "association_thinning": rng.normal(0.0, 0.3),
        "medial_temporal_loss": rng.uniform(0.0, 0.5),
        "sulcal_opening": rng.uniform(0.2, 1.0),
        "white_shift": rng.normal(0.0, 0.3),
        "rim_csf_mm": rng.uniform(0.0, 2.0),
        "grey_level": rng.uniform(0.65, 0.85),
        "csf_level": rng.uniform(0.2, 0.4),
        "texture": rng.uniform(0.3, 1.2),
        "gamma": np.exp(rng.normal(0.0, 0.08)),
        "bias": rng.uniform(0.01, 0.06),
        "blur_mm": rng.uniform(0.5, 2.0),
        "slice_blur_mm": max(rng.uniform(-2.0, 2.0), 0.0),  # half of the scanners are isotropic
        "noise": rng.uniform(0.01, 0.06),
        "mask_mm": rng.normal(0.4, 0.3),
    }
    return {name: float(value) for name, value in drawn.items()}


def axis_of_slices(seed: int) -> int:
    """Return the axis that `slice_blur_mm` is about, which all axes are equally often."""
    return seed % 3


def rounded(factors: Mapping[str, float]) -> dict[str, float]:
    """Return the factors in the order of `FACTORS`, with the digits that a table shows."""
    return {name: round(factors[name], 5) for name in FACTORS}
