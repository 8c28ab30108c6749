"""The run table: all cells of the grid, valid combinations only, and what each of them resolves to."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from neuropeft import layout
from neuropeft.config import Backbone, Block, Config, GenerationTask, SegmentationTask, Task
from neuropeft.errors import UserError
from neuropeft.split_names import fold_part, split_name
from neuropeft.subsets import WHOLE, Subset, fraction, shots

NO_PRETRAINING = "none"

Base = tuple[str, str, str, str]  # task, backbone, pretraining, method
Group = tuple[str, str, str, str, Subset]  # what cells share that differ in seed and fold only


class Cell(NamedTuple):
    """The unit of fine-tuning.

    `subset` is how much of the training and of the validation subjects it learns from; `fold` is the one that
    is tested on, from 1, or 0 where all seeds share a fixed test side.
    """

    task: str
    backbone: str
    pretraining: str
    method: str
    subset: Subset
    seed: int
    fold: int = 0

    @property
    def base(self) -> Base:
        """What it shares with the cells that are trained and predicted together with it."""
        return self[:4]

    @property
    def group(self) -> Group:
        """The group of cells that differ from it in seed and fold only."""
        return self[:5]

    @property
    def split(self) -> str:
        """The name of the split that it is trained and tested on."""
        return split_name(self.seed, self.fold)

    @property
    def names(self) -> dict[str, object]:
        """What places of `layout` call it by."""
        return {**self._asdict(), "split": self.split}

    @property
    def path(self) -> str:
        """Where its results and its state are, below their folders."""
        return layout.CELL_PATH.format(**self.names)


def names_of(shared: Sequence[Any]) -> dict[str, Any]:
    """Return the wildcards of `layout` for cells that share their first fields, a `Base` or a `Group`."""
    return dict(zip(Cell._fields, shared, strict=False))


def base_of(wildcards: Any) -> Base:
    """Return the base that wildcards name: the cells that are predicted together."""
    return wildcards.task, wildcards.backbone, wildcards.pretraining, wildcards.method


class Encoder(NamedTuple):
    """A pretrained encoder; `fold` 0 serves all folds."""

    pretraining: str
    backbone: str
    fold: int = 0

    @property
    def names(self) -> dict[str, str]:
        """What places of `layout` call it by."""
        return {
            "pretraining": self.pretraining,
            "backbone": self.backbone,
            "fold_part": fold_part(self.fold),
        }


def cells(config: Config) -> list[Cell]:
    """Return the distinct valid cells of all grid blocks, sorted; see `skipped` for the others.

    Raises:
        UserError: a block has no valid cell at all.
    """
    found: set[Cell] = set()
    for block, of_block in _valid(config):
        rest = product(of_block, _subsets(block), block.seeds, config.splits.fold_numbers)
        found |= {Cell(*base, subset, seed, fold) for base, subset, seed, fold in rest}
    return sorted(found)


def bases(config: Config) -> list[Base]:
    """Return what the cells of the grid share that are trained and predicted together, sorted.

    There are few of them, however many subsets, seeds and folds there are.

    Raises:
        UserError: a block has no valid cell at all.
    """
    return sorted({base for _, of_block in _valid(config) for base in of_block})


def _valid(config: Config) -> Iterator[tuple[Block, list[Base]]]:
    """Yield each block with its valid combinations."""
    for index, block in enumerate(config.grid):
        found, reasons = _bases(config, block)
        if not found:
            raise UserError(
                f"`grid.{index}` has no valid cell: {'; '.join(reasons)}; change its `methods`, "
                "`backbones`, `tasks` or `pretraining`"
            )
        yield block, found


def _subsets(block: Block) -> list[Subset]:
    some = [*map(shots, block.shots), *map(fraction, block.fractions or [])]
    return some or [WHOLE]


def skipped(config: Config) -> list[str]:
    """Return a line for every combination of the grid that cannot be: which one, and why."""
    reasons = [reason for block in config.grid for reason in _bases(config, block)[1]]
    return list(dict.fromkeys(reasons))


def _bases(config: Config, block: Block) -> tuple[list[Base], list[str]]:
    """Return the valid combinations of a block and why the others are not valid."""
    found: list[Base] = []
    reasons: list[str] = []
    for backbone, method in product(block.backbones, block.methods):
        starts, invalid = _starts(config, block, backbone, method)
        reasons += invalid
        for task in block.tasks:
            if lacking := _lacking(config, backbone, config.tasks[task].train, config.tasks[task].needs):
                reasons.append(f"{task} on {backbone} needs {lacking}")
                continue
            if unfit := _unfit(config.tasks[task], config.backbones[backbone]):
                reasons.append(f"{task} on {backbone} needs {unfit}")
                continue
            found += [(task, backbone, start, method) for start in starts]
    return found, reasons


def _lacking(config: Config, backbone: str, cohort: str, needs: frozenset[str] = frozenset()) -> str:
    """Return what a cohort's kind of input lacks for a backbone and what else is needed; empty if nothing."""
    given = config.cohorts[cohort].input
    lacking = (config.backbones[backbone].needs | needs) - given.provides
    return f"{_listed(lacking)}, which input {given.kind} of {cohort} does not provide" if lacking else ""


