"""Which files of this package a stage's result depends on, read from its import statements.

Snakemake does not track the code of an imported package. Rules declare these files as inputs, so a changed
module makes exactly the stages that import it run again.
"""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def sources(*modules: str) -> list[str]:
    """Return the paths of the named modules and of all modules of this package that they import.

    Args:
        modules: dotted names without the package's, such as `train.finetune`.
    """
    found: set[Path] = set()
    waiting = [source(module) for module in modules]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return sorted(map(str, found))


def source(module: str) -> Path:
    """Return the path of one module alone, for a stage that uses only some of what it imports."""
    base = PACKAGE.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def _imports(path: Path) -> list[Path]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from neuropeft.models import vit3d` names a module, `from neuropeft.grid import Cell` does not.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        inside = (name.removeprefix("neuropeft.") for name in names if name.startswith("neuropeft."))
        found += [path for path in map(source, inside) if path.is_file()]
    return found
