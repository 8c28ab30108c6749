"""What the verbs of `cli` do: each passes its arguments on.

Packages are imported inside the verbs, because start-up counts: a fine-tune that lasts seconds must not pay
for libraries that it does not use.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropeft import layout

if TYPE_CHECKING:
    from neuropeft.config import Config
    from neuropeft.tasks.base import TaskKind

# What the same scan becomes must not depend on how many cores a machine has: sums in another order differ.
THREADS = (
    *("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
)

RESULTS = Path(layout.RESULTS)  # of the workflow, whose jobs run in the folder that holds it


# -- cohorts ---------------------------------------------------------------------------------------


def simulate(options: argparse.Namespace) -> None:
    """Write the scans of a chunk of a simulated cohort."""
    from neuropeft.cohorts.simulate import write_scan
    from neuropeft.files import write_tsv
    from neuropeft.progress import track

    people = json.loads(options.participants)
    for person in track(people, len(people), "simulated scans"):
        write_scan(person, options.root, options.effect)
    write_tsv(options.table, people, list(people[0]))


def simulate_tables(options: argparse.Namespace) -> None:
    """Write the participants of a simulated cohort."""
    from neuropeft.cohorts.simulate import participants, write_cohort_tables

    spec = json.loads(options.spec)
    spec.pop("effect")
    write_cohort_tables(participants(**spec), options.root)


def synthesize(options: argparse.Namespace) -> None:
    """Write the store of a synthetic cohort."""
    use_one_thread()
    from neuropeft.cohorts.sources import synthetic_sources
    from neuropeft.cohorts.synthetic_store import write_synthetic

    wanted = options.volumes, options.seed, options.size
    write_synthetic(*wanted, options.out, options.processes)
    _record_store(options.out, synthetic_sources(*wanted))


def _record_store(folder: Path, sources: dict[str, Any]) -> None:
    from neuropeft.records import write_record

    first = folder / "volumes.npy"
    arrays = sorted(path for path in folder.glob("*.npy") if path != first)
    write_record([first, *arrays, folder / "scans.tsv"], sources)


def split(options: argparse.Namespace) -> None:
    """Split the subjects of a task into training, validation and test."""
    from neuropeft.cohorts.splits import make_split, read_usable, write_split

    rows = read_usable(options.labels, options.store_scans)
    shares = options.test, options.validation
    folds = options.fold, options.folds
    write_split(
        options.out, make_split(rows, options.seed, *shares, task_kind_of(options), options.task, *folds)
    )


def check_leaks(options: argparse.Namespace) -> None:
    """Check that no subject and no image is on two sides."""
    from neuropeft.cohorts.leaks import check_leaks

    check_leaks(options.split, options.stored, options.labels, options.zero_shot, options.out, options.same)


def check_pretraining(options: argparse.Namespace) -> None:
    """Check that no tested image was pretrained on."""
    from neuropeft.cohorts.leaks import check_pretraining

    check_pretraining(
        options.tested, options.stored, options.pretrained, options.hold_out, options.out, options.same
    )


# -- preprocessing ---------------------------------------------------------------------------------


def use_one_thread() -> None:
    """Have what a scan becomes not depend on the number of cores."""
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before numpy, ITK and torch are imported


def prepare(options: argparse.Namespace) -> None:
    """Take a chunk's scans through a step of their kind of input."""
    use_one_thread()
    from neuropeft.inputs import step_of
    from neuropeft.inputs.base import Folders
    from neuropeft.inputs.steps import run_step

    folders = Folders(options.derivatives, options.temporary)
    settings = json.loads(options.settings)
    run_step(step_of(options.step), options.rows, options.chunk, folders, settings, options.table)
    if options.sources is not None:
        from neuropeft.cohorts.sources import record_chunk

        record_chunk(options.table, options.index, json.loads(options.sources))


def list_excluded(options: argparse.Namespace) -> None:
    """List the scans that a step could not process."""
    from neuropeft.inputs.store import list_excluded

    list_excluded(_last_tables(options), options.out)


def pack(options: argparse.Namespace) -> None:
    """Pack a cohort's preprocessed scans into one memory-mapped array."""
    use_one_thread()
    from neuropeft.cohorts.chunks import read_chunks
    from neuropeft.cohorts.sources import store_sources
    from neuropeft.inputs import input_kind
    from neuropeft.inputs.store import pack

    pack(
        input_kind(options.input),
        _last_tables(options),
        options.excluded,
        options.volumes,
        options.scans,
        max_excluded_share=options.max_excluded_share,
        size=options.size,
    )
    chunks = read_chunks(RESULTS, options.cohort)
    _record_store(
        options.volumes.parent, store_sources(options.input, options.size, options.max_excluded_share, chunks)
    )


def qc(options: argparse.Namespace) -> None:
    """Write the QC page of a cohort."""
    from neuropeft.inputs import input_kind
    from neuropeft.inputs.qc import write_qc

    title = f"{options.cohort} (simulated)" if options.simulated else options.cohort
    write_qc(input_kind(options.input), _last_tables(options), options.table, options.page, title)


def _last_tables(options: argparse.Namespace) -> list[Path]:
    from neuropeft.cohorts.chunks import chunk_tables

    return chunk_tables(RESULTS, options.cohort, options.last_step)


def preprocess(options: argparse.Namespace) -> None:
    """Preprocess one T1-weighted scan (.nii, .nii.gz or .mgz) and print its QC."""
    use_one_thread()
    from neuropeft.inputs.t1w.single import preprocess_scan

    numbers = preprocess_scan(options.scan, options.out_dir, options.skull_strip, options.mask)
    for name, value in numbers.items():
        print(f"{name}\t{value:.4g}" if isinstance(value, float) else f"{name}\t{value}")


