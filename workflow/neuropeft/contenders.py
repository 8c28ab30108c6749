"""Contenders: what is scored and compared, the rows of tables and the curves of figures."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from neuropeft.config import Config, SegmentationTask
from neuropeft.grid import (
    NO_PRETRAINING,
    Group,
    bases,
    cells,
    encoder_for,
    linearly_predicted,
    seeds_of,
    subsets_of,
    used_backbones,
    used_tasks,
)
from neuropeft.grouping import grouped
from neuropeft.probe_grid import probe_groups, probed
from neuropeft.probe_names import PROBES
from neuropeft.subsets import Subset
from neuropeft.variant_names import Analysis, variant_of

NO_BACKBONE = "control"  # stands for the backbone of a control that has none
MEAN = "mean"  # the control that is guessing, not a way to predict
CONTROLS = {
    MEAN: "predict the mean",
    "age_sex": "age + sex, except the target",
    "sex_site": "sex + site",
    "morphometry": "linear model on region volumes",
    "ridge_voxels": "linear model on voxels",
}
MEAN_LABEL_MAP = "mean label map"  # what guessing is called of regions
REAL = "real_images"  # the control of tasks that draw images, better than what is drawn
REAL_LABEL = "training images"
REFERENCE_KIND = "full"  # what others are compared with, unless `statistics.reference` names a method

Line = tuple[str, str, str]  # backbone, pretraining, method: a column of tables, a curve
Member = tuple[Line, int]  # and the seed
# No method can be called so: their names have no hyphen.
OF_SEEDS, OF_METHODS = "-seeds", "all-methods"


@dataclass(frozen=True)
class Contender:
    """Cells that differ in seed and fold only, a probe, a control without a network, or an ensemble of cells.

    Attributes:
        sort: `cells`, `probes`, `controls`, `ensembles` or, of `variants`, the analysis: where its
            predictions come from.
        group: task, backbone, pretraining, method and subset, unique; a probe, control or ensemble is its
            method.
        seeds: the seeds that it should have.
        owner: the first part of its label: the backbone, or that it is a control.
        name: the second part: the method, and the start where the backbone has several.
        short: the method where the surroundings say that it is a way to fine-tune.
        is_control: whether it must not learn or has no network, so is no method to choose.
        is_reference: whether others of its place are compared with it.
        place: what columns and curves are sorted by: methods, ensembles, probes, controls, as configured.
        members: of an ensemble, the cells whose predictions each of its seeds is the mean of.
    """

    sort: Literal["cells", "probes", "controls", "ensembles"] | Analysis
    group: Group
    seeds: tuple[int, ...] = field(compare=False)
    owner: str = field(compare=False)
    name: str = field(compare=False)
    short: str = field(compare=False)
    is_control: bool = field(compare=False)
    is_reference: bool = field(compare=False)
    place: tuple[int, ...] = field(compare=False)
    members: Mapping[int, tuple[Member, ...]] = field(default_factory=dict, compare=False)

    @property
    def task(self) -> str:
        """The task that it is trained for."""
        return self.group[0]

    @property
    def line(self) -> Line:
        """What it shares with itself on other tasks and subsets: backbone, pretraining, method."""
        return self.group[1:4]

    @property
    def backbone(self) -> str:
        """The name of its backbone."""
        return self.group[1]

    @property
    def pretraining(self) -> str:
        """The name of what it starts from."""
        return self.group[2]

    @property
    def method(self) -> str:
        """The name of its method, probe or control."""
        return self.group[3]

    @property
    def subset(self) -> Subset:
        """How much of the training subjects it learns from."""
        return self.group[4]

    @property
    def label(self) -> str:
        """What tables, figures and the summary call it."""
        return f"{self.owner} {self.name}"

    @property
    def is_method(self) -> bool:
        """Whether it is a way to train a backbone that one could choose: no probe and no control."""
        return self.sort == "cells" and not self.is_control

    @property
    def scored(self) -> str:
        """The name of what it is scored together with, since they are predicted together."""
        task, *base = self.group[:4]
        base[2], _ = variant_of(base[2])
        shared = {"ensembles": 2, "probes": 2, "controls": 0}.get(self.sort, 3)
        return "/".join((self.sort, task, *base[:shared]))


def controls_of(config: Config, task: str) -> list[str]:
    """Return the controls of a task: of age, sex and site is one, of anything else age and sex.

    Regions have but the one that is guessing.
    """
    spec = config.tasks[task]
    if spec.kind == "generation":
        return [REAL]
    if not spec.linear:
        return [MEAN] if isinstance(spec, SegmentationTask) else []
    left_out = {"age_sex" if "age" in spec.target_columns.values() else "sex_site"}
    if config.cohorts[spec.train].morphometry is None:
        left_out.add("morphometry")
    return [name for name in CONTROLS if name not in left_out]


def contenders(config: Config) -> list[Contender]:
    """Return all contenders: cells, ensembles of them, then probes, then the controls of each task."""
    all_cells = cells(config)
    seeds: dict[Group, list[int]] = defaultdict(list)
    for cell in all_cells:
        seeds[cell.group].append(cell.seed)
    starts = _starts(config)
    found = [_of_cells(config, starts, group, tuple(dict.fromkeys(some))) for group, some in seeds.items()]
    if config.analyses.ensembles:
        found += _ensembles(config, starts, [one for one in found if config.tasks[one.task].linear])
    of_task = {task: tuple(seeds_of(all_cells, task)) for task in used_tasks(config)}
    probed = linearly_predicted(config, all_cells)
    found += [_probe(config, starts, group, of_task[group[0]]) for group in probe_groups(probed)]
    for task, seeds_of_task in of_task.items():
        regions = isinstance(config.tasks[task], SegmentationTask)
        for control in controls_of(config, task):
            label = MEAN_LABEL_MAP if regions else CONTROLS.get(control, REAL_LABEL)
            for subset in subsets_of(all_cells, task):
                found.append(
                    Contender(
                        sort="controls",
                        group=(task, NO_BACKBONE, NO_PRETRAINING, control, subset),
                        seeds=seeds_of_task,
                        owner="Control:",
                        name=label,
                        short=label,
                        is_control=True,
                        is_reference=False,
                        place=(3, len(config.backbones), [*CONTROLS, REAL].index(control)),
                    )
                )
    return found


def _of_cells(
    config: Config, starts: Mapping[str, set[str]], group: Group, seeds: tuple[int, ...]
) -> Contender:
    _, backbone, start, method, _ = group
    settings, named = config.methods[method], config.statistics.reference
    label = settings.label_of(method)
    if settings.shuffle_labels:
        label = f"{settings.kind} on shuffled labels"
    is_control = settings.shuffle_labels or settings.is_control
    owner = backbone_label(config, backbone)
    return Contender(
        sort="cells",
        group=group,
        seeds=seeds,
        owner=f"Control: {owner}" if is_control else owner,
        name=label + _from_start(starts, backbone, start),
        short=label.removesuffix(" fine-tune"),
        is_control=is_control,
        is_reference=not is_control and (method == named if named else settings.kind == REFERENCE_KIND),
        place=(
            3 if is_control else 0,
            list(config.backbones).index(backbone),
            list(config.methods).index(method),
            _start_place(config, start),
        ),
    )


def _ensembles(
    config: Config, starts: Mapping[str, set[str]], of_cells: Sequence[Contender]
) -> Iterator[Contender]:
    """Yield the ensemble of the seeds of each method, and of all methods that start from the same weights.

    Nobody chooses the members, so that no test score has a say in them. The ensemble of methods has those
    seeds that all its methods have, one ensemble for each.
    """
    together: dict[tuple[object, ...], list[Contender]] = defaultdict(list)
    for one in of_cells:
        if not one.is_method:
            continue
        if len(one.seeds) > 1:
            members = {one.seeds[0]: tuple((one.line, seed) for seed in one.seeds)}
            text = f"{one.name}, {len(one.seeds)} seeds"
            yield _ensemble(one, f"{one.method}{OF_SEEDS}", text, members, one.place[2])
        if one.pretraining != NO_PRETRAINING:
            together[one.task, one.backbone, one.pretraining, one.subset].append(one)
    for some in together.values():
        seeds = sorted(set.intersection(*(set(one.seeds) for one in some)))
        if len(some) > 1 and seeds:
            first = some[0]
            text = f"{len(some)} methods" + _from_start(starts, first.backbone, first.pretraining)
            of_seed = {seed: tuple((one.line, seed) for one in some) for seed in seeds}
            yield _ensemble(first, OF_METHODS, text, of_seed, len(config.methods))


def _ensemble(
    first: Contender, name: str, text: str, members: Mapping[int, tuple[Member, ...]], place: int
) -> Contender:
    return replace(
        first,
        sort="ensembles",
        group=(*first.group[:3], name, first.subset),
        seeds=tuple(members),
        owner=f"Ensemble: {first.owner}",
        name=text,
        short=f"ensemble of {text}",
        is_reference=False,
        place=(1, first.place[1], place, first.place[3]),
        members=members,
    )


def _probe(config: Config, starts: Mapping[str, set[str]], group: Group, seeds: tuple[int, ...]) -> Contender:
    _, backbone, start, probe, _ = group
    untrained = start == NO_PRETRAINING
    return Contender(
        sort="probes",
        group=group,
        seeds=seeds,
        owner=f"Frozen {'untrained ' if untrained else ''}{backbone_label(config, backbone)}:",
        name=PROBES[probe] + _from_start(starts, backbone, start),
        short=PROBES[probe],
        is_control=False,
        is_reference=False,
        place=(
            2,
            list(config.backbones).index(backbone),
            int(untrained),
            _start_place(config, start),
            list(PROBES).index(probe),
        ),
    )


def _start_place(config: Config, start: str) -> int:
    return sorted([NO_PRETRAINING, *config.pretraining]).index(start)


def _starts(config: Config) -> dict[str, set[str]]:
    """Return the starts of each backbone, none among them where a method has an untrained twin."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, backbone, start, method in bases(config):
        if start != NO_PRETRAINING or config.methods[method].start != "none":
            found[backbone].add(start)
    return found


