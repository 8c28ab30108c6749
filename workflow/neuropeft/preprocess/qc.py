"""The QC page of a cohort: what the numbers say, which scans stand out, and how the brains look.

Pictures show masked brains on the template grid only, so no face.
"""

import base64
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from neuropeft.files import MISSING, atomic_path, write_tsv
from neuropeft.preprocess.io import read_own
from neuropeft.preprocess.measures import NUMBERS
from neuropeft.preprocess.store import read_chunks
from neuropeft.preprocess.template import SHAPE, mni152_brain, mni152_mask

Row = dict[str, str]

QC_COLUMNS = ("scan_id", "subject", "session", *NUMBERS, "flags")
OUTLIER = 3.5  # modified z-score, the limit of Iglewicz and Hoaglin 1993, How to detect and handle outliers
SMALLEST_COHORT = 8  # scans: a median of fewer says nothing about outliers
LOW_ONLY = ("template_correlation", "template_overlap")  # a good fit is no outlier
SHOWN = 6  # scans in each montage
# Slices through ventricles, basal ganglia, temporal lobes and the midline.
SLICES = ((2, 36), (2, 50), (1, 50), (1, 66), (0, 47), (0, 62))
TISSUE_LEVEL = 0.62  # template intensity between grey and white matter, fractions of its brightest


def write_qc(tables: Sequence[str | Path], table: str | Path, page: str | Path, title: str) -> None:
    """Write the QC table and the QC page of a cohort.

    Args:
        tables: the cohort's chunk tables after the last step.
        table: qc.tsv, a row per scan that did not fail.
        page: index.html, one file with its pictures inside.
        title: name of the cohort.
    """
    rows = read_chunks(tables)
    failed = [row for row in rows if row["status"] == "failed"]
    kept = [row for row in rows if row["status"] == "ok"]
    scores = outlier_scores({name: [float(row[name]) for row in kept] for name in NUMBERS})
    flags = [[name for name in NUMBERS if scores[name][index] > OUTLIER] for index in range(len(kept))]
    flagged = [{**row, "flags": ",".join(names) or MISSING} for row, names in zip(kept, flags, strict=True)]
    write_tsv(table, flagged, QC_COLUMNS)
    with atomic_path(page) as partial:
        partial.write_text(_page(title, flagged, failed, scores), encoding="utf-8")


def outlier_scores(numbers: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Score how far every scan lies from its cohort, per number.

    The score is the modified z-score 0.6745 |x - median| / MAD; it is infinite outside the plausible range
    of `measures.NUMBERS`, and 0 inside it in a cohort too small to have outliers.

    Returns:
        {number: [scans]}; above `OUTLIER` is an outlier.
    """
    scores = {}
    for name, values in numbers.items():
        x = np.asarray(values, float)
        low, high = NUMBERS[name][1]
        score = np.zeros(len(x))
        if len(x) >= SMALLEST_COHORT:
            away = x - np.median(x)
            spread = np.median(np.abs(away))
            # Equal values but for rounding (the shear, simulated heads) have no outliers.
            if spread > 1e-6 * max(1e-3, abs(float(np.median(x)))):
                score = 0.6745 * (np.maximum(-away, 0) if name in LOW_ONLY else np.abs(away)) / spread
        scores[name] = np.where((x < low) | (x > high) | ~np.isfinite(x), np.inf, score)
    return scores


def draw_montage(volumes: Mapping[str, np.ndarray]) -> Any:
    """Draw brains slice by slice with the template's outline and its border of grey and white matter.

    Args:
        volumes: {caption: [91, 109, 91] brain on the template grid}.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    template, inside = np.asarray(mni152_brain().dataobj), mni152_mask()
    rows, columns = len(volumes), len(SLICES)
    figure = Figure(figsize=(1.75 * columns, 2.0 * rows), facecolor="black")
    axes = figure.subplots(rows, columns, squeeze=False)
    for line, (caption, volume) in zip(axes, volumes.items(), strict=True):
        top = np.quantile(volume[volume != 0], 0.99)
        for axis, (direction, index) in zip(line, SLICES, strict=True):
            axis.imshow(_slice(volume, direction, index), cmap="gray", vmin=0, vmax=top, origin="lower")
            outline = _slice(inside.astype(np.float32), direction, index)
            axis.contour(outline, [0.5], colors="#ffcc33", linewidths=0.9)
            axis.contour(_slice(template, direction, index), [TISSUE_LEVEL], colors="#33ccff", linewidths=0.5)
            axis.axis("off")
            if direction != 0:
                axis.text(0.02, 0.5, "L", color="white", fontsize=7, transform=axis.transAxes)
        line[0].set_title(caption, color="white", fontsize=9, loc="left")
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.22 / (2.0 * rows), wspace=0.02, hspace=0.16)
    return figure


