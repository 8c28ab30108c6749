"""What the jobs of the workflow need: the input functions of its rules, from the run table and the layout.

Every job of Snakemake makes this anew when it starts, so nothing heavy is imported here. Wildcards are those
of the rule that asks.
"""

import json
import shlex
from collections.abc import Collection, Container, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from neuropeft import (
    backbones,
    contenders,
    grid,
    inputs,
    layout,
    methods,
    numerics,
    pretraining,
    probe_grid,
    tasks,
)
from neuropeft.cohorts import chunks
from neuropeft.cohorts.prepare import Tables
from neuropeft.cohorts.simulate import participants, scan_name
from neuropeft.cohorts.sources import as_made, chunk_sources
from neuropeft.config import Config
from neuropeft.grid import Cell, base_of
from neuropeft.packs import Pack, pack_of, packs
from neuropeft.probe_grid import Probed
from neuropeft.records import read_record
from neuropeft.split_names import fold_in, fold_part, seed_and_fold, split_name
from neuropeft.subsets import Subset


class Jobs:
    """The run table of a configuration, and what its jobs read."""

    def __init__(self, config: Config, results: Path, tables: Tables | None = None) -> None:
        """Make the run table.

        `tables` are those of cohorts and tasks as they are now, of the main process; jobs, which have none,
        read what the run that they belong to has published.

        Raises:
            UserError: a block of the grid has no valid cell.
        """
        self.config, self.results, self.tables = config, results, tables
        self.table = grid.cells(config)
        self.packs = packs(config, self.table)
        self.pack_of = pack_of(self.packs)
        self.cohorts = grid.used_cohorts(config)
        self.scanned = grid.scanned_cohorts(config)  # whose scans are preprocessed
        self.synthetic = grid.synthetic_cohorts(config)  # that are painted
        self.simulated = [name for name in self.cohorts if config.cohorts[name].simulated is not None]
        self.tasks = grid.used_tasks(config)

    def train_labels(self, task: str) -> str:
        """Return the labels of a task in its training cohort."""
        return layout.LABELS.of(task=task, cohort=self.config.tasks[task].train)

    def volumes(self, cohort: str) -> str:
        """Return the volumes of a cohort's store."""
        return layout.VOLUMES.of(cohort=cohort)

    def stored_scans(self, cohort: str) -> str:
        """Return the rows of a cohort's store."""
        return layout.STORED_SCANS.of(cohort=cohort)

    def task_kind_arguments(self, task: str) -> str:
        """Return the arguments that give a command the kind of a task."""
        one = self.config.tasks[task]
        told = f" --told {shlex.quote(one.told)}" if one.told else ""
        return f"--kind {one.kind} --size {one.size}{told}"

    def described(self, task: str) -> list[str]:
        """Return what is said of the images of a task's cohort, if it draws some."""
        draws = self.config.tasks[task].kind == "generation"
        return [layout.DESCRIBED.of(task=task)] if draws else []

    def prediction_arguments(self, task: str) -> str:
        """Return what tells a command how a task is predicted, if its trainings do not say all of it."""
        told = self.config.tasks[task].of_predictions
        return f" --told {shlex.quote(told)} --described {self.described(task)[0]}" if told else ""

    def controls_module(self, task: str) -> str:
        """Return the module that makes the controls of a task."""
        return tasks.kind_of(self.config.tasks[task]).controls

    def code(self, module: str, wildcards: Any, *named: str) -> str:
        """Return the version of the code of a module and of the kinds that the `named` wildcards name."""
        kinds = {
            "cohort": lambda name: [inputs.module_of(self.config.cohorts[name].input.kind)],
            "task": lambda name: self._task_modules(name, module),
            "backbone": lambda name: [backbones.module_of(self.config.backbones[name].kind)],
            "pretraining": lambda name: [pretraining.module_of(self.config.pretraining[name].kind)],
            "method": lambda name: methods.modules_of(self.config.methods[name].model_dump()),
        }
        return numerics.version(module, *chain(*(kinds[one](getattr(wildcards, one)) for one in named)))

    def _task_modules(self, task: str, module: str) -> Iterable[str]:
        one = self.config.tasks[task]
        if not module.startswith("train."):
            return [tasks.module_of(one.kind)]
        return tasks.modules_of(one.spec(task), predicts=module == "train.predict")

    def seeds(self, task: str) -> list[int]:
        """Return the seeds of a task."""
        return grid.seeds_of(self.table, task)

    def splits(self, task: str) -> list[str]:
        """Return the names of a task's splits, one for each seed and fold."""
        return grid.splits_of(cell for cell in self.table if cell.task == task)

    def pack_table(self, cell: Cell) -> str:
        """Return the table that is there once the pack of a cell has been trained."""
        return layout.PACK.of(**self.pack_of[cell].names)

    def pack_named(self, wildcards: Any) -> Pack:
        """Return the pack that a fine-tune job's wildcards name."""
        return Pack(*base_of(wildcards), wildcards.pack)

    def split_files(self, task: str, names: Iterable[str]) -> list[str]:
        """Return the files of a task's splits that are called so."""
        return [layout.SPLIT.of(task=task, split=name) for name in names]

    def pack_splits(self, wildcards: Any) -> list[str]:
        """Return the names of the splits that a pack's cells are trained on."""
        return grid.splits_of(self.packs[self.pack_named(wildcards)])

    def cell_of(self, wildcards: Any) -> Cell:
        """Return the cell that wildcards name."""
        return Cell(*base_of(wildcards), Subset.parse(wildcards.subset), *seed_and_fold(wildcards.split))

    def pack_encoder(self, wildcards: Any) -> list[str]:
        """Return the pretrained encoder that a pack's cells start from, if they start from one."""
        return self.encoders(self.packs[self.pack_named(wildcards)])

    def pack_choices(self, wildcards: Any) -> str | list[str]:
        """Return the table of what a search chose for a pack's cells, if there is one."""
        return self.choices(self.packs[self.pack_named(wildcards)][0])

    def encoders(self, some: Collection[Cell]) -> list[str]:
        """Return the pretrained encoders that cells start from: one, or one for each fold, or none."""
        found = dict.fromkeys(grid.encoder_of(self.config, cell) for cell in some)
        return [layout.ENCODER.of(**encoder.names) for encoder in found if encoder is not None]

    def cell_sources(self, cell: Cell) -> str:
        """Return the arguments that give a command all that a cell is trained from."""
        split = layout.SPLIT.of(**cell.names)
        scans = self.stored_scans(self.config.tasks[cell.task].train)
        encoders = "".join(f" --encoder {encoder}" for encoder in self.encoders([cell]))
        choices = f" --choices {self.choices(cell)}" if self.config.training.search else ""
        return f"--split {split} --store-scans {scans}{encoders}{choices}"

    def choices(self, cell: Cell) -> str | list[str]:
        """Return the table of what a search chooses for a cell, if there is one."""
        if self.config.training.search is None:
            return []
        part = fold_part(grid.encoder_fold(self.config, cell))
        return layout.CHOICES.of(**cell.names, fold_part=part)

    def encoders_used(self) -> list[grid.Encoder]:
        """Return every encoder of the workflow, trained here or imported."""
        of_cells = [grid.encoder_of(self.config, cell) for cell in self.table]
        return list(dict.fromkeys([*grid.encoders(self.config), *(one for one in of_cells if one)]))

    def fold_of(self, wildcards: Any) -> int:
        """Return the fold that a wildcard `fold_part` names; 0 if none."""
        return fold_in(wildcards.fold_part)

    def chunks(self, cohort: str) -> dict[str, list[dict[str, str]]]:
        """Return the index rows of each chunk of a cohort."""
        return self.tables.chunks(cohort) if self.tables else chunks.read_chunks(self.results, cohort)

    def scans(self, cohort: str) -> int:
        """Return the number of scans of a cohort."""
        synthetic = self.config.cohorts[cohort].synthetic
        return synthetic.volumes if synthetic else sum(map(len, self.chunks(cohort).values()))

    def labelled(self, task: str, cohort: str) -> int:
        """Return the number of scans of a cohort that have a label of a task.

        A job has what it asked for, so it does not read the labels again: to it, all scans count.
        """
        labels = layout.LABELS.at(self.results, task=task, cohort=cohort)
        return self.tables.sizes[labels] if self.tables else self.scans(cohort)

    def cached_table(self, place: layout.Place, wildcards: Any) -> str:
        """Return where the main process has put what a table holds now; the name follows from its content."""
        return str(self.tables.cached(Path(place.of(**wildcards)))) if self.tables else ""

    def chunk_rows(self, cohort: str, chunk: str) -> list[dict[str, str]]:
        """Return the index rows of a chunk."""
        return self.chunks(cohort)[chunk]

    def chunk_state(self, wildcards: Any, again: Container[Path]) -> str:
        """Return what tells whether the scans of a chunk have changed since Snakemake has had it prepared.

        Not so if they were touched or moved alone: then size and time of the files stay those of before,
        until the chunk is made `again`, see `cells.outdated`.
        """
        if self.tables is None:  # it is the main process that asks
            return ""
        rows = self.chunk_rows(wildcards.cohort, wildcards.chunk)
        last = self.config.cohorts[wildcards.cohort].input.last_step
        table = layout.chunk_table(last).at(self.results, **wildcards)
        record = read_record(table) if table not in again and table.exists() else None
        return chunks.chunk_digest(as_made(record, rows) if record else rows)

    def chunk_tables(self, wildcards: Any) -> list[Path]:
        """Return the last chunk table of every chunk of a cohort."""
        last = self.config.cohorts[wildcards.cohort].input.last_step
        return chunks.tables_of(self.results, wildcards.cohort, last, self.chunks(wildcards.cohort))

    def step_module(self, wildcards: Any, step: str) -> str:
        """Return the module of a step of a cohort's kind of input."""
        return self.config.cohorts[wildcards.cohort].input.steps[step]

    def step_settings(self, wildcards: Any) -> str:
        """Return the settings of the steps of a cohort's kind of input, as JSON."""
        return json.dumps(self._told(wildcards.cohort))

    def chunk_sources(self, cohort: str) -> dict[str, str]:
        """Return code and settings that the steps of a cohort's kind of input depend on."""
        return chunk_sources(self.config.cohorts[cohort].input.steps, self._told(cohort))

    def _told(self, cohort: str) -> dict[str, Any]:
        one = self.config.cohorts[cohort]
        return one.input.told(one, self.config.preprocessing.size)

    def step_code(self, wildcards: Any, step: str) -> str:
        """Return the version of the code of a step of a cohort's kind of input."""
        return numerics.version("inputs.steps", self.step_module(wildcards, step))

    def last_step(self, wildcards: Any) -> str:
        """Return the last step of a cohort's preparation."""
        return self.config.cohorts[wildcards.cohort].input.last_step

    def input_kind(self, wildcards: Any) -> str:
        """Return the kind of input of a cohort."""
        return self.config.cohorts[wildcards.cohort].input.kind

    def same_scan(self, cohort: str) -> float:
        """Return the likeness above which two scans of a cohort's kind of input are one."""
        return self.config.cohorts[cohort].input.same

    def simulated_chunk(self, wildcards: Any) -> str | list[str]:
        """Return the table of a chunk's simulated scans; nothing for other cohorts."""
        return layout.SIMULATED_CHUNK if wildcards.cohort in self.simulated else []

    def simulated_participants(self, cohort: str, chunk: str) -> str:
        """Return the participants of a simulated cohort whose scans are in a chunk, as JSON."""
        wanted = {row["scan_id"] for row in self.chunk_rows(cohort, chunk)}
        simulated = self.config.cohorts[cohort].simulated
        assert simulated is not None, "a rule of simulated cohorts asks"
        everyone = participants(**simulated.model_dump(exclude={"effect"}))
        return json.dumps([person for person in everyone if scan_name(person) in wanted])

    def known_people(self, wildcards: Any) -> str | list[str]:
        """Return the ages and sexes of the cohort that is pretrained on, if it is of people, to probe for."""
        cohort = self.config.trained[wildcards.pretraining].cohort
        return [] if cohort in self.synthetic else layout.SUBJECTS.of(cohort=cohort)

    def weights(self, wildcards: Any) -> str:
        """Return the weights that an encoder takes over: a file, or what a pretraining has kept."""
        if (kept := self.config.kept.get(wildcards.pretraining)) is None:
            return self.config.imported[wildcards.pretraining].weights
        encoder = grid.encoder_for(self.config, kept.of, wildcards.backbone, self.fold_of(wildcards))
        return layout.KEPT_ENCODER.of(**encoder.names, percent=kept.percent)

    def pretraining_start(self, wildcards: Any) -> str | list[str]:
        """Return the encoder that a pretraining goes on from, if it goes on from one."""
        start = self.config.trained[wildcards.pretraining].start
        if start is None:
            return []
        encoder = grid.encoder_for(self.config, start, wildcards.backbone, self.fold_of(wildcards))
        return layout.ENCODER.of(**encoder.names)

    def held_out_splits(self, wildcards: Any) -> list[str]:
        """Return a split, of an encoder's fold, of every task trained on the cohort that is pretrained on."""
        cohort = self.config.trained[wildcards.pretraining].cohort
        # Its test side is that of every seed, so that other seeds pretrain nothing anew.
        name = split_name(0, self.fold_of(wildcards))
        return [
            layout.SPLIT.of(task=task, split=name)
            for task in self.tasks
            if self.config.tasks[task].train == cohort
        ]

    def group_cells(self, wildcards: Any) -> list[Cell]:
        """Return the cells that are predicted together, since they share a base."""
        return [cell for cell in self.table if cell.base == base_of(wildcards)]

    def group_deltas(self, wildcards: Any) -> list[str]:
        """Return the deltas of the cells that are predicted together."""
        return [layout.DELTA.of(**cell.names) for cell in self.group_cells(wildcards)]

    def task_cohorts(self, task: str) -> list[str]:
        """Return the training cohort and the zero-shot cohorts of a task."""
        return [self.config.tasks[task].train, *self.config.tasks[task].zero_shot]

    def task_labels(self, task: str) -> list[str]:
        """Return the label tables of a task, one per cohort."""
        return [layout.LABELS.of(task=task, cohort=cohort) for cohort in self.task_cohorts(task)]

    def control_tables(self, wildcards: Any) -> list[str]:
        """Return the tables, beside labels and volumes, that the controls of a task are fitted on."""
        controls = contenders.controls_of(self.config, wildcards.task)
        cohorts = self.task_cohorts(wildcards.task)
        sites = [layout.SITES.of(cohort=cohort) for cohort in cohorts if "sex_site" in controls]
        measured = [cohort for cohort in cohorts if self.config.cohorts[cohort].morphometry is not None]
        regions = [layout.MORPHOMETRY.of(cohort=cohort) for cohort in measured if "morphometry" in controls]
        return sites + regions + self.described(wildcards.task)

    def evaluated_subjects(self, task: str, cohort: str, names: Iterable[str]) -> list[str]:
        """Return the tables of who is predicted: splits in the training cohort, labels elsewhere."""
        if cohort != self.config.tasks[task].train:
            return [layout.LABELS.of(task=task, cohort=cohort)]
        return self.split_files(task, names)

    def leak_checks(self, task: str, cohort: str, names: Iterable[str]) -> list[str]:
        """Return the reports that no subject or image of a cohort is on two sides of a task's splits."""
        return [layout.LEAKS.of(task=task, cohort=cohort, split=name) for name in names]

    def compared_cohort(self, wildcards: Any) -> list[str]:
        """Return labels and scans that a training cohort is compared with; with itself it always is."""
        if wildcards.cohort == self.config.tasks[wildcards.task].train:
            return []
        return [layout.LABELS.of(**wildcards), self.stored_scans(wildcards.cohort)]

    def probed_splits(self) -> list[tuple[Probed, str]]:
        """Return (task, backbone, start) and split of every job that fits probes."""
        found = probe_grid.probed(grid.linearly_predicted(self.config, self.table))
        return [(one, split) for one in found for split in self.splits(one.task)]

    def task_features(self, wildcards: Any) -> list[str]:
        """Return the tokens of a frozen backbone for the cohorts of a task, the training cohort's first."""
        _, fold = seed_and_fold(wildcards.split)
        encoder = grid.encoder_for(self.config, wildcards.pretraining, wildcards.backbone, fold)
        return [
            layout.FEATURES.of(**encoder.names, cohort=cohort) for cohort in self.task_cohorts(wildcards.task)
        ]

    def frozen_encoder(self, wildcards: Any) -> str | list[str]:
        """Return the pretrained encoder whose tokens are computed, if it is not the untrained backbone."""
        if wildcards.pretraining == grid.NO_PRETRAINING:
            return []
        return layout.ENCODER.of(**wildcards)

    def test_checks(self, wildcards: Any, some: Collection[Cell]) -> list[str]:
        """Return the reports that no scan which some cells of a group are tested on was learnt from."""
        reports = self.leak_checks(wildcards.task, wildcards.cohort, grid.splits_of(some))
        learnt = self.config.starts(wildcards.pretraining)[0]
        if learnt in self.config.trained:
            at_home = wildcards.cohort == self.config.tasks[wildcards.task].train
            # A zero-shot cohort is tested on whole in every fold, and one encoder may serve all folds.
            of_encoders = grid.encoder_folds(self.config, wildcards.pretraining)
            folds = {cell.fold if at_home or cell.fold in of_encoders else 0 for cell in some}
            names = {"task": wildcards.task, "pretraining": learnt, "cohort": wildcards.cohort}
            reports += [
                layout.PRETRAINING_LEAKS.of(**names, fold_part=fold_part(fold)) for fold in sorted(folds)
            ]
        return reports
