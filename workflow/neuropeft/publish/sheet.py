"""A table for readers, rendered as Markdown and as LaTeX, and tidy rows as CSV; `formats` has HTML."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuropeft.files import MISSING, atomic_path

WIDE = 9  # a table of more columns does not fit on an upright page


@dataclass(frozen=True)
class Sheet:
    """A table as text."""

    name: str  # file name without suffix, such as `table1`
    caption: str  # what it shows; one paragraph
    header: Sequence[str]  # column names; a line break makes a second line where the format has one
    rows: Sequence[Sequence[str]]  # cells, as many per row as the header has
    notes: Sequence[str] = ()  # what a reader must know to read it
    breaks: frozenset[int] = frozenset()  # indices of rows that begin a new part
    text_columns: int = 1  # number of leading columns that hold text and are aligned left

    @property
    def title(self) -> str:
        """Its name as a heading."""
        return self.name.replace("table", "table ").replace("_", " ").capitalize()

    @property
    def sortable(self) -> bool:
        """Whether each row says all of itself, so that rows may be in any order."""
        return all(row[0] for row in self.rows)


def markdown(sheet: Sheet) -> str:
    """Return the table as GitHub-flavoured Markdown."""
    marks = [":--" if index < sheet.text_columns else "--:" for index in range(len(sheet.header))]
    header = [name.replace("\n", " ") for name in sheet.header]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *sheet.rows)]
    table = ["| " + " | ".join(row) + " |" for row in (lines[0], marks, *lines[1:])]
    return (
        "\n".join(
            [f"**{sheet.title}: {sheet.caption}**", "", *table, "", *(f"- {note}" for note in sheet.notes)]
        )
        + "\n"
    )


def latex(sheet: Sheet) -> str:
    """Return the table as a LaTeX float, turned on its side if wide.

    It needs the packages booktabs, graphicx and rotating.
    """
    float_name = "sidewaystable" if len(sheet.header) > WIDE else "table*"
    columns = "l" * sheet.text_columns + "r" * (len(sheet.header) - sheet.text_columns)
    lines = [
        "% needs the packages booktabs, graphicx and rotating",
        rf"\begin{{{float_name}}}",
        r"\centering",
        rf"\caption{{{escape_latex(sheet.caption)}}}",
        rf"\label{{tab:{sheet.name}}}",
        # Wide tables shrink to the width of the page, narrow ones keep their size.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *_latex_header(sheet.header),
        r"\midrule",
    ]
    for index, row in enumerate(sheet.rows):
        if index in sheet.breaks and index:
            lines.append(r"\midrule")
        lines.append(_latex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if sheet.notes:
        lines += [r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [escape_latex(note) + r"\par" for note in sheet.notes]
        lines.append(r"\end{minipage}")
    return "\n".join([*lines, rf"\end{{{float_name}}}"]) + "\n"


def _latex_header(header: Sequence[str]) -> list[str]:
    pairs = [name.partition("\n") for name in header]
    if not any(second for _, _, second in pairs):
        return [_latex_row(header)]
    # Names of one line stand on the lower one, next to the rule.
    upper = [first if second else "" for first, _, second in pairs]
    lower = [second or first for first, _, second in pairs]
    return [_latex_row(upper), _latex_row(lower)]


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: "\\" + character for character in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Return `text` with LaTeX's special characters escaped, and a leading `[` (it would be an option)."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return "{" + escaped + "}" if escaped.startswith("[") else escaped


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write tidy rows atomically; None and NaN become `n/a`, as in every table of the project."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_value(row.get(column)) for column in columns] for row in rows)


def _value(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value
