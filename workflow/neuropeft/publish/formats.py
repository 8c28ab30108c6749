"""A table for readers in all of its formats; apart from `sheet`, which needs no templates."""

from pathlib import Path

from neuropeft.files import atomic_path
from neuropeft.publish.html import render
from neuropeft.publish.sheet import Sheet, latex, markdown


def write_sheet(sheet: Sheet, out: Path) -> None:
    """Write `{name}.md`, `{name}.tex` and `{name}.html`, a page that loads nothing.

    Args:
        sheet: the table.
        out: the folder of its files.
    """
    texts = {".md": markdown(sheet), ".tex": latex(sheet), ".html": render("page.html", sheet=sheet)}
    for suffix, text in texts.items():
        with atomic_path(out / f"{sheet.name}{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")
