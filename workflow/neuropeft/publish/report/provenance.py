"""Where results come from: versions, hardware, splits, weights, and what else was used, with licences."""

import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.costs import Costs
from neuropeft.cohorts.splits import SIDES
from neuropeft.config import Config
from neuropeft.config.inputs import T1w
from neuropeft.files import MISSING
from neuropeft.grid import (
    Encoder,
    cells,
    encoder_of,
    encoders,
    scanned_cohorts,
    splits_of,
    synthetic_cohorts,
    used_tasks,
)
from neuropeft.publish.flow_table import subjects_of_sides
from neuropeft.publish.published import read_reference
from neuropeft.publish.sheet import Sheet
from neuropeft.records import file_digest, read_record

PACKAGES = (
    "neuropeft",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "monai",
    "antspyx",
    "nibabel",
    "peft",
    "snakemake",
)
NOT_GIVEN = "not given: add it in `pretraining`"


def version_sheet(costs: Costs) -> Sheet:
    """List the software and the hardware; torch and devices are those of the trainings."""
    done = [cost for cost in costs.values() if cost is not None]
    rows = [["Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"]]
    rows += [[name, found] for name in PACKAGES if (found := _version(name))]
    if commit := commit_of(Path(__file__)):
        rows.insert(2, ["neuropeft's commit", commit])
    for what, key in (("PyTorch", "torch"), ("Trained on", "device")):
        counts = Counter(str(cost[key]) for cost in done)
        rows.append(
            [what, ", ".join(f"{name} ({count} cells)" for name, count in counts.most_common()) or MISSING]
        )
    return Sheet("versions", "Versions and hardware.", ("What", "Version"), rows, text_columns=2)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""  # not in the environment that makes the report


def commit_of(module: Path) -> str:
    """Return the commit that a module is checked out at, "-dirty" where files differ; empty outside git."""
    describe = ("describe", "--always", "--dirty", "--abbrev=12")
    try:
        for command in (("ls-files", "--error-unmatch", module.name), describe):
            git = ["git", "-C", str(module.parent), *command]
            done = subprocess.run(git, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""  # installed without its repository
    return done.stdout.strip()


def split_sheet(config: Config, results: Path) -> Sheet:
    """List the splits with their hashes."""
    rows = []
    for task in used_tasks(config):
        for split in splits_of(cell for cell in cells(config) if cell.task == task):
            path = layout.SPLIT.at(results, task=task, split=split)
            if path.is_file():
                counts = subjects_of_sides(path)
                text = ", ".join(f"{counts[side]} {side}" for side in SIDES)
                rows.append([task, split, text, file_digest(path)])
    return Sheet(
        "splits",
        "Splits, by the SHA-256 of their files.",
        ("Task", "Split", "Subjects", "SHA-256"),
        rows,
        text_columns=4,
    )


def weight_sheet(config: Config, results: Path) -> Sheet:
    """List the encoders that cells start from: what they are, their hashes, licences and citations."""
    used = dict.fromkeys(encoders(config)) | dict.fromkeys(
        encoder for cell in cells(config) if (encoder := encoder_of(config, cell)) is not None
    )
    rows = []
    for one in used:
        path = layout.ENCODER.at(results, **one.names)
        if path.is_file():
            record = read_record(path)
            known = record.files.get(path.name) if record else None
            rows.append(
                [
                    one.pretraining,
                    one.backbone,
                    str(one.fold or "all"),
                    *_origin(config, one),
                    known[0] if known else file_digest(path),
                ]
            )
    header = ("Start", "Backbone", "Fold", "What", "Licence", "Citation", "SHA-256")
    notes = [
        "What is fine-tuned from weights that were made elsewhere may be bound by their licence, and what is "
        "trained on a cohort by the terms of its data.",
    ]
    caption = "Weights that cells start from." if used else "All cells start from random weights."
    return Sheet("weights", caption, header, rows, notes if used else [], text_columns=7)


def _origin(config: Config, one: Encoder) -> tuple[str, str, str]:
    if (imported := config.imported.get(one.pretraining)) is not None:
        name = Path(imported.weights).name
        return f"imported, {name}", imported.licence or NOT_GIVEN, imported.citation or NOT_GIVEN
    if (kept := config.kept.get(one.pretraining)) is not None:
        return f"{kept.of} after {kept.percent} % of its steps", "as it", "-"
    trained = config.trained[one.pretraining]
    start = f", from {trained.start}" if trained.start else ""
    return f"trained here on {trained.cohort} by {trained.kind}{start}", "yours", "-"


def source_sheet(config: Config) -> Sheet:
    """List what else was used, as far as this configuration uses it."""
    used = set(_used(config))
    rows = [
        [row["what"], row["used_for"], row["licence"], row["citation"]]
        for row in read_reference("sources.csv")
        if row["key"] in used
    ]
    return Sheet(
        "sources", "What else was used.", ("What", "For", "Licence", "Citation"), rows, text_columns=4
    )


def _used(config: Config) -> Iterator[str]:
    yield "recipe"
    if synthetic_cohorts(config):
        yield "template"
    for cohort in scanned_cohorts(config):
        one = config.cohorts[cohort]
        if isinstance(one.input, T1w):
            yield from ("template", "n4", one.skull_strip)
