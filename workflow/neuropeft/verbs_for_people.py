"""The verbs of the command line that no job of the workflow calls; each imports what it needs."""

import argparse
from pathlib import Path

from neuropeft.verbs import config_of, use_one_thread


def methods(options: argparse.Namespace) -> None:
    """Print every kind of method and how many parameters it trains."""
    from neuropeft.methods.overview import COLUMNS, overview

    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *overview()]
    widths = [max(len(row[column]) for row in rows) for column in COLUMNS[:-1]]
    for row in rows:
        texts = [row[column].ljust(width) for column, width in zip(COLUMNS, widths, strict=False)]
        print("  ".join([*texts, row[COLUMNS[-1]]]))


def export(options: argparse.Namespace) -> None:
    """Write the best model of a task to a folder of its own, with a model card."""
    from neuropeft.export.write import export_model

    chosen = export_model(config_of(options), options.results, options.task, options.out, options.deploy)
    print(f"{chosen.contender.label} ({chosen.cell.path}) is in {options.out}; read README.md there")


def predict_scan(options: argparse.Namespace) -> None:
    """Print what an exported model says of one raw scan, or why it refuses it."""
    use_one_thread()
    from neuropeft.export.scan import predict_scan

    for name, text in predict_scan(options.scan, options.model, options.skull_strip, options.mask).items():
        print(f"{name}\t{text}")


def summary(options: argparse.Namespace) -> None:
    """Print the main scores of a finished run and where its results are."""
    from neuropeft.publish.summary import print_summary

    print_summary(config_of(options), options.results)


def estimate(options: argparse.Namespace) -> None:
    """Print what a grid will take before it runs: hours, memory and disk; reads only."""
    from neuropeft.forecast.screen import print_estimate

    # Paths of cohorts are taken from the folder of the Snakefile.
    print_estimate(config_of(options, Path(__file__).parents[2]), options.results, options.gpu)


def schema(options: argparse.Namespace) -> None:
    """Print the JSON schema of config.yaml."""
    from neuropeft.config.read import json_schema

    print(json_schema(), end="")


def group_duplicates(options: argparse.Namespace) -> None:
    """Write a table of 2D images anew, in which images that look the same have one subject."""
    from neuropeft.cohorts.duplicates import group_duplicates

    before, after = group_duplicates(options.table, options.out, options.size)
    print(f"{options.out}: {after} subjects instead of {before}; images that look the same share one")
