"""The one answer to what has become of a cell: is it finished, running, failed, and why.

A cell is finished if its files hold what was written and were made from what there is now: settings, split,
volumes, encoder, choice of a search and code, each by its content; see `train.sources`. Rules, packs, status,
partial tables and the closing summary all ask here. Torch is not imported.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.cells.costs import cell_folder, read_cost
from neuropeft.cohorts.splits import SPLIT_COLUMNS, make_split, read_usable
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.files import format_tsv
from neuropeft.grid import Base, Cell, cell_spec, cells, encoder_fold, encoder_of
from neuropeft.records import Digests, read_record
from neuropeft.split_names import fold_part, split_name
from neuropeft.tasks import kind_of
from neuropeft.train.choices import read_choices
from neuropeft.train.lock import held
from neuropeft.train.sources import cell_key, choice_source, data_sources, differing, settings_and_code
from neuropeft.train.state import CELL_FILES, FINISHED, why_failed

DONE, RUNNING, FAILED, MISSING = STATES = ("done", "running", "failed", "missing")


@dataclass(frozen=True)
class CellStatus:
    """What has become of a cell."""

    state: str  # one of `STATES`
    cost: dict[str, Any] | None = None  # what its training cost, of a cell that is done
    reason: str = ""  # why it failed, or why what there is of it does not count


def state_folder(results: Path, cell: Cell) -> Path:
    """Return the folder that holds the state of a cell's training."""
    return layout.CELL_STATE.at(results, **cell.names)