# -- models ----------------------------------------------------------------------------------------


def params(options: argparse.Namespace) -> None:
    """Print the trainable parameters of the paper's Table 1, ours beside published."""
    from neuropeft.methods.counts import COLUMNS, table1

    rows = table1()
    if options.format == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        from neuropeft.publish.count_table import count_sheet, with_difference
        from neuropeft.publish.sheet import markdown

        texts = [{column: str(value) for column, value in row.items()} for row in rows]
        print(markdown(count_sheet([with_difference(row) for row in texts])), end="")


def _lease_gpu() -> None:
    from neuropeft.train.lease import lease

    lease()  # before torch is imported


def pretrain(options: argparse.Namespace) -> None:
    """Pretrain an encoder on the store of a cohort."""
    _lease_gpu()
    from neuropeft.train.pretrain import pretrain

    pretrain(
        json.loads(options.spec),
        options.store,
        options.hold_out,
        options.out,
        options.state,
        people=options.people,
        start=options.start,
    )


def import_encoder(options: argparse.Namespace) -> None:
    """Turn weights from elsewhere into an encoder file."""
    from neuropeft.backbones.build import build_backbone
    from neuropeft.pretraining.imported import import_encoder
    from neuropeft.records import file_digest, write_record
    from neuropeft.train.sources import imported_sources

    metadata, spec = {"from": Path(options.weights).name}, json.loads(options.backbone)
    weights = file_digest(options.weights)
    report = import_encoder(options.weights, options.out, build_backbone(spec), metadata)
    write_record([options.out], imported_sources(spec, weights))
    print("\n".join(report))


def _cells(options: argparse.Namespace) -> tuple[Any, Path, list[Path], Path | None, Path, Path]:
    """Return what cells are trained from, and where their state and table go."""
    specs = json.loads(options.specs)
    return specs, options.store, options.splits, options.encoder, options.state, options.table


def finetune(options: argparse.Namespace) -> None:
    """Fine-tune cells, one after another."""
    _lease_gpu()
    from neuropeft.train.pack import finetune_pack

    finetune_pack(*_cells(options), options.choices)


def trial(options: argparse.Namespace) -> None:
    """Train some trials of a method on each fold."""
    _lease_gpu()
    from neuropeft.config.search import Search
    from neuropeft.train.search import run_trials

    search = Search.model_validate_json(options.search)
    run_trials(*_cells(options), search, options.first, options.earlier)


def choose(options: argparse.Namespace) -> None:
    """Choose among the trials of a method."""
    from neuropeft.config.search import Search
    from neuropeft.train.choices import choose

    choose(options.trials, Search.model_validate_json(options.search), options.out)


def take_cell(options: argparse.Namespace) -> None:
    """Take over what the training of a cell has left."""
    from neuropeft.records import Digests
    from neuropeft.train.choices import read_choices
    from neuropeft.train.sources import cell_sources
    from neuropeft.train.state import take_over

    spec = json.loads(options.spec)
    encoder = options.encoder and Digests().written(options.encoder)
    choice = options.choices and read_choices(options.choices)[int(spec["fold"])]
    sources = cell_sources(spec, options.split, options.store_scans, encoder, choice)
    take_over(options.state, sources, options.out)


def predict(options: argparse.Namespace) -> None:
    """Predict a cohort with all cells that share a base."""
    _lease_gpu()
    from neuropeft.train.predict import predict

    given = (options.deltas, options.encoders, options.store, options.subjects, options.out)
    predict(*given, told=options.told, described=options.described)


def describe(options: argparse.Namespace) -> None:
    """Say what the networks of a task make of the images and texts of a cohort."""
    _lease_gpu()
    from neuropeft.train.describe import write_described

    write_described(options.labels, options.store, json.loads(options.told), options.out)


def vary(options: argparse.Namespace) -> None:
    """Predict a cohort with variants of cells that share a base."""
    _lease_gpu()
    from neuropeft.analyses.vary import vary
    from neuropeft.train.predict import cells_shown

    cells = cells_shown(options.deltas, options.encoders, options.store, options.subjects, options.out)
    vary(options.analysis, options.names, cells, options.out)


def saliency(options: argparse.Namespace) -> None:
    """Average where cells that share a base look in test scans."""
    _lease_gpu()
    from neuropeft.analyses.saliency import write_saliency
    from neuropeft.train.predict import cells_shown

    cells = cells_shown(options.deltas, options.encoders, options.store, options.subjects, options.out)
    write_saliency(options.scans, cells, options.out)


def features(options: argparse.Namespace) -> None:
    """Write the tokens of a frozen backbone for all scans of a cohort."""
    _lease_gpu()
    from neuropeft.train.features import write_features

    write_features(json.loads(options.backbone), options.encoder, options.store, options.out)


# -- what verbs share, and status -------------------------------------------------------------------


def task_kind_of(options: argparse.Namespace) -> "TaskKind":
    """Return the kind of a task that the arguments describe."""
    from neuropeft.tasks import task_kind

    return task_kind(options.kind, options.size, options.told)


def config_of(options: argparse.Namespace, base: Path | None = None) -> "Config":
    """Return the configuration that rules give as JSON, or that of the files named, merged in their order."""
    if given := getattr(options, "config_json", None):
        from neuropeft.config import Config

        return Config.model_validate_json(given)
    from neuropeft.config.read import read_config

    first, *others = options.configfile
    return read_config(first, base, *others)


def status(options: argparse.Namespace) -> None:
    """Print what is done, running, failed and left; reads only."""
    from neuropeft.status.screen import print_status

    print_status(config_of(options), options.results)
