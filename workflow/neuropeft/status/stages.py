"""How far preprocessing and pretraining have come."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neuropeft.cohorts.chunks import chunk_tables, index_path, read_chunks
from neuropeft.config import Config
from neuropeft.files import last_lines, read_tsv
from neuropeft.grid import pretrained, used_cohorts
from neuropeft.train.lock import held

DONE, RUNNING, STOPPED, WAITING = "done", "running", "stopped", "waiting"
# What `train.loop` prints when an epoch is over, and when it goes on from a checkpoint.
EPOCH = re.compile(r"pretraining: (going on from )?epoch (\d+)\b(?:.* at most (\d+) s left)?")


@dataclass(frozen=True)
class Preprocessed:
    """How far the preprocessing of a cohort has come; a synthetic one is a single chunk.

    Attributes:
        cohort: its name.
        chunks: how many it has.
        done: how many have been through all steps.
        scans: scans of all chunks.
        excluded: scans, of the chunks that are done, that could not be processed.
        packed: whether its store is there.
    """

    cohort: str
    chunks: int
    done: int
    scans: int
    excluded: int
    packed: bool


@dataclass(frozen=True)
class Pretrained:
    """How far a pretraining has come.

    Attributes:
        pretraining: its name.
        backbone: what is pretrained.
        state: `done`, `running`, `stopped` (its job ended before) or `waiting`.
        epoch: epochs that are over; None where the log does not tell.
        epochs: epochs in all.
        seconds_left: the most that it still takes; None where the log does not tell.
        log: its log.
        last_line: the last line of the log; empty if it has none.
    """

    pretraining: str
    backbone: str
    state: str
    epoch: int | None
    epochs: int
    seconds_left: int | None
    log: Path
    last_line: str


def preprocessed(config: Config, results: Path) -> Iterator[Preprocessed | str]:
    """Yield how far each cohort has come; only the name of one that the workflow has not looked at yet."""
    for cohort in used_cohorts(config):
        packed = (results / "cohorts" / cohort / "store" / "scans.tsv").is_file()
        if (synthetic := config.cohorts[cohort].synthetic) is not None:
            yield Preprocessed(cohort, 1, int(packed), synthetic.volumes, 0, packed)
            continue
        if not index_path(results, cohort).is_file():
            yield cohort
            continue
        chunks = read_chunks(results, cohort)
        done = [table for table in chunk_tables(results, cohort) if table.is_file()]
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
    for pretraining, backbone in pretrained(config):
        place = Path("pretraining", pretraining, backbone)
        log = results / "logs" / "pretrain" / pretraining / f"{backbone}.log"
        epochs = config.autoencoders[pretraining].epochs
        lines = last_lines(log)
        epoch, left = _progress(lines)
        if held(results / "_state" / place):
            state = RUNNING
        elif (results / place / "encoder.safetensors").is_file():
            state, epoch, left = DONE, epochs, 0
        else:
            state = STOPPED if log.exists() else WAITING
        yield Pretrained(pretraining, backbone, state, epoch, epochs, left, log, next(reversed(lines), ""))


def _progress(lines: list[str]) -> tuple[int | None, int | None]:
    """Return how many epochs are over and how many seconds are left at most, None where unknown."""
    said = next((match for line in reversed(lines) if (match := EPOCH.match(line))), None)
    if said is None:
        return None, None
    going_on, epoch, left = said.groups()
    return int(epoch) - bool(going_on), int(left) if left else None