def _from_start(starts: Mapping[str, set[str]], backbone: str, start: str) -> str:
    """Return which weights it starts from, where the backbone has several starts."""
    return f" from {start}" if start != NO_PRETRAINING and len(starts[backbone]) > 1 else ""


def backbone_label(config: Config, backbone: str) -> str:
    """Return what tables and figures call a backbone."""
    return config.backbones[backbone].label_of(backbone)


def main_backbones(config: Config) -> list[str]:
    """Return the backbones that have tables, curves and panels of their own; others stand beside them.

    They are `figures.backbones`, else those of the grid that start from pretrained weights, else all of it.
    """
    used, starts = used_backbones(config), _starts(config)
    named = [name for name in config.figures.backbones if name in used]
    return named or [name for name in used if starts[name] - {NO_PRETRAINING}] or used


def scored_together(some: Iterable[Contender]) -> dict[str, list[Contender]]:
    """Return the contenders that are scored together, by the name of what they share."""
    return grouped(some, lambda contender: contender.scored)


def score_spec(config: Config, some: list[Contender]) -> dict[str, Any]:
    """Return everything that the scores of contenders which are scored together depend on but their files."""
    first = some[0]
    task = config.tasks[first.task]
    return {
        "sort": first.sort,
        "task": task.spec(first.task),
        "cohorts": [task.train, *task.zero_shot],
        "folds": list(config.splits.fold_numbers),
        "contenders": [
            {"line": list(one.line), "subset": str(one.subset), "seeds": list(one.seeds)}
            | ({"members": list(one.members.values())} if one.members else {})
            for one in some
        ],
    }


def confound_spec(config: Config, task: str) -> dict[str, Any]:
    """Return everything that the confounds of a task depend on but their files.

    Predictions are those of methods on the largest subset, and features those of the first fold's encoders.
    """
    of_cells = [one for one in contenders(config) if one.task == task and one.sort == "cells"]
    largest = max(one.subset for one in of_cells)
    some = [one for one in of_cells if one.subset == largest]
    fold = config.splits.fold_numbers[0]
    starts = [(one.pretraining, one.backbone) for one in probed(cells(config)) if one.task == task]
    return score_spec(config, some) | {
        "cohorts": [config.tasks[task].train],
        "targets": list(config.tasks[task].target_columns.values()),
        "features": [encoder_for(config, *start, fold).names for start in starts],
    }
