"""What happens whenever the workflow starts: cohorts and labels are indexed and checked before any job runs.

The tables stay in the memory of the main process, beside a cache in which nothing ever changes. Jobs read
what their run has published: rules copy labels and people out of the cache, and a run that really starts
writes the indexes. A dry run, status or partial tables change nothing that the jobs of another run read.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neuropeft import layout
from neuropeft.cohorts.chunks import by_chunk
from neuropeft.cohorts.index import Scan, index_cohort, index_row, write_index
from neuropeft.cohorts.labels import LEFT_OUT_COLUMNS, TASK_COLUMNS, Row, left_out, task_rows
from neuropeft.cohorts.morphometry import read_morphometry
from neuropeft.cohorts.readers import label_source
from neuropeft.cohorts.splits import TRAIN, make_split, take_subset
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.files import format_tsv, write_text
from neuropeft.grid import bases, cells, scanned_cohorts, subsets_of, used_tasks
from neuropeft.tasks import kind_of
from neuropeft.tasks.values import OLDEST, age_in_years, is_missing, normal_sex

SUBJECT_COLUMNS = ("scan_id", "subject", "session", "age", "sex")
SITE_COLUMNS = ("scan_id", "site")

Indexes = Mapping[str, Sequence[Scan]]
Labels = Mapping[tuple[str, str], Sequence[Row]]  # by task and cohort
Files = Mapping[tuple[int, int], str]  # paths, by what tells files apart


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of cohorts and tasks as they are now."""

    results: Path  # the results folder
    scans: Indexes  # the index of every used cohort with scans
    # people, sites and region volumes of every cohort and labels of every task, by where jobs read them
    texts: Mapping[Path, str]
    sizes: Mapping[Path, int]  # rows of each of these tables
    # scans that tasks have no target for, by where people read of them; no job does
    left_out: Mapping[Path, str]

    @cache  # noqa: B019 (there is one, as long as the workflow)
    def chunks(self, cohort: str) -> dict[str, list[dict[str, str]]]:
        """Return the index rows of each chunk of a cohort."""
        return by_chunk(map(index_row, self.scans[cohort]))

    def cached(self, path: Path) -> Path:
        """Return where the cache has the text of a table, under a name that follows from it."""
        name = hashlib.sha256(self.texts[path].encode()).hexdigest()
        return layout.TABLE_CACHE.at(self.results, digest=name)

    def save(self) -> None:
        """Write what the cache lacks; nothing that is there is changed."""
        for path, text in self.texts.items():
            if not (cached := self.cached(path)).exists():
                write_text(cached, text)

    def publish(self, cohorts: Collection[str]) -> None:
        """Write the indexes of some cohorts, and those that are not there, and which scans tasks leave out.

        The folder must be locked.
        """
        for cohort, scans in self.scans.items():
            path = layout.SCANS.at(self.results, cohort=cohort)
            if cohort in cohorts or not path.exists():
                write_index(path, scans)
        for path, text in self.left_out.items():
            write_text(path, text)


def prepare(config: Config, results: Path) -> Tables:
    """Return the index of every used cohort with scans and the labels of every used task; nothing is written.

    Raises:
        UserError: a cohort, a label or the meeting of two cohorts is not right.
    """
    indexes = {
        name: index_cohort(name, config.cohorts[name], config.preprocessing.scans_per_job)
        for name in scanned_cohorts(config)
    }
    for name, scans in indexes.items():
        _check_one_subject_per_file(name, scans)
        _tell_absent(name, scans)
    labels: dict[tuple[str, str], Sequence[Row]] = {}
    without: dict[Path, str] = {}
    for name in used_tasks(config):
        task = config.tasks[name]
        for cohort in (task.train, *task.zero_shot):
            source = label_source(cohort, config.cohorts[cohort])
            labels[name, cohort] = task_rows(name, task, cohort, indexes[cohort], source)
            rows = left_out(task, indexes[cohort], labels[name, cohort])
            place = layout.LEFT_OUT.at(results, task=name, cohort=cohort)
            without[place] = format_tsv(rows, LEFT_OUT_COLUMNS)
        _check_subsets(config, name, labels[name, task.train])
    _check_cohorts_apart(config, indexes, labels)
    texts = {
        layout.LABELS.at(results, task=name, cohort=cohort): format_tsv(rows, TASK_COLUMNS)
        for (name, cohort), rows in labels.items()
    }
    for cohort, scans in indexes.items():
        people = format_tsv(_people(cohort, scans), SUBJECT_COLUMNS)
        texts[layout.SUBJECTS.at(results, cohort=cohort)] = people
        texts[layout.SITES.at(results, cohort=cohort)] = format_tsv(_sites(scans), SITE_COLUMNS)
        if (table := config.cohorts[cohort].morphometry) is not None:
            volumes = read_morphometry(cohort, Path(table), scans)
            texts[layout.MORPHOMETRY.at(results, cohort=cohort)] = format_tsv(volumes, list(volumes[0]))
        _tell_left(cohort, scans, results)
    sizes = {path: text.count("\n") - 1 for path, text in texts.items()}
    return Tables(results, indexes, texts, sizes, without)