def _unfit(task: Task, backbone: Backbone) -> str:
    """Return what a task needs for a backbone to have outputs for it; empty if nothing."""
    decoders = backbone.decoders
    if isinstance(task, GenerationTask) != ("denoiser" in backbone.provides):
        return "a backbone that draws images" if isinstance(task, GenerationTask) else "one that reads images"
    if not isinstance(task, SegmentationTask) or task.decoder in (None, *decoders):
        return ""
    return f"the decoder {' or '.join(sorted(decoders))}, not {task.decoder}"


def _starts(config: Config, block: Block, backbone: str, method: str) -> tuple[list[str], list[str]]:
    """Return what a method may start from on a backbone, and why not from the rest of the block's list."""
    wanted, provided = config.methods[method], config.backbones[backbone].provides
    both = f"{method} on {backbone}"
    if lacking := wanted.needs - provided:
        return [], [f"{both} needs {_listed(lacking)}, which the backbone does not provide"]
    drawn = "denoiser" in provided
    if wanted.start == "none" and drawn:
        return [], [f"{both} would start from random weights, from which nothing is drawn"]
    if wanted.start == "none":
        return [NO_PRETRAINING], []
    if not block.pretraining:
        return [], [f"{both} needs an entry in `pretraining`"]
    starts, reasons = [], []
    for start in block.pretraining:
        if start == NO_PRETRAINING:
            invalid = "it needs pretrained weights" if wanted.start == "weights" or drawn else ""
        else:
            lacking = config.pretraining[start].needs - provided
            invalid = f"that needs {_listed(lacking)}, which the backbone does not provide" if lacking else ""
            if not invalid and (trained := config.trained.get(config.starts(start)[0])):
                unfit = _lacking(config, backbone, trained.cohort)
                invalid = f"the backbone needs {unfit}" if unfit else ""
        if invalid:
            reasons.append(f"{both} cannot start from {start}: {invalid}")
        else:
            starts.append(start)
    return starts, reasons


def _listed(needs: Iterable[str]) -> str:
    return " and ".join(sorted(needs))


def pretrained(config: Config) -> list[tuple[str, str]]:
    """Return the (pretraining, backbone) pairs that the workflow trains, since some cell starts from them."""
    pairs = {
        (start, backbone)
        for _, backbone, pretraining, _ in bases(config)
        if pretraining != NO_PRETRAINING
        for start in config.starts(pretraining)
    }
    return sorted(pair for pair in pairs if pair[0] in config.trained)


def autoencoded(config: Config) -> list[tuple[str, str]]:
    """Return those pairs of `pretrained` that leave reconstructions of volumes, which figures show."""
    in_3d = [pair for pair in pretrained(config) if "3D" in config.backbones[pair[1]].needs]
    return [pair for pair in in_3d if config.trained[pair[0]].reconstructs]


def encoder_folds(config: Config, pretraining: str) -> list[int]:
    """Return the folds that a pretraining has encoders of; [0] if one encoder serves all folds.

    Where a task of the grid is trained on the cohort that is pretrained on, the test subjects of each fold
    are left out of an encoder of that fold.
    """
    tested = {config.tasks[task].train for block in config.grid for task in block.tasks}
    seen = {config.trained[name].cohort for name in config.starts(pretraining) if name in config.trained}
    return list(config.splits.fold_numbers) if seen & tested else [0]


def encoder_for(config: Config, pretraining: str, backbone: str, fold: int) -> Encoder:
    """Return a pretraining's encoder for a fold: its own, or the one that serves all folds."""
    return Encoder(pretraining, backbone, fold if fold in encoder_folds(config, pretraining) else 0)


