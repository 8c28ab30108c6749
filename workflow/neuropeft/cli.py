"""The verbs that rules, and people, call: `python -m neuropeft VERB --help`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from neuropeft import verbs, verbs_for_people, verbs_of_results
from neuropeft.errors import FAULTS, UserError, fault
from neuropeft.layout import RESULTS
from neuropeft.peaks import PEAKS
from neuropeft.subsets import Subset
from neuropeft.variant_names import VARIED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; a `UserError`, or a disk that fails, is one line and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"neuropeft {options.verb}: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in FAULTS:
            raise
        print(f"neuropeft {options.verb}: {fault(error, 'a file')}; what is done is kept", file=sys.stderr)
    else:
        return 0
    return 1


# -- arguments -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neuropeft", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").rstrip(".")
        added = subparsers.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    _add_for_people(verb)
    _add_cohorts(verb)
    _add_preprocessing(verb)
    _add_models(verb)
    _add_evaluation(verb)
    return parser


Verb = Callable[[str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]


def _paths(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, type=Path, required=True)


def _path_lists(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, type=Path, nargs="*", default=[])


def _add_brain(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--skull-strip", choices=("deepbet", "hd-bet", "given", "stripped"), default=default)
    parser.add_argument(
        "--mask", type=Path, help="brain mask on the scan's own grid, for --skull-strip given"
    )


def _add_for_people(verb: Verb) -> None:
    one = verb("preprocess", verbs.preprocess)
    one.add_argument("scan", type=Path, metavar="SCAN")
    one.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    _add_brain(one, "deepbet")

    export = verb("export", verbs_for_people.export)
    export.add_argument("--configfile", type=Path, nargs="+", default=[Path("config.yaml")])
    export.add_argument("--results", type=Path, default=Path(RESULTS))
    export.add_argument("--task", required=True, help="whose best model is written")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--deploy",
        nargs="?",
        const="",
        metavar="BACKBONE",
        help="measure smaller forms of it on the CPU, too; one learns from it: of this backbone, or of half "
        "its width",
    )

    scan = verb("predict-scan", verbs_for_people.predict_scan)
    scan.add_argument("scan", type=Path, metavar="SCAN")
    scan.add_argument("--model", type=Path, required=True, help="folder that `export` wrote")
    _add_brain(scan, None)

    params = verb("params", verbs.params)
    params.add_argument("--format", choices=("csv", "markdown"), default="markdown")

    verb("methods", verbs_for_people.methods)

    verb("schema", verbs_for_people.schema)

    grouped = verb("group-duplicates", verbs_for_people.group_duplicates)
    grouped.add_argument("table", type=Path, metavar="TABLE")
    grouped.add_argument("out", type=Path, metavar="OUT.tsv")
    grouped.add_argument("--size", type=int, default=224, help="`preprocessing.size` of the configuration")

    summary = verb("summary", verbs_for_people.summary)
    summary.add_argument("--configfile", type=Path, nargs="+", default=[Path("config.yaml")])
    summary.add_argument("--results", type=Path, default=Path(RESULTS))

    estimate = verb("estimate", verbs_for_people.estimate)
    estimate.add_argument("--configfile", type=Path, nargs="+", default=[Path("config.yaml")])
    estimate.add_argument("--results", type=Path, default=Path(RESULTS), help="whose finished cells count")
    estimate.add_argument("--gpu", choices=PEAKS, default="H100", help="on which GPU; H100 if not given")

    status = verb("status", verbs.status)
    given = status.add_mutually_exclusive_group()
    given.add_argument("--configfile", type=Path, nargs="+", default=[Path("config.yaml")])
    given.add_argument("--config-json")
    status.add_argument("--results", type=Path, default=Path(RESULTS))


def _add_cohorts(verb: Verb) -> None:
    simulate = verb("simulate", verbs.simulate)
    _paths(simulate, "--root", "--table")
    simulate.add_argument("--participants", required=True)
    simulate.add_argument("--effect", type=float, required=True)

    tables = verb("simulate-tables", verbs.simulate_tables)
    _paths(tables, "--root")
    tables.add_argument("--spec", required=True)

    synthesize = verb("synthesize", verbs.synthesize)
    for name in ("--volumes", "--seed", "--size", "--processes"):
        synthesize.add_argument(name, type=int, required=True)
    _paths(synthesize, "--out")

    split = verb("split", verbs.split)
    _paths(split, "--labels", "--store-scans", "--out")
    split.add_argument("--task", required=True)
    _add_task_kind(split)
    split.add_argument("--seed", type=int, required=True)
    tested = split.add_mutually_exclusive_group(required=True)
    tested.add_argument("--test", type=float, default=0.0, help="share of the subjects that is tested on")
    tested.add_argument("--fold", type=int, default=0, help="the fold that is tested on, 1 to --folds")
    split.add_argument("--folds", type=int, default=0, help="into how many folds subjects are dealt")
    split.add_argument("--validation", type=float, required=True)

    leaks = verb("check-leaks", verbs.check_leaks)
    _paths(leaks, "--split", "--stored", "--out")
    leaks.add_argument("--labels", type=Path, help="of the task in a zero-shot cohort")
    leaks.add_argument("--zero-shot", type=Path, help="scans.tsv of that cohort's store")

    pretrained = verb("check-pretraining", verbs.check_pretraining)
    _paths(pretrained, "--tested", "--stored", "--pretrained", "--out")
    _path_lists(pretrained, "--hold-out")
    for check in (leaks, pretrained):
        check.add_argument("--same", type=float, required=True, help="likeness above which scans are one")


def _add_preprocessing(verb: Verb) -> None:
    step = verb("prepare", verbs.prepare)
    step.add_argument("--step", required=True, help="module that has it, such as inputs.t1w.n4")
    step.add_argument("--chunk", help="which rows of the index, for a first step")
    step.add_argument("--settings", default="{}", help="what the step is told, as JSON")
    step.add_argument("--index", type=Path, help="of the cohort, for a last step")
    step.add_argument("--sources", help="what the steps depend on, as JSON, for a last step")
    step.add_argument("--temporary", type=Path, help="folder of images that later steps read")
    _paths(step, "--rows", "--derivatives", "--table")

    excluded = verb("list-excluded", verbs.list_excluded)
    _paths(excluded, "--out")

    pack = verb("pack", verbs.pack)
    _paths(pack, "--excluded", "--volumes", "--scans")
    pack.add_argument("--size", type=int, required=True)
    pack.add_argument("--max-excluded-share", type=float, required=True)

    qc = verb("qc", verbs.qc)
    qc.add_argument("--simulated", action="store_true")
    _paths(qc, "--table", "--page")

    for whole in (excluded, pack, qc):
        whole.add_argument("--cohort", required=True)
        whole.add_argument("--last-step", required=True, help="whose chunk tables are read")
    for whole in (pack, qc):
        whole.add_argument("--input", required=True, help="kind of the cohort's input")


def _add_models(verb: Verb) -> None:
    pretrain = verb("pretrain", verbs.pretrain)
    pretrain.add_argument("--spec", required=True)
    _paths(pretrain, "--store", "--out", "--state")
    _path_lists(pretrain, "--hold-out")
    pretrain.add_argument("--people", type=Path, help="ages and sexes of the scans, which are probed for")
    pretrain.add_argument("--start", type=Path, help="encoder of another pretraining to go on from")

    imported = verb("import-encoder", verbs.import_encoder)
    _paths(imported, "--weights", "--out")
    imported.add_argument("--backbone", required=True)

    finetune = verb("finetune", verbs.finetune)
    finetune.add_argument("--specs", required=True)
    _paths(finetune, "--store", "--state", "--table")
    _path_lists(finetune, "--splits")
    finetune.add_argument("--encoder", type=Path)
    finetune.add_argument("--choices", type=Path, help="settings that a search has chosen")

    trial = verb("trial", verbs.trial)
    trial.add_argument("--specs", required=True)
    trial.add_argument("--search", required=True, help="what is tried, as JSON")
    trial.add_argument("--first", type=int, required=True, help="number of the first trial")
    _paths(trial, "--store", "--state", "--table")
    _path_lists(trial, "--splits")
    trial.add_argument("--encoder", type=Path)
    trial.add_argument("--earlier", type=Path, nargs="*", default=[], help="tables of the trials before")

    choose = verb("choose", verbs.choose)
    _path_lists(choose, "--trials")
    choose.add_argument("--search", required=True, help="what was tried, as JSON")
    _paths(choose, "--out")

    take = verb("take-cell", verbs.take_cell)
    take.add_argument("--spec", required=True)
    _paths(take, "--state", "--split", "--store-scans", "--out")
    take.add_argument("--encoder", type=Path)
    take.add_argument("--choices", type=Path)

    predict = verb("predict", verbs.predict)
    _path_lists(predict, "--deltas", "--encoders", "--subjects")
    _paths(predict, "--store", "--out")
    predict.add_argument("--told", default="", help="what predictions alone depend on, as JSON")
    predict.add_argument("--described", type=Path, help="what `describe` wrote of the cohort's images")

    describe = verb("describe", verbs.describe)
    describe.add_argument("--told", required=True, help="the networks, as JSON")
    _paths(describe, "--labels", "--store", "--out")

    vary = verb("vary", verbs.vary)
    vary.add_argument("--analysis", choices=VARIED, required=True)
    vary.add_argument("--names", nargs="+", required=True, help="of the variants")
    _path_lists(vary, "--deltas", "--encoders", "--subjects")
    _paths(vary, "--store", "--out")

    saliency = verb("saliency", verbs.saliency)
    saliency.add_argument("--scans", type=int, required=True, help="most scans of each cell")
    _path_lists(saliency, "--deltas", "--encoders", "--subjects")
    _paths(saliency, "--store", "--out")

    features = verb("features", verbs.features)
    features.add_argument("--backbone", required=True)
    features.add_argument("--encoder", type=Path, help="pretrained weights; without them it is untrained")
    _paths(features, "--store", "--out")


def _add_task_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", required=True, help="kind of the task")
    parser.add_argument("--size", type=int, required=True, help="its classes or labels; 0 for values")
    parser.add_argument("--told", default="", help="what else its settings say, as JSON")


def _add_evaluation(verb: Verb) -> None:
    controls = verb("controls", verbs_of_results.controls)
    controls.add_argument("--targets", nargs="+", required=True, help="columns that are predicted")
    for one in (controls, verb("mean-label-map", verbs_of_results.mean_label_map)):
        _add_task_kind(one)
        one.add_argument("--methods", nargs="+", required=True, help="the controls")
        _paths(one, "--split", "--out")
        one.add_argument("--subsets", type=Subset.parse, nargs="+", required=True)
        one.add_argument("--cohorts", nargs="+", required=True)

    probes = verb("probes", verbs_of_results.probes)
    _add_task_kind(probes)
    _paths(probes, "--split", "--out")
    probes.add_argument("--subsets", type=Subset.parse, nargs="+", required=True)
    probes.add_argument("--cohorts", nargs="+", required=True)
    _path_lists(probes, "--features")

    score = verb("score", verbs_of_results.score)
    score.add_argument("--spec", required=True)
    _paths(score, "--table", "--draws")

    confounds = verb("confounds", verbs_of_results.confounds)
    confounds.add_argument("--spec", required=True)
    _paths(confounds, "--out")

    tables = verb("tables", verbs_of_results.tables)
    _paths(tables, "--counts", "--out")
    tables.add_argument("--partial", action="store_true")

    figures = verb("figures", verbs_of_results.figures)
    _paths(figures, "--out")

    report = verb("report", verbs_of_results.report)
    _path_lists(report, "--tables", "--figures")
    _paths(report, "--out")

    analyses = verb("analyses", verbs_of_results.analyses)
    _paths(analyses, "--tables", "--figures")

    diagnostics = verb("diagnostics", verbs_of_results.diagnostics)
    _paths(diagnostics, "--tables", "--figures")

    for one in (tables, figures, report, analyses, diagnostics):
        one.add_argument("--config-json", required=True)
