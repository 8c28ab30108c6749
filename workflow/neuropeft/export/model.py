"""The folder of an exported model: its files, and what is known of it beside its weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropeft.backbones.checkpoints import read_tensors, save_tensors
from neuropeft.errors import UserError
from neuropeft.export.interval import Interval
from neuropeft.export.network import load_network
from neuropeft.export.reference import Features, Quantiles
from neuropeft.files import write_text
from neuropeft.tasks.base import TaskKind
from neuropeft.train.sources import kind_of

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.backbones.heads import Predictor

WEIGHTS, FEATURES, DESCRIPTION, CARD = "model.safetensors", "features.safetensors", "model.json", "README.md"
ADAPTER, STUDENT, DEPLOYMENT = "adapter", "student", "deployment"  # folders; a table's name without suffix


@dataclass(frozen=True)
class Model:
    """An exported model."""

    # what defines its network, as `grid.cell_spec` writes it, with what a search has chosen
    spec: Mapping[str, Any]
    is_plain: bool  # whether its method is merged into a plain network
    offset: list[float]  # see `tasks.base.Objective`
    scale: float  # see there
    names: list[str]  # of the classes or labels, in their order; none for values
    unit: str  # of a value
    cohort: str  # the training cohort
    simulated: bool  # whether that is simulated
    targets: list[float]  # between which values 95 % of training targets lie; none for classes
    input: Mapping[str, Any]  # settings of the training cohort's kind of input
    told: Mapping[str, Any]  # what its steps are told
    size: int  # edge of its arrays
    interval: Mapping[str, Any]  # see `Interval.stored`
    qc: Mapping[str, Quantiles]  # quantiles of the QC numbers of the training cohort
    likeness: Quantiles  # quantiles of the likeness of validation scans, see `Features`

    @property
    def kind(self) -> TaskKind:
        """The kind of its task."""
        return kind_of(self.spec)

    @cached_property
    def worth(self) -> Interval:
        """What its predictions are worth."""
        return Interval.read(dict(self.interval))


def write_model(folder: Path, model: Model, features: Features) -> None:
    """Write what is known of a model, beside its weights."""
    import torch

    arrays = {name: torch.from_numpy(value).float() for name, value in vars(features).items()}
    save_tensors(folder / FEATURES, arrays, {})
    write_text(folder / DESCRIPTION, json.dumps(asdict(model), indent=1) + "\n")


def read_model(folder: Path) -> "tuple[Model, Predictor, Features]":
    """Return a model, its network in evaluation mode, and the features of its training scans.

    Raises:
        UserError: the folder does not hold a model, or a file of it is damaged.
    """
    try:
        told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        model = Model(**told)
        model.worth  # noqa: B018 (is it whole?)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"`--model {folder}` is no exported model ({error}); give a folder that `neuropeft export` wrote"
        ) from error
    arrays, _ = read_tensors(folder / FEATURES)
    features = Features(**{name: value.double().numpy() for name, value in arrays.items()})
    return model, load_network(folder / WEIGHTS, model.spec, model.is_plain), features


def outputs_and_features(network: "Predictor", scans: "Tensor") -> "Tensor":
    """Return the outputs and, beside them, the features of scans [B, C, *S]: [B, outputs + f]."""
    import torch

    from neuropeft.backbones.heads import Head

    assert isinstance(network.head, Head), "segmentations, whose heads are others, are not exported"
    tokens = network.backbone.tokens(scans)
    return torch.cat([network.outputs(tokens), network.head.features(tokens.float())], dim=1)
