"""The configuration: what config.yaml may say, a file for each place; `read` reads it.

Every model forbids unknown keys, and what a validator says names the key and what to change.
"""

from neuropeft.config.backbones import Backbone, ViT
from neuropeft.config.base import label_of_kind
from neuropeft.config.cohorts import Cohort, Simulated
from neuropeft.config.grid import Block
from neuropeft.config.methods import Method
from neuropeft.config.pretraining import ImportedWeights, MaskedAutoencoder, Trained
from neuropeft.config.root import Config
from neuropeft.config.tasks import (
    BinaryTask,
    GenerationTask,
    MulticlassTask,
    MultilabelTask,
    RegressionTask,
    SegmentationTask,
    Splits,
    Task,
)
from neuropeft.config.training import Training

__all__ = [
    "Backbone",
    "BinaryTask",
    "Block",
    "Cohort",
    "Config",
    "GenerationTask",
    "ImportedWeights",
    "MaskedAutoencoder",
    "Method",
    "MulticlassTask",
    "MultilabelTask",
    "RegressionTask",
    "SegmentationTask",
    "Simulated",
    "Splits",
    "Task",
    "Trained",
    "Training",
    "ViT",
    "label_of_kind",
]
