"""Tables in all formats, for programs and for readers; apart from `sheet`, which needs no templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neuropeft.config import Config
from neuropeft.files import write_text
from neuropeft.publish.html import render
from neuropeft.publish.labels import simulated_text
from neuropeft.publish.sheet import Sheet, latex, markdown, write_csv

OWN_WORDS = ("table1", "table2", "table3", "table4")  # of no data, or they say themselves what is simulated
PARTIAL = "partial"  # the column, and the mark, of tables of some cells


@dataclass(frozen=True)
class Tables:
    """The tables of a configuration."""

    config: Config  # the configuration
    out: Path  # the folder of their files
    part: str = ""  # of which part of the cells they are, said in each of them; empty if of all

    def write(self, sheet: Sheet, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        """Write a table for readers and, as `{name}.csv`, its rows."""
        self.write_rows(sheet.name, rows, columns)
        caption = f"{PARTIAL.upper()}: {self.part}. {sheet.caption}" if self.part else sheet.caption
        if sheet.name not in OWN_WORDS:
            caption = f"{caption} {simulated_text(self.config)}".rstrip()
        write_sheet(replace(sheet, caption=caption), self.out)

    def write_rows(self, name: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        """Write `{name}.csv`."""
        marked = [{**row, PARTIAL: self.part} for row in rows] if self.part else rows
        write_csv(self.out / f"{name}.csv", marked, (*columns, PARTIAL) if self.part else columns)


def write_sheet(sheet: Sheet, out: Path) -> None:
    """Write `{name}.md`, `{name}.tex` and `{name}.html`, a page that loads nothing."""
    texts = {".md": markdown(sheet), ".tex": latex(sheet), ".html": render("page.html", sheet=sheet)}
    for suffix, text in texts.items():
        write_text(out / f"{sheet.name}{suffix}", text)
