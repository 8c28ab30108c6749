"""The QC page of a cohort: what the numbers say, which scans stand out, and how the brains look.

A kind of input says which numbers count and draws its pictures.
"""

import base64
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from neuropeft.files import MISSING, write_text, write_tsv
from neuropeft.inputs.base import InputKind, Number
from neuropeft.inputs.steps import read_chunks

Row = dict[str, str]

OUTLIER = 3.5  # modified z-score, the limit of Iglewicz and Hoaglin 1993, How to detect and handle outliers
SMALLEST_COHORT = 8  # scans: a median of fewer says nothing about outliers


def write_qc(
    kind: InputKind, tables: Sequence[str | Path], table: str | Path, page: str | Path, title: str
) -> None:
    """Write the QC table and the QC page of a cohort.

    `tables` are those of the chunks after the last step; `table` has a row per scan that did not fail.
    """
    rows = read_chunks(tables)
    failed = [row for row in rows if row["status"] == "failed"]
    kept = [row for row in rows if row["status"] == "ok"]
    values = {name: [float(row[name]) for row in kept] for name in kind.numbers}
    scores = outlier_scores(kind.numbers, values)
    flags = [[name for name in kind.numbers if scores[name][index] > OUTLIER] for index in range(len(kept))]
    flagged = [{**row, "flags": ",".join(names) or MISSING} for row, names in zip(kept, flags, strict=True)]
    write_tsv(table, flagged, ("scan_id", "subject", "session", *kind.numbers, "flags"))
    write_text(page, _page(kind, title, flagged, failed, scores))


def outlier_scores(
    numbers: Mapping[str, Number], values: Mapping[str, Sequence[float]]
) -> dict[str, np.ndarray]:
    """Score how far every scan lies from its cohort, per number.

    The score is the modified z-score 0.6745 |x - median| / MAD; it is infinite outside the plausible range
    of a number, and 0 inside it in a cohort too small to have outliers.

    Returns:
        {number: [scans]}; above `OUTLIER` is an outlier.
    """
    scores = {}
    for name, of_scans in values.items():
        x = np.asarray(of_scans, float)
        _, low, high, low_only, _ = numbers[name]
        score = np.zeros(len(x))
        if len(x) >= SMALLEST_COHORT:
            away = x - np.median(x)
            spread = np.median(np.abs(away))
            # Equal values but for rounding (the shear, simulated heads) have no outliers.
            if spread > 1e-6 * max(1e-3, abs(float(np.median(x)))):
                score = 0.6745 * (np.maximum(-away, 0) if low_only else np.abs(away)) / spread
        scores[name] = np.where((x < low) | (x > high) | ~np.isfinite(x), np.inf, score)
    return scores


