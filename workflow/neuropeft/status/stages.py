"""How far preprocessing, pretraining and the search have come."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neuropeft import layout
from neuropeft.cohorts.chunks import chunk_tables, read_chunks
from neuropeft.config import Config
from neuropeft.files import last_lines, read_tsv
from neuropeft.grid import cells, encoders, used_cohorts
from neuropeft.records import Digests
from neuropeft.searches import Searches
from neuropeft.train.lock import held

DONE, RUNNING, STOPPED, WAITING, DAMAGED = "done", "running", "stopped", "waiting", "damaged"
# What `train.loop` prints at a validation, and when it goes on from a checkpoint.
STEP = re.compile(r"pretraining: (?:going on from )?step (\d+)\b(?:.* at most (\d+) s left)?")


@dataclass(frozen=True)
class Preprocessed:
    """How far the preprocessing of a cohort has come; a synthetic one is a single chunk."""

    cohort: str  # its name
    chunks: int  # how many it has
    done: int  # how many have been through all steps
    scans: int  # scans of all chunks
    excluded: int  # scans, of the chunks that are done, that could not be processed
    packed: bool  # whether its store is there and whole


@dataclass(frozen=True)
class Pretrained:
    """How far a pretraining has come."""

    pretraining: str  # its name
    backbone: str  # what is pretrained
    fold: int  # whose test subjects it leaves out; 0 if it serves all folds
    state: str  # `done`, `running`, `stopped` (its job ended before), `waiting`, or `damaged` (its files are)
    step: int | None  # steps that are done; None where the log does not say
    steps: int  # steps in all
    seconds_left: int | None  # the most that it still takes; None where the log does not tell
    log: Path  # its log
    last_line: str  # the last line of the log; empty if it has none


def preprocessed(config: Config, results: Path) -> Iterator[Preprocessed | str]:
    """Yield how far each cohort has come; only the name of one that the workflow has not looked at yet."""
    digests = Digests(layout.DIGESTS.at(results))
    for cohort in used_cohorts(config):
        packed = digests.damage(layout.VOLUMES.at(results, cohort=cohort)) is None
        if (synthetic := config.cohorts[cohort].synthetic) is not None:
            yield Preprocessed(cohort, 1, int(packed), synthetic.volumes, 0, packed)
            continue
        if not layout.SCANS.at(results, cohort=cohort).is_file():
            yield cohort
            continue
        chunks, last = read_chunks(results, cohort), config.cohorts[cohort].input.last_step
        done = [table for table in chunk_tables(results, cohort, last) if table.is_file()]
        yield Preprocessed(
            cohort,
            len(chunks),
            len(done),
            sum(map(len, chunks.values())),
            sum(row["status"] == "failed" for table in done for row in read_tsv(table)),
            packed,
        )


def pretrainings(config: Config, results: Path) -> Iterator[Pretrained]:
    """Yield how far each pretraining of the grid has come."""
    digests = Digests(layout.DIGESTS.at(results))
    for encoder in encoders(config):
        log = layout.PRETRAIN_LOG.at(results, **encoder.names)
        steps = config.trained[encoder.pretraining].steps
        lines = last_lines(log)
        step, left = _progress(lines)
        if held(layout.PRETRAINING_STATE.at(results, **encoder.names)):
            state = RUNNING
        elif (path := layout.ENCODER.at(results, **encoder.names)).is_file():
            state, step, left = (DAMAGED if digests.damage(path) else DONE), steps, 0
        else:
            state = STOPPED if log.exists() else WAITING
        last_line = next(reversed(lines), "")
        yield Pretrained(*encoder, state, step, steps, left, log, last_line)


def searched(config: Config, results: Path) -> tuple[int, int]:
    """Return how many jobs of trials are done, and how many there are."""
    searches = Searches(config, cells(config))
    places = [
        layout.TRIALS.at(results, **one.names, first=first)
        for one in searches.all()
        for first in searches.firsts(one)
    ]
    return sum(place.is_file() for place in places), len(places)


def _progress(lines: list[str]) -> tuple[int | None, int | None]:
    """Return how many steps are done and how many seconds are left at most, None where unknown."""
    said = next((match for line in reversed(lines) if (match := STEP.match(line))), None)
    if said is None:
        return None, None
    step, left = said.groups()
    return int(step), int(left) if left else None
