"""Where a benchmark is, as a screen of text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.status import DONE, FAILED, MISSING, RUNNING, STATES, Cells, CellStatus
from neuropeft.config import Config
from neuropeft.grid import NO_PRETRAINING, Cell, cells
from neuropeft.records import written_files
from neuropeft.status.estimate import Estimate, estimate
from neuropeft.status.packs import failed_by_log, stopped_packs
from neuropeft.status.stages import STOPPED, Preprocessed, Pretrained, preprocessed, pretrainings, searched
from neuropeft.status.text import WIDTH, aligned, amount, number, wrapped

BAR = 24  # characters of a bar, and the fewest where names are long
SHORTEST_BAR = 6
EXAMPLES = 5  # of cells that are trained again
MARKS = {DONE: "#", RUNNING: ">", FAILED: "x", MISSING: "."}
COLUMNS = ("task", "backbone", "pretraining", "method")
ALWAYS_SHOWN = ("task", "method")  # backbone and pretraining only where there are several


def print_status(config: Config, results: Path) -> None:
    """Print how far preprocessing, pretraining and the cells have come; it needs no lock.

    Nothing is written but which files have been read and checked, so that it is fast the next time.

    Raises:
        UserError: a file of results cannot be read.
    """
    if not results.is_dir():
        print(f"There is no folder {results}: nothing has run, or --results must say where its results are\n")
    of_cells = Cells(config, results)
    deltas = (layout.DELTA.at(results, **cell.names) for cell in cells(config))
    of_cells.digests.read_ahead(written_files(deltas))
    found = of_cells.statuses
    of_cells.digests.save()
    parts = (
        _preprocessing(list(preprocessed(config, results))),
        _pretraining(list(pretrainings(config, results))),
        _search(*searched(config, results)),
        _cells(found),
        _left(estimate(found)),
        _failed(config, results, found),
        _again(found),
        _stopped(config, results, found),
    )
    print("\n\n".join(text for part in parts if (text := "\n".join(part))))


def _preprocessing(cohorts: Sequence[Preprocessed | str]) -> Iterator[str]:
    rows = [("Preprocessing", "chunks done", "scans", "excluded", "packed")]
    for cohort in cohorts:
        if isinstance(cohort, str):
            rows.append((cohort, "not begun", "", "", ""))
        else:
            done = f"{cohort.done:,} of {cohort.chunks:,}"
            packed = "yes" if cohort.packed else "no"
            rows.append((cohort.cohort, done, f"{cohort.scans:,}", f"{cohort.excluded:,}", packed))
    yield from aligned(rows, text_columns=1)


def _pretraining(found: Sequence[Pretrained]) -> Iterator[str]:
    if not found:
        return
    rows = [("Pretraining", "backbone", "", "")]
    rows += [(one.pretraining, _encoder(one), one.state, _steps(one)) for one in found]
    yield from aligned(rows, text_columns=4)
    for one in found:
        if one.state == STOPPED:
            yield f"  {one.log}"
            yield from _last_line(one.last_line)


def _search(done: int, jobs: int) -> Iterator[str]:
    if jobs:
        yield f"Search  {done:,} of {jobs:,} jobs of trials done"


def _encoder(one: Pretrained) -> str:
    return f"{one.backbone}, fold {one.fold}" if one.fold else one.backbone


def _steps(one: Pretrained) -> str:
    if one.step is None:
        return ""
    left = f", at most {_hours(one.seconds_left)} left" if one.seconds_left else ""
    return f"step {one.step:,} of {one.steps:,}{left}"


def _cells(found: Mapping[Cell, CellStatus]) -> Iterator[str]:
    several = {
        column for column in COLUMNS if len({getattr(cell, column) for cell in found} - {NO_PRETRAINING}) > 1
    }
    shown = [column for column in COLUMNS if column in ALWAYS_SHOWN or column in several]
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for cell, status in found.items():
        names = tuple(getattr(cell, column) for column in shown)
        groups.setdefault(names, Counter())[status.state] += 1
    legend = "  ".join(f"{mark} {state}" for state, mark in MARKS.items())
    rows = [("Cells: task", *shown[1:], *STATES, "total")]
    above: tuple[str, ...] = ()
    for names, counts in groups.items():
        same = next((i for i, name in enumerate(names) if not above or name != above[i]), len(names))
        rows.append((*("" for _ in names[:same]), *names[same:], *_counts(counts)))
        above = names
    every = Counter(status.state for status in found.values())
    rows.append(("all", *("" for _ in shown[1:]), *_counts(every)))
    head, *lines = aligned(rows, text_columns=len(shown))
    yield head
    bar = max(SHORTEST_BAR, min(BAR, WIDTH - 2 - max(map(len, lines))))
    for line, counts in zip(lines, (*groups.values(), every), strict=True):
        yield f"{line}  {_bar(counts, bar)}"
    yield f"  {legend}"


def _counts(counts: Counter[str]) -> Iterator[str]:
    for state in STATES:
        yield f"{counts[state]:,}"
    yield f"{counts.total():,}"


def _bar(counts: Counter[str], length: int) -> str:
    """Return a bar of `length` characters, in which what there is at all has one of its own."""
    present = [state for state in STATES if counts[state]]
    spare = length - len(present)
    bar, before, filled = "", 0, 0
    for state in present:
        before += counts[state]
        end = round(spare * before / counts.total())
        bar += MARKS[state] * (1 + end - filled)
        filled = end
    return bar


def _left(left: Estimate) -> Iterator[str]:
    if not left.left:
        return
    if left.seconds is None:
        yield f"Time left for {number(left.left, 'cell')}: unknown, since none is done yet."
        return
    on = ", ".join(left.devices)
    device = "CPU" if left.devices == ("cpu",) else "device" if "cpu" in left.devices else "GPU"
    text = (
        f"About {amount(left.seconds)} {device}-hours ({on}) left for {number(left.left, 'cell')}, running "
        f"ones counted whole; judged by {number(left.finished, 'finished cell')}."
    )
    if left.far:
        text += (
            f" Of {left.far:,} none with the same task, backbone, pretraining and method is done: these are "
            "judged by others, in proportion to their training scans."
        )
    yield from wrapped(text, "", "")


def _failed(config: Config, results: Path, found: Mapping[Cell, CellStatus]) -> Iterator[str]:
    by_log = failed_by_log(config, results, found)
    if not by_log:
        return
    yield f"Failed: {number(sum(map(len, by_log.values())), 'cell')}; each is tried again by the next run"
    for log, members in by_log.items():
        yield f"  {log}"
        for cell in members:
            fold = f", fold {cell.fold}" if cell.fold else ""
            text = f"{cell.subset.label}, seed {cell.seed}{fold}: {found[cell].reason}"
            yield from wrapped(" ".join(text.split()), "    ")


def _again(found: Mapping[Cell, CellStatus]) -> Iterator[str]:
    reasons = [status.reason for status in found.values() if status.state == MISSING and status.reason]
    if not reasons:
        return
    yield f"Trained before: {number(len(reasons), 'cell')}, which the next run trains again; for example"
    for reason in reasons[:EXAMPLES]:
        yield from wrapped(" ".join(reason.split()), "  ")


def _stopped(config: Config, results: Path, found: Mapping[Cell, CellStatus]) -> Iterator[str]:
    packs = stopped_packs(config, results, found)
    if not packs:
        return
    missing = sum(pack.missing for pack in packs)
    jobs = number(len(packs), "job")
    yield f"Stopped: {jobs}, ended or waiting to go on, with {missing:,} cells missing; their last lines:"
    for pack in packs:
        yield f"  {pack.log}"
        yield from _last_line(pack.last_line)


def _last_line(text: str) -> list[str]:
    return wrapped(text or "(empty: the job is starting, or ended at once)", "    ")


def _hours(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 360 else f"{amount(seconds)} h"