def _draw_distributions(kind: InputKind, rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> Any:
    from matplotlib.figure import Figure

    names = [name for name, number in kind.numbers.items() if number.drawn]
    figure = Figure(figsize=(11, 1.05 * len(names)), layout="constrained")
    for axis, name in zip(figure.subplots(len(names), 1), names, strict=True):
        values = np.array([float(row[name]) for row in rows])
        outlying = scores[name] > OUTLIER
        height = np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
        height[outlying] = np.resize((0.3, -0.3, 0.0), np.count_nonzero(outlying))  # keeps their names apart
        size = 14 if len(values) < 1000 else 3
        axis.scatter(values[~outlying], height[~outlying], s=size, color="#4477aa", alpha=0.6, linewidths=0)
        axis.scatter(values[outlying], height[outlying], s=26, color="#cc3311", marker="x")
        for index in np.nonzero(outlying)[0][:5]:
            axis.annotate(
                rows[index]["scan_id"],
                (values[index], height[index]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
                color="#cc3311",
            )
        if len(values):
            axis.axvline(float(np.median(values)), color="black", linewidth=0.8)
        axis.set(yticks=[], ylim=(-0.6, 0.6))
        axis.set_title(kind.numbers[name].label, fontsize=9, loc="left", pad=2)
        axis.tick_params(labelsize=8)
        axis.spines[["left", "right", "top"]].set_visible(False)
    return figure


# -- the page --------------------------------------------------------------------------------------

STYLE = """body{font:15px/1.45 sans-serif;max-width:1150px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}
td,th{padding:3px 9px;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}.bad{color:#cc3311;font-weight:bold}"""


def _page(
    kind: InputKind,
    title: str,
    rows: Sequence[Row],
    failed: Sequence[Row],
    scores: Mapping[str, np.ndarray],
) -> str:
    worst, others = _choose(kind, rows, scores)
    flagged = [row for row in rows if row["flags"] != MISSING]
    parts = [
        f"<h1>Preprocessing of {escape(title)}</h1>",
        f"<p>{len(rows)} scans preprocessed, {len(flagged)} of them flagged; {len(failed)} failed.</p>",
        "<p>A scan is flagged where a number lies far from its cohort's median (modified z-score above "
        f"{OUTLIER}) or is implausible. A flagged scan is still used: look at it, and remove it "
        "from the cohort if it is bad.</p>",
    ]
    if failed:
        shown = [{**row, "reason": _without_folder(row)} for row in failed]
        parts += ["<h2>Failed scans</h2>", _table(shown, ("scan_id", "step", "reason"))]
    if rows:
        if flagged:
            parts += ["<h2>Flagged scans</h2>", _flag_table(kind, flagged)]
        parts += ["<h2>Distributions</h2>", _picture(_draw_distributions(kind, rows, scores))]
        legend = f"<p>{kind.legend}</p>"
        parts += [f"<h2>The {len(worst)} scans that stand out most</h2>", legend, _montage(kind, worst)]
        if others:
            parts += [f"<h2>{len(others)} scans chosen at random</h2>", _montage(kind, others)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>QC of {escape(title)}</title>'
        f"<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def _without_folder(row: Row) -> str:
    """Return why a scan failed, without where it and its mask lie: pages are shown to others."""
    reason = row["reason"]
    for path in {row["path"], row["mask"]} - {MISSING}:
        reason = reason.replace(path, Path(path).name)
    return reason


def _choose(
    kind: InputKind, rows: Sequence[Row], scores: Mapping[str, np.ndarray]
) -> tuple[list[Row], list[Row]]:
    """Return the scans that stand out most and some of the others, always the same ones."""
    badness = np.max([scores[name] for name in kind.numbers], axis=0)
    fit = np.array([float(row[kind.fit]) for row in rows])
    order = np.lexsort((fit, -badness))  # the worst fit first among equals
    worst, rest = order[: kind.shown], sorted(order[kind.shown :])
    random_ones = sorted(random.Random(0).sample(rest, min(kind.shown, len(rest))))
    return [rows[index] for index in worst], [rows[index] for index in random_ones]


def _montage(kind: InputKind, rows: Sequence[Row]) -> str:
    captions = {}
    for row in rows:
        note = f"   flagged: {row['flags'].replace(',', ', ')}" if row["flags"] != MISSING else ""
        captions[f"{row['scan_id']}   {kind.fit_label} {float(row[kind.fit]):.2f}{note}"] = row
    return _picture(kind.montage(captions))


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _flag_table(kind: InputKind, rows: Sequence[Row]) -> str:
    titles = ("scan", *(number.label for number in kind.numbers.values()))
    head = "".join(f"<th>{escape(text)}</th>" for text in titles)
    lines = []
    for row in rows:
        flags = row["flags"].split(",")
        cells = (
            f"<td{' class=bad' if name in flags else ''}>{float(row[name]):.3g}</td>" for name in kind.numbers
        )
        lines.append(f"<tr><td>{escape(row['scan_id'])}</td>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _table(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = (
        "<tr>" + "".join(f"<td>{escape(row[column])}</td>" for column in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
