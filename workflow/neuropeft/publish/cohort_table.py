"""Table 2: the cohorts as used, with the paper's row below a real cohort of the paper's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.files import MISSING, read_tsv
from neuropeft.grid import pretrained, used_cohorts, used_tasks
from neuropeft.publish.cells import part_breaks
from neuropeft.publish.labels import cohort_label, is_simulated, is_synthetic
from neuropeft.publish.published import published_cohort
from neuropeft.publish.sheet import Sheet

OLDEST = 90  # years: from here on a single age may name a person, and is not written
COHORT_COLUMNS = (
    "cohort",
    "source",
    "simulated",
    "synthetic",
    "use",
    "scans",
    "excluded",
    "subjects",
    "age_min",
    "age_max",
    "age_known",
    "female",
    "male",
    "sex_known",
)


def cohort_records(config: Config, results: Path) -> list[dict[str, object]]:
    """Return a row per used cohort (source `ours`), and the paper's row (source `published`) below it."""
    records: list[dict[str, object]] = []
    for cohort in used_cohorts(config):
        common = {
            "cohort": cohort_label(config, cohort),
            "simulated": is_simulated(config, cohort),
            "synthetic": is_synthetic(config, cohort),
        }
        counted = _count(results, cohort)
        records.append({**common, "source": "ours", "use": _use(config, cohort), **counted})
        if (published := published_cohort(config, cohort)) is not None:
            records.append(
                {**common, "source": "published", **{k: v for k, v in published.items() if k != "cohort"}}
            )
    return records


def _use(config: Config, cohort: str) -> str:
    uses = [
        f"pretraining {name}"
        for name in dict.fromkeys(name for name, _ in pretrained(config))
        if config.trained[name].cohort == cohort
    ]
    tasks = used_tasks(config)
    uses += [task for task in tasks if config.tasks[task].train == cohort]
    uses += [f"zero-shot {task}" for task in tasks if cohort in config.tasks[task].zero_shot]
    return ", ".join(uses)


def _count(results: Path, cohort: str) -> dict[str, object]:
    """Count the scans that were packed, and their subjects; ages are those at each scan."""
    places = (layout.STORED_SCANS, layout.EXCLUDED, layout.SUBJECTS)
    stored, left_out, people = (place.at(results, cohort=cohort) for place in places)
    if not stored.is_file():
        return {}
    packed = {row["scan_id"]: row["subject"] for row in read_tsv(stored)}
    excluded = read_tsv(left_out) if left_out.is_file() else None
    known = read_tsv(people) if people.is_file() else []
    used = [row for row in known if row["scan_id"] in packed]
    aged = {row["subject"] for row in used if row["age"] != MISSING}
    ages = [float(row["age"]) for row in used if row["age"] != MISSING]
    sexes = {row["subject"]: row["sex"] for row in used if row["sex"] in ("F", "M")}
    return {
        "scans": len(packed),
        "excluded": None if excluded is None else len(excluded),
        "subjects": len(set(packed.values())),
        "age_min": _age(min(ages, default=None)),
        "age_max": _age(max(ages, default=None)),
        "age_known": len(aged),
        "female": sum(sex == "F" for sex in sexes.values()) if sexes else None,
        "male": sum(sex == "M" for sex in sexes.values()) if sexes else None,
        "sex_known": len(sexes),
    }


def _age(years: float | None) -> float | str | None:
    return f"{OLDEST}+" if years is not None and years >= OLDEST else years


def cohort_sheet(records: Sequence[Mapping[str, object]]) -> Sheet:
    """Lay out table 2 for readers."""
    header = ("Cohort", "Source", "Use", "Scans", "Excluded", "Subjects", "Age (years)", "Sex (F/M)")
    rows = [
        [
            str(record["cohort"]),
            str(record["source"]),
            str(record.get("use", MISSING)),
            *(_number(record.get(column)) for column in ("scans", "excluded", "subjects")),
            _ages(record),
            _sexes(record),
        ]
        for record in records
    ]
    notes = [
        "Scans and subjects are those that passed preprocessing; excluded scans and their reasons are in "
        "results/cohorts/COHORT/excluded.tsv. Use names a task where the cohort is trained and tested on.",
    ]
    if any(record["synthetic"] for record in records):
        notes.append("Synthetic volumes are painted, to pretrain on only; they are of no real people.")
    if any(record["source"] == "published" for record in records):
        notes.append("published: Dhinagar et al. 2024, Table 2, as printed.")
    if any(record["source"] == "published" and record["cohort"] == "OASIS" for record in records):
        notes.append("The published OASIS row is inconsistent: 600 subjects, but 341 + 359 = 700.")
    caption = "Cohorts as used."
    if any(record["simulated"] for record in records):
        caption += " Simulated data is marked; it says nothing about real brains."
    return Sheet("table2", caption, header, rows, notes, part_breaks(rows, 1), text_columns=3)


def _number(value: object) -> str:
    text = MISSING if value is None else str(value)
    return f"{int(text):,}" if text.isdigit() else text


def _ages(record: Mapping[str, object]) -> str:
    low, high = record.get("age_min"), record.get("age_max")
    if low is None or high is None:
        return MISSING
    shown = [age if age == f"{OLDEST}+" else f"{float(str(age)):.1f}" for age in (low, high)]
    return "-".join(map(str, shown)) + _partly_known(record, "age_known")


def _sexes(record: Mapping[str, object]) -> str:
    if record.get("female") is None:
        return MISSING
    text = f"{_number(record['female'])}F/{_number(record['male'])}M"
    return text + _partly_known(record, "sex_known")


def _partly_known(record: Mapping[str, object], column: str) -> str:
    known, subjects = record.get(column), record.get("subjects")
    return "" if known is None or known == subjects else f" (of {known} subjects)"
