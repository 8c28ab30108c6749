"""The run table: all cells of the grid, valid combinations only, and what each of them resolves to."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from neuropeft.config import Block, Config, ViT
from neuropeft.errors import UserError

NO_PRETRAINING = "none"

Base = tuple[str, str, str, str]  # task, backbone, pretraining, method


@dataclass(frozen=True, order=True)
class Group:
    """The cells that differ in their seed only, or one control of a task (backbone `control`)."""

    task: str
    backbone: str
    pretraining: str
    method: str
    fraction: int


class Cell(NamedTuple):
    """The unit of fine-tuning. `fraction` is in percent of the training subjects."""

    task: str
    backbone: str
    pretraining: str
    method: str
    fraction: int
    seed: int

    @property
    def base(self) -> Base:
        """What it shares with the cells that are trained and predicted together with it."""
        return self[:4]

    @property
    def group(self) -> Group:
        """The group of cells that differ from it in their seed only."""
        return Group(*self[:5])

    @property
    def path(self) -> str:
        """Where its results and its state are, below their folders."""
        return f"{'/'.join(self.base)}/fraction-{self.fraction}/seed-{self.seed}"


def cells(config: Config) -> list[Cell]:
    """Return the distinct valid cells of all grid blocks, sorted.

    Scratch starts from no weights, so it pairs with no pretraining; every other method needs some.
    A CNN has neither pretraining nor methods other than scratch.

    Raises:
        UserError: a block has no valid cell at all.
    """
    found: set[Cell] = set()
    for index, block in enumerate(config.grid):
        of_block = set(_block_cells(config, block))
        if not of_block:
            raise UserError(
                f"`grid.{index}` has no valid cell: methods other than scratch need a ViT and an entry in "
                f"`grid.{index}.pretraining`, and a CNN knows only scratch"
            )
        found |= of_block
    return sorted(found)


def _block_cells(config: Config, block: Block) -> Iterator[Cell]:
    for task, backbone, method in product(block.tasks, block.backbones, block.methods):
        scratch = config.methods[method].kind == "scratch"
        if not scratch and not isinstance(config.backbones[backbone], ViT):
            continue
        starts = [NO_PRETRAINING] if scratch else block.pretraining
        for pretraining, fraction, seed in product(starts, block.fractions, block.seeds):
            yield Cell(task, backbone, pretraining, method, fraction, seed)


def pretrained(config: Config) -> list[tuple[str, str]]:
    """Return the (pretraining, backbone) pairs that the workflow trains, since some cell starts from them."""
    pairs = {(cell.pretraining, cell.backbone) for cell in cells(config)}
    return sorted(pair for pair in pairs if pair[0] in config.autoencoders)


def used_cohorts(config: Config) -> list[str]:
    """Return the cohorts that the grid needs, in the order of the configuration."""
    used = {config.autoencoders[pretraining].cohort for pretraining, _ in pretrained(config)}
    for name in used_tasks(config):
        used |= {config.tasks[name].train, *config.tasks[name].zero_shot}
    return [cohort for cohort in config.cohorts if cohort in used]


def scanned_cohorts(config: Config) -> list[str]:
    """Return the used cohorts whose scans are read and preprocessed: all but the synthetic ones."""
    return [cohort for cohort in used_cohorts(config) if config.cohorts[cohort].synthetic is None]


def synthetic_cohorts(config: Config) -> list[str]:
    """Return the used cohorts that are painted, in the order of the configuration."""
    return [cohort for cohort in used_cohorts(config) if config.cohorts[cohort].synthetic is not None]


def used_tasks(config: Config) -> list[str]:
    """Return the tasks of the grid, in the order of the configuration."""
    used = {cell.task for cell in cells(config)}
    return [task for task in config.tasks if task in used]


def seeds_of(all_cells: Iterable[Cell], task: str) -> list[int]:
    """Return the seeds that a task is run with."""
    return sorted({cell.seed for cell in all_cells if cell.task == task})


def backbone_spec(config: Config, backbone: str) -> dict[str, Any]:
    """Return what defines a backbone, without the decoder that only pretraining uses."""
    spec = config.backbones[backbone].model_dump(mode="json", exclude={"decoder"})
    if spec["kind"] == "vit":
        spec["image_size"] = config.preprocessing.size
    return spec


def cell_spec(config: Config, cell: Cell) -> dict[str, Any]:
    """Return everything that defines a cell's training."""
    task = config.tasks[cell.task]
    method = config.methods[cell.method].model_dump(mode="json")
    return {
        "cell": "/".join(map(str, cell)),
        "task": {"name": cell.task, "kind": task.kind, "classes": len(task.classes or {})},
        "backbone": backbone_spec(config, cell.backbone),
        "shuffle_labels": method.pop("shuffle_labels"),
        "method": method,
        "training": config.training.model_dump(mode="json"),
        "fraction": cell.fraction,
        "seed": cell.seed,
    }


def cell_specs(config: Config, some: Iterable[Cell]) -> str:
    """Return {path: what defines its training} of some cells, as canonical JSON.

    Rules pass it as a parameter, so that a cell is trained again exactly when one of these values changes.
    """
    return _canonical({cell.path: cell_spec(config, cell) for cell in some})


def pretraining_spec(config: Config, pretraining: str, backbone: str) -> str:
    """Return everything that defines a pretraining, as canonical JSON."""
    vit = config.backbones[backbone]
    assert isinstance(vit, ViT), "only ViTs are pretrained: see cells()"
    settings = config.autoencoders[pretraining].model_dump(mode="json", exclude={"cohort"})
    return _canonical(
        {"backbone": backbone_spec(config, backbone), "decoder": vit.decoder.model_dump(mode="json")}
        | settings
    )


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
