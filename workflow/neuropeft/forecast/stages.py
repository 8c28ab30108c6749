"""What every stage of a grid is likely to take: time, memory of a job, and disk.

Times on a GPU are those of `seconds`. Those of preparation are processor time that was measured per scan.
"""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from neuropeft import estimates, grid, layout
from neuropeft.cohorts.prepare import Tables
from neuropeft.cohorts.splits import TEST, TRAIN, VALIDATION, make_split, take_subset
from neuropeft.config import Config
from neuropeft.forecast.networks import Network, of_cell, of_pretraining, token_bytes
from neuropeft.forecast.seconds import forward_seconds, training_seconds
from neuropeft.grid import Cell, Encoder
from neuropeft.grouping import grouped
from neuropeft.jobs import Jobs
from neuropeft.pretraining import KEPT
from neuropeft.progress import track
from neuropeft.searches import Searches
from neuropeft.subsets import Subset
from neuropeft.tasks import kind_of
from neuropeft.train.schedule import planned_steps

START_SECONDS = 10.0  # of a job on a GPU, before it computes: imports, CUDA, volumes
SCAN_SECONDS: Mapping[str, float] = {"t1w": 11.0}  # of a scan, on one core: a head of 256^3 voxels at 1 mm
OTHER_SCAN_SECONDS = 1.0  # of other kinds of input, which nobody has measured
PAINTING_SECONDS = 0.12  # of a synthetic scan
WHOLE_COHORT_JOBS = 3  # exclusions, the store, the QC page
DERIVATIVE_BYTES = 0.9e6  # of a scan on the template grid, with its mask
FINE_TUNING, GPU = "fine-tuning", "GPU"
ROW_BYTES = 90  # of a prediction
CHECKPOINTS = 2  # that a run keeps


@dataclass
class Stage:
    """What a stage takes."""

    name: str  # what it is called
    jobs: int = 0  # how many jobs
    cells: int = 0  # how many trainings they do, where a job does several
    seconds: float = 0.0  # one job at a time
    of: str = GPU  # what the seconds are of: a core in preparation, else a GPU
    node_mb: int = 0  # main memory of its largest job, megabytes
    gpu_bytes: float = 0.0  # GPU memory of its largest job, without the scans
    scan_bytes: float = 0.0  # what all scans of that job take, on the GPU if they fit, else in main memory

    def add(self, seconds: float, network: Network | None, batch_size: int, scan_bytes: float) -> None:
        """Add the seconds of trainings of a network, and remember the largest."""
        self.seconds += seconds
        taken = 0.0 if network is None else network.weight_bytes + batch_size * network.scan_bytes
        if taken + scan_bytes > self.gpu_bytes + self.scan_bytes:
            self.gpu_bytes, self.scan_bytes = taken, scan_bytes


@dataclass(frozen=True)
class Forecast:
    """What a grid is likely to take."""

    stages: list[Stage]  # preparation, pretraining, search, fine-tuning and prediction
    disk: dict[str, float]  # bytes of results, by what they are
    running: dict[str, float]  # bytes of the checkpoints of the largest run of a kind, while it trains
    cell_seconds: dict[Cell, float]  # seconds of each cell's training


def forecast(config: Config, tables: Tables, peak: float) -> Forecast:
    """Return what a grid is likely to take on a GPU that reaches so many operations a second at most."""
    return _Grid(config, tables, peak).forecast()