def _people(cohort: str, scans: Sequence[Scan]) -> list[dict[str, object]]:
    """Return age and sex at every scan, which table 2 shows of cohorts without a task too."""
    _tell_unread(cohort, scans, "age", age_in_years, f"a number of years, 0 to {OLDEST}")
    _tell_unread(cohort, scans, "sex", normal_sex, "F, female, M or male")
    return [
        {
            "scan_id": scan.scan_id,
            "subject": scan.subject,
            "session": scan.session,
            "age": age_in_years(scan.labels.get("age", "")),
            "sex": normal_sex(scan.labels.get("sex", "")),
        }
        for scan in scans
    ]


def _sites(scans: Sequence[Scan]) -> list[dict[str, object]]:
    """Return the site of every scan, which may be confounded with a target, None where it is unknown."""
    sites = ((scan.scan_id, scan.labels.get("site", "").strip()) for scan in scans)
    return [{"scan_id": scan_id, "site": None if is_missing(site) else site} for scan_id, site in sites]


def _tell_unread(
    cohort: str, scans: Sequence[Scan], column: str, read: Callable[[str], object], wanted: str
) -> None:
    values = [(scan.labels.get(column, ""), scan.scan_id) for scan in scans]
    unread = [pair for pair in values if not is_missing(pair[0]) and read(pair[0]) is None]
    if unread:
        value, scan_id = unread[0]
        print(
            f"cohort {cohort}: {column} of {len(unread)} scans counts as unknown, for example {value!r} of "
            f"scan {scan_id}; write {wanted}, or n/a"
        )


def _tell_absent(cohort: str, scans: Sequence[Scan]) -> None:
    absent = [scan.path for scan in scans if scan.size == -1]
    if absent:
        print(
            f"cohort {cohort}: {len(absent)} of {len(scans)} scans will be excluded, since they are not "
            f"there or may not be read, for example {absent[0]}"
        )


def _tell_left(cohort: str, scans: Sequence[Scan], results: Path) -> None:
    """Say whose scans are still there though they have left the cohort: they may have withdrawn."""
    folder = layout.DERIVATIVES.at(results, cohort=cohort)
    left = {path.name for path in folder.glob("sub-*")} - {f"sub-{scan.subject}" for scan in scans}
    if left:
        print(
            f"cohort {cohort}: {len(left)} subjects have left it, whose scans are still in {folder}, for "
            f"example {min(left)}; delete their folders if they shall not be kept"
        )


# -- checks ----------------------------------------------------------------------------------------


def _check_one_subject_per_file(cohort: str, scans: Sequence[Scan]) -> None:
    """Check that links do not give one file to two subjects, who could then be on two sides."""
    owner: dict[tuple[int, int], Scan] = {}
    for scan in scans:
        if scan.file is None:
            continue
        other = owner.setdefault(scan.file, scan)
        if other.subject != scan.subject:
            raise UserError(
                f"cohort {cohort!r}: {other.path} and {scan.path} are one file under two subjects; remove one"
            )