def _slice(volume: np.ndarray, direction: int, index: int) -> np.ndarray:
    """Return a slice for imshow with origin below: superior or anterior is up, left is left."""
    return np.take(volume, index, axis=direction).T


def _draw_distributions(rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> Any:
    from matplotlib.figure import Figure

    names = [name for name in NUMBERS if name != "shear"]  # 0 by construction; the table has it
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
        axis.set_title(NUMBERS[name][0], fontsize=9, loc="left", pad=2)
        axis.tick_params(labelsize=8)
        axis.spines[["left", "right", "top"]].set_visible(False)
    return figure


# -- the page --------------------------------------------------------------------------------------

STYLE = """body{font:15px/1.45 sans-serif;max-width:1150px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}
td,th{padding:3px 9px;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}.bad{color:#cc3311;font-weight:bold}"""


def _page(title: str, rows: Sequence[Row], failed: Sequence[Row], scores: Mapping[str, np.ndarray]) -> str:
    worst, others = _choose(rows, scores)
    flagged = [row for row in rows if row["flags"] != MISSING]
    parts = [
        f"<h1>Preprocessing of {escape(title)}</h1>",
        f"<p>{len(rows)} scans preprocessed, {len(flagged)} of them flagged; {len(failed)} failed.</p>",
        "<p>A scan is flagged where a number lies far from its cohort's median (modified z-score above "
        f"{OUTLIER}) or is implausible for a head. A flagged scan is still used: look at it, and remove it "
        "from the cohort if it is bad.</p>",
    ]
    if failed:
        shown = [{**row, "reason": _without_folder(row)} for row in failed]
        parts += ["<h2>Failed scans</h2>", _table(shown, ("scan_id", "step", "reason"))]
    if rows:
        if flagged:
            parts += ["<h2>Flagged scans</h2>", _flag_table(flagged)]
        parts += ["<h2>Distributions</h2>", _picture(_draw_distributions(rows, scores))]
        legend = (
            "<p>Brain on the template grid. Yellow: outline of the template's brain; blue: its border of "
            "grey and white matter. Left is left.</p>"
        )
        parts += [f"<h2>The {len(worst)} scans that stand out most</h2>", legend, _montage(worst)]
        if others:
            parts += [f"<h2>{len(others)} scans chosen at random</h2>", _montage(others)]
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


def _choose(rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> tuple[list[Row], list[Row]]:
    """Return the scans that stand out most and some of the others, always the same ones."""
    badness = np.max([scores[name] for name in NUMBERS], axis=0)
    fit = np.array([float(row["template_correlation"]) for row in rows])
    order = np.lexsort((fit, -badness))  # the worst fit first among equals
    worst, rest = order[:SHOWN], sorted(order[SHOWN:])
    random_ones = sorted(random.Random(0).sample(rest, min(SHOWN, len(rest))))
    return [rows[index] for index in worst], [rows[index] for index in random_ones]


def _montage(rows: Sequence[Row]) -> str:
    volumes = {}
    for row in rows:
        volume = np.asarray(read_own(row["preproc"]).dataobj)
        assert volume.shape == SHAPE, f"{row['preproc']} is not on the template grid"
        note = f"   flagged: {row['flags'].replace(',', ', ')}" if row["flags"] != MISSING else ""
        volumes[f"{row['scan_id']}   correlation {float(row['template_correlation']):.2f}{note}"] = volume
    return _picture(draw_montage(volumes))


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _flag_table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ("scan", *(what for what, _ in NUMBERS.values())))
    lines = []
    for row in rows:
        flags = row["flags"].split(",")
        cells = (
            f"<td{' class=bad' if name in flags else ''}>{float(row[name]):.3g}</td>" for name in NUMBERS
        )
        lines.append(f"<tr><td>{escape(row['scan_id'])}</td>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _table(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = (
        "<tr>" + "".join(f"<td>{escape(row[column])}</td>" for column in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
