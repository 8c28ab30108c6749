"""Which files of this package a stage's result depends on, read from its import statements.

Snakemake does not track the code of an imported package. Rules declare these files as inputs, so a changed
module makes exactly the stages that import it run again.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# They say where each kind is; whoever uses a kind names its module, and a new kind makes no other run again.
TABLES = {PACKAGE / place / "__init__.py" for place in ("backbones", "methods")}
IMPORT = re.compile(r"^ *from neuropeft((?:\.\w+)*) import (\([^)]*\)|.*)$", re.MULTILINE)  # at any depth


def sources(*modules: str) -> list[str]:
    """Return the paths of the named modules and of all modules of this package that they import.

    Args:
        modules: dotted names without the package's, such as `train.finetune`.
    """
    found: set[Path] = set()
    waiting = [source(module) for module in modules]
    while waiting:
        path = waiting.pop()
        if path not in found | TABLES:
            found.add(path)
            waiting += _imports(path)
    return sorted(map(str, found))


def source(module: str) -> Path:
    """Return the path of one module alone, for a stage that uses only some of what it imports."""
    base = PACKAGE.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def code_digest(*modules: str) -> str:
    """Return a hash of the code of the named modules and of all modules of this package that they import."""
    digest = hashlib.sha256()
    for path in sources(*modules):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


@cache
def _imports(path: Path) -> list[Path]:
    names: list[str] = []
    for module, imported in IMPORT.findall(path.read_text(encoding="utf-8")):
        # `from neuropeft.backbones import vit` names a module, `from neuropeft.grid import Cell` does not.
        names += [module, *(f"{module}.{name}" for name in re.findall(r"\w+", imported))]
    return [file for name in names if (file := source(name.lstrip("."))).is_file()]
