"""Variants of trained cells, with other weights or of changed scans, which are scored as contenders are."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders
from neuropeft.grid import NO_PRETRAINING
from neuropeft.variant_names import INTERPOLATION, ROBUSTNESS, Analysis, changed, interpolated, with_variant


def varied_methods(config: Config) -> list[Contender]:
    """Return what is asked more: every method with the largest subset of its task, if that has no regions."""
    of_cells = [one for one in contenders(config) if one.is_method and config.tasks[one.task].linear]
    largest: dict[str, Any] = {}
    for one in of_cells:
        largest[one.task] = max(one.subset, largest.get(one.task, one.subset))
    return [one for one in of_cells if one.subset == largest[one.task]]


def varied(config: Config) -> dict[Analysis, list[Contender]]:
    """Return, by analysis, the methods that it varies: weights only of what starts from pretrained ones."""
    whole = varied_methods(config)
    started = [one for one in whole if one.pretraining != NO_PRETRAINING]
    asked = config.analyses
    return {
        INTERPOLATION: started if asked.interpolation else [],
        ROBUSTNESS: whole if asked.robustness else [],
    }


def salient(config: Config) -> list[Contender]:
    """Return the methods of which saliency is asked: of scans that lie in the template's space."""
    if not config.analyses.saliency:
        return []
    whole = varied_methods(config)
    return [one for one in whole if config.cohorts[config.tasks[one.task].train].input.kind == "t1w"]


def names_of(config: Config, analysis: Analysis) -> list[str]:
    """Return the names of the variants of an analysis, in their order."""
    if analysis == INTERPOLATION:
        return [interpolated(share) for share in config.analyses.interpolation]
    asked = config.analyses.robustness
    return [changed(kind, strength) for kind, strengths in asked.items() for strength in strengths]


def variants(config: Config, analysis: Analysis) -> Iterator[Contender]:
    """Yield every variant of an analysis."""
    for one in varied(config)[analysis]:
        for name in names_of(config, analysis):
            group = (*one.group[:3], with_variant(one.method, name), one.subset)
            yield replace(one, sort=analysis, group=group, name=f"{one.name}, {name}", is_reference=False)
