"""Numbers and columns of what commands print for people."""

import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 100
Table = Sequence[Sequence[str]]


def aligned(rows: Table, text_columns: int) -> Iterator[str]:
    """Yield the rows in columns, the first `text_columns` of them to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{text:<{width}}" if place < text_columns else f"{text:>{width}}"
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def wrapped(text: str, indent: str, further: str = "  ") -> list[str]:
    """Return text in lines of `WIDTH` characters; `further` is what the second and later ones begin with."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def number(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def amount(seconds: float) -> str:
    """Return seconds as hours, 0.1 at least."""
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 10 else f"{max(hours, 0.1):.1f}"
