"""The verbs that fit controls and probes, score, and publish; each imports what it needs."""

import argparse
import json
from importlib import import_module

from neuropeft.verbs import RESULTS, config_of, task_kind_of


def controls(options: argparse.Namespace) -> None:
    """Fit the controls of a task."""
    kind = task_kind_of(options)
    who = (options.methods, options.targets, options.split, options.subsets, options.cohorts)
    import_module(f"neuropeft.{kind.controls}").write_controls(kind, *who, options.out)


def mean_label_map(options: argparse.Namespace) -> None:
    """Compare the mean label map of a segmentation with those of scans."""
    from neuropeft.evaluate.mean_label_map import write_mean_label_maps
    from neuropeft.tasks.segmentation import Segmentation

    kind, (method,) = task_kind_of(options), options.methods
    assert isinstance(kind, Segmentation), "the rule gives no other"
    write_mean_label_maps(kind, method, options.split, options.subsets, options.cohorts, options.out)


def probes(options: argparse.Namespace) -> None:
    """Fit the probes of a frozen backbone on a task."""
    from neuropeft.evaluate.probes import write_probes

    write_probes(
        task_kind_of(options),
        options.split,
        options.subsets,
        options.cohorts,
        options.features,
        options.out,
    )


def score(options: argparse.Namespace) -> None:
    """Score contenders that are predicted together."""
    from neuropeft.evaluate.score import score

    score(json.loads(options.spec), RESULTS, options.table, options.draws)


def confounds(options: argparse.Namespace) -> None:
    """Write how well site and sex can be told in the training cohort of a task."""
    from neuropeft.evaluate.confounds import write_confounds

    write_confounds(json.loads(options.spec), RESULTS, options.out)


def tables(options: argparse.Namespace) -> None:
    """Write the tables."""
    from neuropeft.publish.tables import write_partial_tables, write_tables

    write = write_partial_tables if options.partial else write_tables
    write(config_of(options), RESULTS, options.counts, options.out)


def figures(options: argparse.Namespace) -> None:
    """Draw the figures."""
    from neuropeft.publish.figures import write_figures

    write_figures(config_of(options), RESULTS, options.out)


def report(options: argparse.Namespace) -> None:
    """Write the report."""
    from neuropeft.publish.report.page import write_report

    write_report(config_of(options), RESULTS, options.tables, options.figures, options.out)


def diagnostics(options: argparse.Namespace) -> None:
    """Write what predictions say of subjects."""
    from neuropeft.publish.diagnostics import write_diagnostics

    write_diagnostics(config_of(options), RESULTS, options.tables, options.figures)


def analyses(options: argparse.Namespace) -> None:
    """Write the tables and figures of the analyses that are asked for."""
    from neuropeft.publish.analyses import write_analyses

    write_analyses(config_of(options), RESULTS, options.tables, options.figures)