def encoder_of(config: Config, cell: Cell) -> Encoder | None:
    """Return the encoder that a cell starts from; None if it starts from no weights."""
    if cell.pretraining == NO_PRETRAINING:
        return None
    return encoder_for(config, cell.pretraining, cell.backbone, cell.fold)


def encoder_fold(config: Config, cell: Cell) -> int:
    """Return the fold whose encoder a cell starts from; 0 if all folds start from the same weights."""
    return encoder_for(config, cell.pretraining, cell.backbone, cell.fold).fold


def encoders(config: Config) -> list[Encoder]:
    """Return every encoder that the workflow trains."""
    return [
        Encoder(pretraining, backbone, fold)
        for pretraining, backbone in pretrained(config)
        for fold in encoder_folds(config, pretraining)
    ]


def used_cohorts(config: Config) -> list[str]:
    """Return the cohorts that the grid needs, in the order of the configuration."""
    used = {config.trained[pretraining].cohort for pretraining, _ in pretrained(config)}
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
    used = {task for task, *_ in bases(config)}
    return [task for task in config.tasks if task in used]


def segmented(config: Config) -> list[str]:
    """Return the tasks of the grid that find regions, of which figures show pictures."""
    return [task for task in used_tasks(config) if config.tasks[task].kind == "segmentation"]


def generated(config: Config) -> list[str]:
    """Return the tasks of the grid that draw images, of which figures show some."""
    return [task for task in used_tasks(config) if config.tasks[task].kind == "generation"]


def used_backbones(config: Config) -> list[str]:
    """Return the backbones of the grid, in the order of the configuration."""
    used = {backbone for _, backbone, *_ in bases(config)}
    return [backbone for backbone in config.backbones if backbone in used]


def seeds_of(all_cells: Iterable[Cell], task: str) -> list[int]:
    """Return the seeds that a task is run with."""
    return sorted({cell.seed for cell in all_cells if cell.task == task})


def linearly_predicted(config: Config, some: Iterable[Cell]) -> list[Cell]:
    """Return the cells of tasks that linear models can predict, too: controls and probes."""
    return [cell for cell in some if config.tasks[cell.task].linear]


def splits_of(some: Iterable[Cell]) -> list[str]:
    """Return the names of the splits of some cells, by seed and fold."""
    return [split_name(*pair) for pair in sorted({(cell.seed, cell.fold) for cell in some})]


def subsets_of(all_cells: Iterable[Cell], task: str) -> list[Subset]:
    """Return the subsets that a task is run with: shots, then fractions, by size."""
    return sorted({cell.subset for cell in all_cells if cell.task == task})


def backbone_spec(config: Config, backbone: str) -> dict[str, Any]:
    """Return what defines a backbone, without the decoder that only pretraining uses."""
    spec = config.backbones[backbone].model_dump(mode="json", exclude={"decoder"})
    return {**spec, "image_size": config.preprocessing.size}


def cell_spec(config: Config, cell: Cell) -> dict[str, Any]:
    """Return everything that defines a cell's training."""
    task = config.tasks[cell.task]
    method = config.methods[cell.method].model_dump(mode="json")
    return {
        "cell": "/".join(map(str, cell if cell.fold else cell[:-1])),
        "task": task.trained(cell.task),
        "backbone": {
            **backbone_spec(config, cell.backbone),
            "image_size": task.seen(config.preprocessing.size),
        },
        "shuffle_labels": method.pop("shuffle_labels"),
        "method": method,
        "training": config.training.model_dump(mode="json", exclude={"search"}),
        "subset": str(cell.subset),
        "seed": cell.seed,
        "fold": cell.fold,
    }


def searched(some: Iterable[Cell]) -> list[Cell]:
    """Return the cell of each fold to try settings with: of most data, the first seed."""
    of_fold: dict[int, Cell] = {}
    for cell in sorted(some, key=lambda cell: (cell.fold, cell.subset, -cell.seed)):
        of_fold[cell.fold] = cell
    return list(of_fold.values())


def cell_specs(config: Config, some: Iterable[Cell]) -> str:
    """Return {path: what defines its training} of some cells, as canonical JSON.

    Rules pass it as a parameter, so that a cell is trained again exactly when one of these values changes.
    """
    return _canonical({cell.path: cell_spec(config, cell) for cell in some})


def pretraining_spec(config: Config, pretraining: str, backbone: str) -> str:
    """Return everything that defines a pretraining, as canonical JSON."""
    settings = config.trained[pretraining].spec(config.backbones[backbone])
    return _canonical(settings | {"backbone": backbone_spec(config, backbone)})


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
