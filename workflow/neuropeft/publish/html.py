"""HTML from the templates in `templates`: pages of tables, and the report."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_NUMBER = re.compile(
    r"[<>]? ?([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)"
)  # what a cell such as `0.86 (0.02)` begins with


def render(template: str, **values: Any) -> str:
    """Return a template filled in; all text is escaped but what the template marks as safe."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("neuropeft.publish"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sort_key"] = sort_key
    return environment


def sort_key(text: str) -> str:
    """Return what a cell of numbers is sorted by: the first one; empty, which comes first, without one."""
    found = _NUMBER.match(text)
    return found[1].replace(",", "").lstrip("+") if found else ""