def _check_subsets(config: Config, name: str, rows: Sequence[Row]) -> None:
    """Check that the subsets of a task have a subject of each class, and as many as there are shots."""
    task, shares = config.tasks[name], config.splits
    kind, subsets = kind_of(task), subsets_of(cells(config), name)
    # No other fold tests more subjects than the first, but one may test more of a class.
    for fold in shares.fold_numbers[:1] if subsets[0].of_all else shares.fold_numbers:
        split = make_split(rows, 0, shares.test_share, shares.validation, kind, name, fold, shares.folds or 0)
        for subset in subsets:
            taken = len({row["subject"] for row in take_subset(split, subset, kind, TRAIN, name)})
            needed = kind.size if kind.every_stratum else 1
            if taken < needed:
                subjects = len({row["subject"] for row in split if row["side"] == TRAIN})
                raise UserError(
                    f"`grid.fractions`: {subset.size} % of the {subjects} training subjects of task {name} "
                    f"are {taken}, but training needs {needed}; give at least "
                    f"{100 * (needed - 1) // subjects + 1}"
                )


def _check_cohorts_apart(config: Config, indexes: Indexes, labels: Labels) -> None:
    """Check that what a task tests on is not trained or pretrained on under another cohort's name.

    Within the training cohort splits see to it, and pretraining leaves the test subjects of its cohort out.
    Copies of an image that are no links are found once they are packed: see `leaks`.
    """
    met: set[tuple[str, str]] = set()
    for name in used_tasks(config):
        task = config.tasks[name]
        train = _files(indexes[task.train], labels[name, task.train])
        for cohort in task.zero_shot:
            tested = _files(indexes[cohort], labels[name, cohort])
            _check_none_shared(train, tested, f"tasks.{name}.zero_shot", task.train, cohort)
            met.add((task.train, cohort))
    started = {(task, pretraining) for task, _, pretraining, _ in bases(config)}
    pairs = {(task, start) for task, pretraining in started for start in config.starts(pretraining)}
    for name, pretraining in sorted(pairs):
        if pretraining not in config.trained:
            continue
        task, seen = config.tasks[name], config.trained[pretraining].cohort
        if config.cohorts[seen].synthetic is not None:  # nobody's scans
            continue
        if seen in task.zero_shot:
            raise UserError(
                f"`pretraining.{pretraining}.cohort` is {seen}, which task {name} only tests on; pretrain on "
                f"another cohort or remove it from `tasks.{name}.zero_shot`"
            )
        pretrained = {scan.file: scan.path for scan in indexes[seen] if scan.file is not None}
        for cohort in {task.train, *task.zero_shot} - {seen}:
            tested = _files(indexes[cohort], labels[name, cohort])
            _check_none_shared(pretrained, tested, f"pretraining.{pretraining}.cohort", seen, cohort)
            met.add((seen, cohort))
    for learnt, tested_on in sorted(met):
        _tell_shared_names(indexes, learnt, tested_on)


def _tell_shared_names(indexes: Indexes, learnt: str, tested: str) -> None:
    # No error: many cohorts count from sub-01.
    one, other = ({scan.subject for scan in indexes[cohort]} for cohort in (learnt, tested))
    if shared := one & other:
        print(
            f"cohorts {learnt} and {tested}: {len(shared)} of {len(other)} subjects of {tested} have a name "
            f"that {learnt} has too, for example sub-{min(shared)}; if they are the same people, remove them "
            "from one of the two: what is learnt from the one is tested on the other"
        )


def _check_none_shared(one: Files, other: Files, key: str, one_cohort: str, other_cohort: str) -> None:
    shared = one.keys() & other.keys()
    if shared:
        example = min(other[file] for file in shared)
        raise UserError(
            f"`{key}`: {len(shared)} scans of subjects on both sides, such as {example}, are in cohort "
            f"{one_cohort} and in {other_cohort}; keep them in one cohort only"
        )


def _files(scans: Sequence[Scan], rows: Sequence[Row]) -> Files:
    """Return the paths of the scans that `rows` use, by what tells their files apart."""
    used = {row["scan_id"] for row in rows}
    return {scan.file: scan.path for scan in scans if scan.file is not None and scan.scan_id in used}
