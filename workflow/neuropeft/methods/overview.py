"""Every kind of method, with what it trains by its default settings."""

from typing import get_args

import torch
from pydantic import ValidationError

from neuropeft.backbones.build import build_predictor
from neuropeft.config import Backbone, Method
from neuropeft.config.methods.base import MethodSettings
from neuropeft.methods.adapt import adapt
from neuropeft.methods.counts import BACKBONES, OUTPUTS, count

COLUMNS = ("kind", "family", *BACKBONES, "what it does")
UNKNOWN = "as set"


def overview() -> list[dict[str, str]]:
    """Return a row for each kind: its family, the parameters that it trains of a backbone, without the head.

    A backbone that lacks what the kind attaches to is `-`; a kind that needs settings without a default is
    `as set`.
    """
    rows = []
    for kind in get_args(get_args(Method)[0]):
        counts = {name: _trained(kind, name) for name in BACKBONES}
        does = (kind.__doc__ or "").strip().splitlines()[0]
        family = kind.family if isinstance(kind.family, str) else UNKNOWN
        rows.append({"kind": kind.kind_name(), "family": family, **counts, "what it does": does})
    return rows


def _trained(kind: type[MethodSettings], backbone: str) -> str:
    classes = {one.kind_name(): one for one in get_args(get_args(Backbone)[0])}
    try:
        settings = kind.model_validate({"kind": kind.kind_name(), "lr": 1e-3})
    except ValidationError:
        return UNKNOWN
    if not settings.needs <= classes[BACKBONES[backbone]["kind"]].provides:
        return "-"
    with torch.device("meta"):
        model = build_predictor(BACKBONES[backbone], OUTPUTS)
        adapt(model, settings.model_dump(), torch.default_generator)
    return f"{count(model).encoder:,}"
