"""What of the results does not count any more: it is damaged, or would be made otherwise by now.

Snakemake notices by its own records (`.snakemake`) when parameters, inputs or times have changed. These
records can be lost, and say nothing of what a file holds. Here the main process compares contents instead,
by the record that lies beside each result (see `records`): of what a run starts from (tables, raw scans,
settings, imported weights) and of what is costly (stores, encoders, cells, predictions). What does not count,
Snakemake plans as if it were named with --forcerun: it is made again, and so is what depends on it. A dry run
says so and changes nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from neuropeft import grid, layout
from neuropeft.cells.costs import cell_folder
from neuropeft.cells.status import Cells
from neuropeft.cohorts.prepare import Tables
from neuropeft.cohorts.sources import changed_file, raw_files, store_sources, synthetic_sources
from neuropeft.errors import UserError
from neuropeft.jobs import Jobs
from neuropeft.records import Record, read_record, written_files
from neuropeft.searches import Searches
from neuropeft.split_names import seed_and_fold
from neuropeft.train.sources import (
    choice_sources,
    differing,
    imported_sources,
    prediction_sources,
    pretraining_scans,
    pretraining_sources,
    trial_sources,
)

PARTS = {"encoder", "split", "volumes"}  # of what a cell is made from, that may not be there yet

Found = Iterator[tuple[list[Path], str]]  # files that one job makes, and why they do not count


def outdated(jobs: Jobs, cells: Cells, tables: Tables) -> dict[Path, str]:
    """Return the results that do not count any more, each with the reason; what is missing is not named.

    `tables` are those of cohorts and tasks as they would be now.
    """
    look = _Look(jobs, cells, tables)
    stores = [layout.VOLUMES.at(jobs.results, cohort=cohort) for cohort in jobs.cohorts]
    encoders = [layout.ENCODER.at(jobs.results, **encoder.names) for encoder in jobs.encoders_used()]
    deltas = [layout.DELTA.at(jobs.results, **cell.names) for cell in jobs.table]
    cells.digests.read_ahead(written_files([*stores, *encoders, *deltas]))
    made = (look.tables(), look.chunks(), look.stores(), look.splits())
    trained = (look.encoders(), look.searches(), look.cells(), look.predictions())
    again = (job for part in (*made, *trained) for job in part)
    found = {path: reason for paths, reason in again for path in paths}
    cells.digests.save()
    return found


class _Look:
    def __init__(self, jobs: Jobs, cells: Cells, tables: Tables) -> None:
        self.jobs, self.config, self.results = jobs, jobs.config, jobs.results
        self.of_cells, self.digests, self.now = cells, cells.digests, tables

    def tables(self) -> Found:
        for path, text in self.now.texts.items():
            try:
                if path.read_text(encoding="utf-8") != text:
                    yield [path], f"{path} is not what its cohort says now"
            except FileNotFoundError:
                pass
            except UnicodeDecodeError:
                yield [path], f"{path} is damaged"

    def chunks(self) -> Found:
        for cohort in self.jobs.scanned:
            sources = self.jobs.chunk_sources(cohort)
            place = layout.chunk_table(self.config.cohorts[cohort].input.last_step)
            made = []
            for chunk, rows in self.now.chunks(cohort).items():
                table = place.at(self.results, cohort=cohort, chunk=chunk)
                made.append((table, read_record(table), rows))
            self.digests.read_ahead(
                file for _, record, rows in made if record for file in raw_files(record, rows)
            )
            for table, record, rows in made:
                reason = self._problem(table, record, sources)
                if reason is None and record and cohort not in self.jobs.simulated and table.exists():
                    changed = changed_file(record, rows, self.digests)
                    reason = f"{table}: {changed}" if changed else None
                if reason is not None:
                    yield [table], reason

    def stores(self) -> Found:
        size = self.config.preprocessing.size
        for cohort in self.jobs.cohorts:
            synthetic = self.config.cohorts[cohort].synthetic
            if synthetic is None:
                share = self.config.preprocessing.max_excluded_share
                sources = store_sources(
                    self.config.cohorts[cohort].input.kind, size, share, self.now.chunks(cohort)
                )
            else:
                sources = synthetic_sources(synthetic.volumes, synthetic.seed, size)
            yield from self._files(layout.VOLUMES.at(self.results, cohort=cohort), sources)

    def splits(self) -> Found:
        for task in self.jobs.tasks:
            for name in self.jobs.splits(task):
                if not self.of_cells.split_is_current(task, *seed_and_fold(name)):
                    path = layout.SPLIT.at(self.results, task=task, split=name)
                    yield [path], f"{path} is not what settings and labels give now"

    def encoders(self) -> Found:
        for encoder in self.jobs.encoders_used():
            first = layout.ENCODER.at(self.results, **encoder.names)
            if not first.exists():
                continue
            try:
                if encoder.pretraining in self.config.trained:
                    sources = self._pretraining(encoder)
                else:
                    weights = Path(self.jobs.weights(SimpleNamespace(**encoder.names)))
                    spec = grid.backbone_spec(self.config, encoder.backbone)
                    sources = imported_sources(spec, self.digests.of(weights))
            except UserError:  # the job that reads them says so
                sources = {}
            yield from self._files(first, sources)

    def _pretraining(self, encoder: grid.Encoder) -> dict[str, str]:
        names = SimpleNamespace(**encoder.names)
        spec = json.loads(grid.pretraining_spec(self.config, encoder.pretraining, encoder.backbone))
        cohort = self.config.trained[encoder.pretraining].cohort
        scans = layout.STORED_SCANS.at(self.results, cohort=cohort)
        splits = self.jobs.held_out_splits(names)
        start = self.jobs.pretraining_start(names)
        sha256 = self.digests.written(Path(start)) if isinstance(start, str) else None
        return pretraining_sources(spec, *pretraining_scans(spec, scans, splits), sha256)

    def searches(self) -> Found:
        searches = Searches(self.config, self.jobs.table)
        for one in searches.all():
            search = searches.search.model_dump(mode="json")
            made_from = {cell.path: self.of_cells.expected_of_trial(cell) for cell in searches.cells(one)}
            # A cell of which something is not there yet is trained in this run anyhow.
            known = all(parts.keys() >= PARTS for parts in made_from.values())
            trials = searches.trials(one)
            for table in trials:
                yield from self._files(Path(table), trial_sources(search, made_from) if known else {})
            found = [self.digests.written(Path(table)) for table in trials]
            choices = layout.CHOICES.at(self.results, **one.names)
            sources = choice_sources(search, [sha256 for sha256 in found if sha256])
            yield from self._files(choices, sources if all(found) else {})

    def cells(self) -> Found:
        again = []
        for cell in self.jobs.table:
            folder = cell_folder(self.results, cell)
            if reason := self.of_cells.problem(cell, folder):
                yield [place.at(self.results, **cell.names) for place in layout.CELL_PLACES], reason
            if self.of_cells.folder(cell)[0] is None:
                again.append(cell)
        for pack in {self.jobs.pack_of[cell] for cell in again}:
            if (table := layout.PACK.at(self.results, **pack.names)).exists():
                yield [table], f"{table} lists cells that are not finished"

    def predictions(self) -> Found:
        for base in dict.fromkeys(cell.base for cell in self.jobs.table):
            members = [cell for cell in self.jobs.table if cell.base == base]
            deltas = self.of_cells.delta_digests(base)
            spec, told = grid.cell_spec(self.config, members[0]), self.config.tasks[base[0]].of_predictions
            for cohort in self.jobs.task_cohorts(base[0]):
                path = layout.PREDICTIONS.at(self.results, **members[0].names, cohort=cohort)
                if not path.exists():
                    continue
                tables = self.jobs.evaluated_subjects(base[0], cohort, grid.splits_of(members))
                subjects = [sha256 for table in tables if (sha256 := self.digests.of(Path(table)))]
                scans = self.digests.written(layout.STORED_SCANS.at(self.results, cohort=cohort)) or ""
                yield from self._files(path, prediction_sources(spec, deltas, scans, subjects, told))

    def _files(self, first: Path, sources: dict[str, str]) -> Found:
        """Yield the files of one job, of which this is the first, if they do not count."""
        record = read_record(first)
        if (reason := self._problem(first, record, sources)) is not None:
            names = {first.name} if record is None else record.files.keys()
            yield [first.with_name(name) for name in names], reason

    def _problem(self, first: Path, record: Record | None, sources: dict[str, str]) -> str | None:
        if not first.exists():
            return None
        damage = self.digests.damage_by(first, record)
        if record is None or damage is not None:
            return damage
        other = differing(record.made_from, sources)
        return f"{first} was made from other {' and '.join(other)}" if other else None