class Cells:
    """What has become of the cells of a configuration in a results folder; looked at once, when asked."""

    def __init__(self, config: Config, results: Path) -> None:
        """Look at nothing yet."""
        self.config, self.results = config, results

    @cached_property
    def digests(self) -> Digests:
        """What is known of the files; jobs, which start the workflow's files too, never ask."""
        return Digests(layout.DIGESTS.at(self.results))

    @cached_property
    def finished(self) -> dict[Cell, Path]:
        """The cells that are finished, with the folder of each one's delta, history and cost."""
        found = {cell: self.folder(cell)[0] for cell in cells(self.config)}
        return {cell: folder for cell, folder in found.items() if folder is not None}

    @cached_property
    def deltas(self) -> dict[Base, dict[Cell, Path]]:
        """The deltas of the finished cells that are predicted together."""
        found: dict[Base, dict[Cell, Path]] = {}
        for cell, folder in self.finished.items():
            found.setdefault(cell.base, {})[cell] = folder / CELL_FILES[0]
        return found

    @cache  # noqa: B019 (there is one, as long as the process)
    def delta_digests(self, base: Base) -> dict[str, str]:
        """Return the SHA-256 of the deltas of finished cells that are predicted together, by `cell_key`."""
        records = {cell: read_record(delta) for cell, delta in self.deltas.get(base, {}).items()}
        return {
            cell_key(cell._asdict()): record.files[CELL_FILES[0]][0]
            for cell, record in records.items()
            if record is not None
        }

    def predicted(self, base: Base, predictions: Path) -> set[Cell]:
        """Return the finished cells, as they are now, that a file holds the predictions of."""
        record = read_record(predictions) if self.digests.damage(predictions) is None else None
        deltas = {} if record is None else record.made_from["deltas"]
        same = {key for key, sha256 in self.delta_digests(base).items() if deltas.get(key) == sha256}
        return {cell for cell in self.deltas.get(base, {}) if cell_key(cell._asdict()) in same}

    @cached_property
    def statuses(self) -> dict[Cell, CellStatus]:
        """What has become of every cell; each is in exactly one state.

        A cell that is trained again after a failure is running; one that failed when it was to be trained
        anew has failed, whatever an earlier training left.
        """
        return {cell: self._status(cell) for cell in cells(self.config)}

    def _status(self, cell: Cell) -> CellStatus:
        state = state_folder(self.results, cell)
        if held(state):
            return CellStatus(RUNNING)
        if (reason := why_failed(state)) is not None:
            # Reasons begin with the settings' own name of the cell, which a list of cells need not repeat.
            name = cell_spec(self.config, cell)["cell"]
            return CellStatus(FAILED, reason=reason.removeprefix(f"{name}: "))
        folder, reason = self.folder(cell)
        if folder is not None:
            with suppress(FileNotFoundError):  # the workflow replaces the files this very moment
                return CellStatus(DONE, read_cost(folder / "cost.json"))
        return CellStatus(MISSING, reason=reason)

    @cache  # noqa: B019 (there is one, as long as the process)
    def folder(self, cell: Cell) -> tuple[Path | None, str]:
        """Return the folder of a finished cell's files; else None, and why what there is does not count.

        That is where the workflow takes them or, until then, where training leaves them.
        """
        taken = self.problem(cell, cell_folder(self.results, cell))
        if taken is None:
            return cell_folder(self.results, cell), ""
        trained = self.problem(cell, state_folder(self.results, cell) / FINISHED)
        if trained is None:
            return state_folder(self.results, cell) / FINISHED, ""
        return None, taken or trained

    @cache  # noqa: B019 (there is one, as long as the process)
    def problem(self, cell: Cell, folder: Path) -> str | None:
        """Return why a cell's files in a folder do not count; empty if there are none, None if they count."""
        first = folder / CELL_FILES[0]
        if not first.exists():
            return ""
        record = read_record(first)
        damage = self.digests.damage_by(first, record)
        if record is None or damage is not None:
            return damage
        other = differing(record.made_from, self.expected(cell))
        return f"{first} was trained with other {' and '.join(other)}" if other else None

    def expected(self, cell: Cell) -> dict[str, str]:
        """Return what a cell would be made from now, without what is not there yet."""
        return self.expected_of_trial(cell) | self._choice(cell)

    def expected_of_trial(self, cell: Cell) -> dict[str, str]:
        """Return what a cell would be made from now, before a search has chosen settings."""
        encoder = encoder_of(self.config, cell)
        at = None if encoder is None else layout.ENCODER.at(self.results, **encoder.names)
        sha256 = "" if at is None else self.digests.written(at)
        found = {"encoder": sha256} if sha256 is not None else {}
        return found | settings_and_code(cell_spec(self.config, cell)) | self._data(cell) | {"choice": ""}

    def _data(self, cell: Cell) -> dict[str, str]:
        split = layout.SPLIT.at(self.results, **cell.names)
        scans = layout.STORED_SCANS.at(self.results, cohort=self.config.tasks[cell.task].train)
        if not (split.exists() and scans.exists()):
            return {}
        if not self.split_is_current(cell.task, cell.seed, cell.fold):
            return {"split": "another one by now"}
        try:
            return data_sources(split, scans, cell.subset, kind_of(self.config.tasks[cell.task]))
        except (UserError, KeyError):  # the job that reads them says so
            return {}

    def _choice(self, cell: Cell) -> dict[str, str]:
        if not self.config.training.search:
            return {}
        part = fold_part(encoder_fold(self.config, cell))
        chosen = self._choices(layout.CHOICES.at(self.results, **cell.names, fold_part=part))
        if cell.fold not in chosen:  # not yet
            return {"choice": "of a search that is to come"}
        return {"choice": choice_source(chosen[cell.fold])}

    @cache  # noqa: B019 (there is one, as long as the process)
    def _choices(self, table: Path) -> dict[int, dict[str, int | float]]:
        try:
            return read_choices(table)
        except UserError:
            return {}

    @cache  # noqa: B019 (there is one, as long as the process)
    def split_is_current(self, task: str, seed: int, fold: int) -> bool:
        """Whether settings and labels still give a split; so too where a file of it is not there."""
        wanted, shares = self.config.tasks[task], self.config.splits
        labels = layout.LABELS.at(self.results, task=task, cohort=wanted.train)
        stored = layout.STORED_SCANS.at(self.results, cohort=wanted.train)
        split = layout.SPLIT.at(self.results, task=task, split=split_name(seed, fold))
        if not all(path.exists() for path in (labels, stored, split)):
            return True
        kind, folds = kind_of(wanted), shares.folds or 0
        try:
            usable = read_usable(labels, stored)
            rows = make_split(usable, seed, shares.test_share, shares.validation, kind, task, fold, folds)
            return split.read_text(encoding="utf-8") == format_tsv(rows, SPLIT_COLUMNS)
        except (UserError, FileNotFoundError, ValueError, KeyError):  # too few subjects by now, or damaged
            return False