class _Grid:
    def __init__(self, config: Config, tables: Tables, peak: float) -> None:
        self.config, self.tables, self.peak = config, tables, peak
        self.jobs = Jobs(config, tables.results, tables)
        self.size, self.training = config.preprocessing.size, config.training
        self.settings = config.training.model_dump(mode="json")
        self.networks: dict[tuple[Any, ...], Network] = {}
        self.disk: dict[str, float] = {}
        self.running: dict[str, float] = {}

    def forecast(self) -> Forecast:
        self._count_networks()
        stages = [self._preparation(), self._pretraining(), self._search(), self._fine_tuning()]
        return Forecast([*stages, self._prediction()], self.disk, self.running, self.cell_seconds())

    def _count_networks(self) -> None:
        kinds = {self._kind(cell): cell for cell in self.jobs.table}
        for kind, cell in track(list(kinds.items()), len(kinds), "counted networks"):
            self.networks[kind] = of_cell(grid.cell_spec(self.config, cell))

    def _kind(self, cell: Cell) -> tuple[Any, ...]:
        """Return a key that cells of the same network share: heads of one size are alike."""
        task = self.config.tasks[cell.task]
        return cell.backbone, cell.method, task.kind, task.size, task.told

    def _network(self, cell: Cell) -> Network:
        return self.networks[self._kind(cell)]

    def _volumes(self, cohort: str) -> float:
        """Return the bytes of a cohort's store."""
        shape = self.config.cohorts[cohort].input.shape(self.size)
        return 2.0 * math.prod(shape) * self.jobs.scans(cohort)

    @cache  # noqa: B019 (there is one, as long as the process)
    def _split(self, task: str, seed: int, fold: int) -> list[dict[str, Any]]:
        config, splits = self.config.tasks[task], self.config.splits
        text = self.tables.texts[layout.LABELS.at(self.tables.results, task=task, cohort=config.train)]
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
        shares = splits.test_share, splits.validation
        return make_split(rows, seed, *shares, kind_of(config), task, fold, splits.folds or 0)

    def _steps(self, cell: Cell) -> int:
        split = self._split(cell.task, cell.seed, cell.fold)
        return planned_steps(self.settings, sum(row["side"] == TRAIN for row in split))[1]

    @cache  # noqa: B019 (there is one, as long as the process)
    def _tested(self, task: str, seed: int, fold: int, subset: Subset) -> int:
        """Return how many scans of the training cohort are predicted with a cell."""
        split = self._split(task, seed, fold)
        validated = take_subset(split, subset, kind_of(self.config.tasks[task]), VALIDATION)
        return len(validated) + sum(row["side"] == TEST for row in split)

    def _seconds(self, cell: Cell, steps: float) -> float:
        backbone, flops = self.config.backbones[cell.backbone], self._network(cell).flops
        return training_seconds(backbone, flops, steps, self.training.batch_size, self.peak)

    def cell_seconds(self) -> dict[Cell, float]:
        return {cell: self._seconds(cell, self._steps(cell)) for cell in self.jobs.table}

    def _preparation(self) -> Stage:
        stage = Stage("preparation", of="core", node_mb=8000)  # as the rules ask for skull-stripping
        for cohort in self.jobs.cohorts:
            scans, kind = self.jobs.scans(cohort), self.config.cohorts[cohort].input
            self._store("stores", self._volumes(cohort))
            if cohort in self.jobs.synthetic:
                stage.jobs += 1
                stage.seconds += PAINTING_SECONDS * scans
                continue
            stage.jobs += len(self.jobs.chunks(cohort)) * len(kind.steps) + WHOLE_COHORT_JOBS
            stage.seconds += SCAN_SECONDS.get(kind.kind, OTHER_SCAN_SECONDS) * scans
            self._store("images on the template grid", DERIVATIVE_BYTES * scans * (kind.kind == "t1w"))
        return stage

    def _pretraining(self) -> Stage:
        stage = Stage("pretraining")
        networks: dict[tuple[str, str], Network] = {}
        for encoder in grid.encoders(self.config):
            settings = self.config.trained[encoder.pretraining]
            key = encoder.pretraining, encoder.backbone
            if key not in networks:
                spec = self._pretraining_spec(*key)
                networks[key] = of_pretraining(spec, self.size)
            network, backbone = networks[key], self.config.backbones[encoder.backbone]
            seconds = training_seconds(
                backbone, network.flops, settings.steps, settings.batch_size, self.peak
            )
            stage.jobs += 1
            stage.add(START_SECONDS + seconds, network, settings.batch_size, self._volumes(settings.cohort))
            self._need_node(stage, settings.cohort)
            self._store("encoders", network.stored_bytes * (1 + len(KEPT)))
            self._run("pretraining", network)
        return stage

    def _pretraining_spec(self, pretraining: str, backbone: str) -> dict[str, Any]:
        spec = self.config.trained[pretraining].spec(self.config.backbones[backbone])
        return spec | {"backbone": grid.backbone_spec(self.config, backbone)}

    def _search(self) -> Stage:
        stage, searches = Stage("search"), Searches(self.config, self.jobs.table)
        for one in searches.all():
            trials = searches.search.count(self.config.methods[one.method].model_dump())
            stage.jobs += len(searches.firsts(one))
            for cell in searches.cells(one):
                stage.cells += trials
                steps = searches.search.share * self._steps(cell)
                self._train(stage, cell, trials * self._seconds(cell, steps))
        stage.seconds += START_SECONDS * stage.jobs
        return stage

    def _fine_tuning(self) -> Stage:
        stage = Stage(FINE_TUNING, jobs=len(self.jobs.packs), cells=len(self.jobs.table))
        for cell, seconds in self.cell_seconds().items():
            self._train(stage, cell, seconds)
            self._store("deltas", self._network(cell).stored_bytes)
            self._run("fine-tune", self._network(cell))
        stage.seconds += START_SECONDS * stage.jobs
        return stage

    def _train(self, stage: Stage, cell: Cell, seconds: float) -> None:
        cohort = self.config.tasks[cell.task].train
        stage.add(seconds, self._network(cell), self.training.batch_size, self._volumes(cohort))
        self._need_node(stage, cohort)

    def _prediction(self) -> Stage:
        """Predictions of all cells, and the tokens that probes are fitted on."""
        stage = Stage("prediction")
        for (task, backbone, *_), cells in grouped(self.jobs.table, lambda cell: cell.base).items():
            for cohort in self.jobs.task_cohorts(task):
                home = cohort == self.config.tasks[task].train
                rows = sum(
                    self._tested(task, cell.seed, cell.fold, cell.subset)
                    if home
                    else self.jobs.labelled(task, cohort)
                    for cell in cells
                )
                self._forward(stage, backbone, cohort, rows)
                self._store("predictions", ROW_BYTES * rows)
        for encoder, cohort in self._features():
            scans, spec = self.jobs.scans(cohort), grid.backbone_spec(self.config, encoder.backbone)
            self._forward(stage, encoder.backbone, cohort, scans)
            self._store("tokens for probes", scans * token_bytes(spec))
        stage.seconds += START_SECONDS * stage.jobs
        return stage

    def _features(self) -> set[tuple[Encoder, str]]:
        """Return encoder and cohort of every job that computes the tokens of a frozen backbone."""
        return {
            (grid.encoder_for(self.config, one.pretraining, one.backbone, fold), cohort)
            for one, _ in self.jobs.probed_splits()
            for fold in self.config.splits.fold_numbers
            for cohort in self.jobs.task_cohorts(one.task)
        }

    def _forward(self, stage: Stage, backbone: str, cohort: str, scans: int) -> None:
        settings = self.config.backbones[backbone]
        stage.jobs += 1
        stage.add(forward_seconds(settings, self.size, scans, self.peak), None, 0, self._volumes(cohort))
        self._need_node(stage, cohort)

    def _need_node(self, stage: Stage, cohort: str) -> None:
        shape = self.config.cohorts[cohort].input.shape(self.size)
        stage.node_mb = max(stage.node_mb, estimates.training_mb(self.jobs.scans(cohort), shape, 1))

    def _store(self, what: str, size: float) -> None:
        self.disk[what] = self.disk.get(what, 0.0) + size

    def _run(self, what: str, network: Network) -> None:
        self.running[what] = max(self.running.get(what, 0.0), CHECKPOINTS * network.state_bytes)
