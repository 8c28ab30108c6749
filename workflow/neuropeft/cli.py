"""The verbs that rules, and people, call: `python -m neuropeft VERB --help`.

Each verb only passes its arguments on. Packages are imported inside the verbs, because start-up counts: a
fine-tune that lasts seconds must not pay for libraries it does not use.
"""

import argparse
import csv
import errno
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from neuropeft.errors import UserError

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
RESULTS = Path("results")  # of the workflow, whose jobs run in the folder that holds it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; a `UserError`, or a disk that takes no more, is told in a line with exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"neuropeft {options.verb}: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(
            f"neuropeft {options.verb}: cannot write {error.filename or 'a file'}: {error.strerror}; give it "
            "room or permission and start again, what is finished is kept",
            file=sys.stderr,
        )
    else:
        return 0
    return 1


# -- cohorts ---------------------------------------------------------------------------------------


def _simulate(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.simulate import write_scan
    from neuropeft.files import write_tsv
    from neuropeft.progress import track

    people = json.loads(options.participants)
    for person in track(people, len(people), "simulated scans"):
        write_scan(person, options.root, options.effect)
    write_tsv(options.table, people, list(people[0]))


def _simulate_tables(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.simulate import participants, write_cohort_tables

    spec = json.loads(options.spec)
    spec.pop("effect")
    write_cohort_tables(participants(**spec), options.root)


def _synthesize(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.synthetic_store import write_synthetic

    write_synthetic(options.volumes, options.seed, options.size, options.out, options.processes)


def _split(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.splits import make_split, read_usable, write_split

    rows = read_usable(options.labels, options.store_scans)
    shares = options.test, options.validation
    folds = options.fold, options.folds
    write_split(options.out, make_split(rows, options.seed, *shares, options.kind, options.task, *folds))


def _check_leaks(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.leaks import check_leaks

    check_leaks(options.split, options.stored, options.labels, options.zero_shot, options.out)


def _check_pretraining(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.leaks import check_pretraining

    check_pretraining(options.tested, options.stored, options.pretrained, options.hold_out, options.out)


# -- preprocessing ---------------------------------------------------------------------------------


def _n4(options: argparse.Namespace) -> None:
    from neuropeft.preprocess.steps import run_n4

    run_n4(options.index, options.chunk, options.out, options.table)


def _skull_strip(options: argparse.Namespace) -> None:
    from neuropeft.preprocess.steps import run_skull_strip

    run_skull_strip(options.table_in, options.scans, options.method, options.derivatives, options.table)


def _register(options: argparse.Namespace) -> None:
    from neuropeft.preprocess.steps import run_register

    run_register(options.table_in, options.scans, options.derivatives, options.table)


def _resample(options: argparse.Namespace) -> None:
    from neuropeft.preprocess.steps import run_resample

    run_resample(options.table_in, options.scans, options.derivatives, options.table)


def _list_excluded(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.chunks import chunk_tables
    from neuropeft.preprocess.store import list_excluded

    list_excluded(chunk_tables(RESULTS, options.cohort), options.out)


def _pack(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.chunks import chunk_tables
    from neuropeft.preprocess.store import pack

    pack(
        chunk_tables(RESULTS, options.cohort),
        options.excluded,
        options.volumes,
        options.scans,
        max_excluded_share=options.max_excluded_share,
        size=options.size,
    )


def _qc(options: argparse.Namespace) -> None:
    from neuropeft.cohorts.chunks import chunk_tables
    from neuropeft.preprocess.qc import write_qc

    title = f"{options.cohort} (simulated)" if options.simulated else options.cohort
    write_qc(chunk_tables(RESULTS, options.cohort), options.table, options.page, title)


def _preprocess(options: argparse.Namespace) -> None:
    from neuropeft.preprocess.single import preprocess_scan

    numbers = preprocess_scan(options.scan, options.out_dir, options.skull_strip, options.mask)
    for name, value in numbers.items():
        print(f"{name}\t{value:.4g}" if isinstance(value, float) else f"{name}\t{value}")


# -- models ----------------------------------------------------------------------------------------


def _params(options: argparse.Namespace) -> None:
    from neuropeft.methods.counts import COLUMNS, table1

    rows = table1()
    if options.format == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        from neuropeft.publish.sheet import markdown
        from neuropeft.publish.tables import count_sheet, with_difference

        texts = [{column: str(value) for column, value in row.items()} for row in rows]
        print(markdown(count_sheet([with_difference(row) for row in texts])), end="")


def _lease_gpu() -> None:
    from neuropeft.train.lease import lease

    lease()  # before torch is imported


def _pretrain(options: argparse.Namespace) -> None:
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


def _import_encoder(options: argparse.Namespace) -> None:
    from neuropeft.backbones import vit
    from neuropeft.backbones.checkpoints import import_encoder

    metadata = {"from": Path(options.weights).name}
    report = import_encoder(options.weights, options.out, vit.build(json.loads(options.backbone)), metadata)
    print("\n".join(report))


def _finetune(options: argparse.Namespace) -> None:
    _lease_gpu()
    from neuropeft.train.pack import finetune_pack

    finetune_pack(
        json.loads(options.specs),
        options.store,
        options.splits,
        options.encoder,
        options.state,
        options.table,
        options.search,
    )


def _search(options: argparse.Namespace) -> None:
    _lease_gpu()
    from neuropeft.train.search import search

    search(
        json.loads(options.specs),
        options.store,
        options.splits,
        options.encoder,
        options.state,
        options.table,
    )


def _take_cell(options: argparse.Namespace) -> None:
    from neuropeft.train.state import take_over

    take_over(options.state, json.loads(options.spec), options.out)


def _predict(options: argparse.Namespace) -> None:
    _lease_gpu()
    from neuropeft.train.predict import predict

    predict(options.deltas, options.encoders, options.store, options.subjects, options.out)


def _features(options: argparse.Namespace) -> None:
    _lease_gpu()
    from neuropeft.train.features import write_features

    write_features(json.loads(options.backbone), options.encoder, options.store, options.out)


# -- evaluation ------------------------------------------------------------------------------------


def _controls(options: argparse.Namespace) -> None:
    from neuropeft.evaluate.controls import write_controls

    write_controls(
        options.kind, options.target, options.split, options.fractions, options.cohorts, options.out
    )


def _probes(options: argparse.Namespace) -> None:
    from neuropeft.evaluate.probes import write_probes

    write_probes(
        options.kind,
        options.split,
        options.fractions,
        options.cohorts,
        options.features,
        options.out,
    )


def _tables(options: argparse.Namespace) -> None:
    from neuropeft.config import Config
    from neuropeft.publish.tables import write_partial_tables, write_tables

    write = write_partial_tables if options.partial else write_tables
    write(Config.model_validate_json(options.config_json), RESULTS, options.counts, options.out)


def _figures(options: argparse.Namespace) -> None:
    from neuropeft.config import Config
    from neuropeft.publish.figures import write_figures

    write_figures(Config.model_validate_json(options.config_json), RESULTS, options.out)


def _summary(options: argparse.Namespace) -> None:
    from neuropeft.config.read import read_config
    from neuropeft.publish.summary import print_summary

    print_summary(read_config(options.configfile, None), options.results)


def _status(options: argparse.Namespace) -> None:
    from neuropeft.config import Config
    from neuropeft.config.read import read_config
    from neuropeft.status.screen import print_status

    if options.config_json is None:
        config = read_config(options.configfile, None)
    else:
        config = Config.model_validate_json(options.config_json)
    print_status(config, options.results)


def _schema(options: argparse.Namespace) -> None:
    from neuropeft.config.read import json_schema

    print(json_schema(), end="")


# -- arguments -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neuropeft", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    _add_for_people(verb)
    _add_cohorts(verb)
    _add_preprocessing(verb)
    _add_models(verb)
    _add_evaluation(verb)
    return parser


Verb = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


def _paths(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, type=Path, required=True)


def _path_lists(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, type=Path, nargs="*", default=[])


def _add_for_people(verb: Verb) -> None:
    one = verb(
        "preprocess", _preprocess, "preprocess one T1-weighted scan (.nii, .nii.gz or .mgz) and print its QC"
    )
    one.add_argument("scan", type=Path, metavar="SCAN")
    one.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    one.add_argument("--skull-strip", choices=("deepbet", "hd-bet", "given", "stripped"), default="deepbet")
    one.add_argument("--mask", type=Path, help="brain mask on the scan's own grid, for --skull-strip given")

    params = verb(
        "params", _params, "print the trainable parameters of the paper's Table 1, ours beside published"
    )
    params.add_argument("--format", choices=("csv", "markdown"), default="markdown")

    verb("schema", _schema, "print the JSON schema of config.yaml")

    summary = verb("summary", _summary, "print the main scores of a finished run and where its results are")
    summary.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    summary.add_argument("--results", type=Path, default=RESULTS)

    status = verb("status", _status, "print what is done, running, failed and left; reads only")
    given = status.add_mutually_exclusive_group()
    given.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    given.add_argument("--config-json")
    status.add_argument("--results", type=Path, default=RESULTS)


def _add_cohorts(verb: Verb) -> None:
    simulate = verb("simulate", _simulate, "write the scans of a chunk of a simulated cohort")
    _paths(simulate, "--root", "--table")
    simulate.add_argument("--participants", required=True)
    simulate.add_argument("--effect", type=float, required=True)

    tables = verb("simulate-tables", _simulate_tables, "write the participants of a simulated cohort")
    _paths(tables, "--root")
    tables.add_argument("--spec", required=True)

    synthesize = verb("synthesize", _synthesize, "write the store of a synthetic cohort")
    for name in ("--volumes", "--seed", "--size", "--processes"):
        synthesize.add_argument(name, type=int, required=True)
    _paths(synthesize, "--out")

    split = verb("split", _split, "split the subjects of a task into training, validation and test")
    _paths(split, "--labels", "--store-scans", "--out")
    split.add_argument("--task", required=True)
    split.add_argument("--kind", required=True)
    split.add_argument("--seed", type=int, required=True)
    tested = split.add_mutually_exclusive_group(required=True)
    tested.add_argument("--test", type=float, default=0.0, help="share of the subjects that is tested on")
    tested.add_argument("--fold", type=int, default=0, help="the fold that is tested on, 1 to --folds")
    split.add_argument("--folds", type=int, default=0, help="into how many folds subjects are dealt")
    split.add_argument("--validation", type=float, required=True)

    leaks = verb("check-leaks", _check_leaks, "check that no subject and no image is on two sides")
    _paths(leaks, "--split", "--stored", "--out")
    leaks.add_argument("--labels", type=Path, help="of the task in a zero-shot cohort")
    leaks.add_argument("--zero-shot", type=Path, help="scans.tsv of that cohort's store")

    pretrained = verb("check-pretraining", _check_pretraining, "check that no tested image was pretrained on")
    _paths(pretrained, "--tested", "--stored", "--pretrained", "--out")
    _path_lists(pretrained, "--hold-out")


def _add_preprocessing(verb: Verb) -> None:
    n4 = verb("n4", _n4, "correct the bias field of a chunk's scans")
    _paths(n4, "--index", "--out", "--table")
    n4.add_argument("--chunk", required=True)

    for name, run, summary in (
        ("skull-strip", _skull_strip, "find the brains of a chunk's scans"),
        ("register", _register, "register a chunk's brains to MNI152 with 9 degrees of freedom"),
        ("resample", _resample, "resample a chunk's brains to the template grid"),
    ):
        step = verb(name, run, summary)
        _paths(step, "--scans", "--table-in", "--derivatives", "--table")
        if name == "skull-strip":
            step.add_argument("--method", required=True)

    excluded = verb("list-excluded", _list_excluded, "list the scans that a step could not process")
    excluded.add_argument("--cohort", required=True)
    _paths(excluded, "--out")

    pack = verb("pack", _pack, "pack a cohort's preprocessed scans into one memory-mapped array")
    pack.add_argument("--cohort", required=True)
    _paths(pack, "--excluded", "--volumes", "--scans")
    pack.add_argument("--size", type=int, required=True)
    pack.add_argument("--max-excluded-share", type=float, required=True)

    qc = verb("qc", _qc, "write the QC page of a cohort")
    qc.add_argument("--cohort", required=True)
    qc.add_argument("--simulated", action="store_true")
    _paths(qc, "--table", "--page")


def _add_models(verb: Verb) -> None:
    pretrain = verb("pretrain", _pretrain, "pretrain an encoder on the store of a cohort")
    pretrain.add_argument("--spec", required=True)
    _paths(pretrain, "--store", "--out", "--state")
    _path_lists(pretrain, "--hold-out")
    pretrain.add_argument("--people", type=Path, help="ages and sexes of the scans, which are probed for")
    pretrain.add_argument("--start", type=Path, help="encoder of another pretraining to go on from")

    imported = verb("import-encoder", _import_encoder, "turn weights from elsewhere into an encoder file")
    _paths(imported, "--weights", "--out")
    imported.add_argument("--backbone", required=True)

    finetune = verb("finetune", _finetune, "fine-tune cells, one after another")
    finetune.add_argument("--specs", required=True)
    _paths(finetune, "--store", "--state", "--table")
    _path_lists(finetune, "--splits")
    finetune.add_argument("--encoder", type=Path)
    finetune.add_argument("--search", type=Path, help="table of the search, whose rates are taken")

    search = verb("search", _search, "try learning rates of a method on each fold")
    search.add_argument("--specs", required=True)
    _paths(search, "--store", "--state", "--table")
    _path_lists(search, "--splits")
    search.add_argument("--encoder", type=Path)

    take = verb("take-cell", _take_cell, "take over what the training of a cell has left")
    take.add_argument("--spec", required=True)
    _paths(take, "--state", "--out")

    predict = verb("predict", _predict, "predict a cohort with all cells that share a base")
    _path_lists(predict, "--deltas", "--encoders", "--subjects")
    _paths(predict, "--store", "--out")

    features = verb("features", _features, "write the tokens of a frozen backbone for all scans of a cohort")
    features.add_argument("--backbone", required=True)
    features.add_argument("--encoder", type=Path, help="pretrained weights; without them it is untrained")
    _paths(features, "--store", "--out")


def _add_evaluation(verb: Verb) -> None:
    controls = verb("controls", _controls, "fit the controls of a task")
    controls.add_argument("--kind", required=True)
    controls.add_argument("--target", required=True)
    _paths(controls, "--split", "--out")
    controls.add_argument("--fractions", type=int, nargs="+", required=True)
    controls.add_argument("--cohorts", nargs="+", required=True)

    probes = verb("probes", _probes, "fit the probes of a frozen backbone on a task")
    probes.add_argument("--kind", required=True)
    _paths(probes, "--split", "--out")
    probes.add_argument("--fractions", nargs="+", type=int, required=True)
    probes.add_argument("--cohorts", nargs="+", required=True)
    _path_lists(probes, "--features")

    tables = verb("tables", _tables, "write the tables")
    tables.add_argument("--config-json", required=True)
    _paths(tables, "--counts", "--out")
    tables.add_argument("--partial", action="store_true")

    figures = verb("figures", _figures, "draw the figures")
    figures.add_argument("--config-json", required=True)
    _paths(figures, "--out")
