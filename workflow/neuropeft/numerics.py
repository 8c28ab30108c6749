"""The version of the code that a result depends on, whatever its words are.

Snakemake does not track the code of an imported package. Rules have the version of their stage's modules as
a parameter, so that a changed loss runs again what used it, and a typo in an error, a docstring or a comment
runs nothing.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# What changes no result: what is written about them, where they lie, what people are told meanwhile, and how
# jobs take turns or are interrupted. Another look of progress trains nothing anew.
BOOKKEEPING = {"records.py", "peaks.py", "errors.py", "layout.py", "numerics.py", "progress.py"} | {
    f"train/{name}.py" for name in ("state", "lease", "lock", "signals", "slurm")
}
SENTENCE = re.compile(
    r"[A-Za-z]{2,}[,;:]? [A-Za-z({`']"
)  # what people read; keys, names and seeds have no words


@cache  # thousands of jobs ask for few of them
def version(*modules: str) -> str:
    """Return a hash of the code of the named modules and of all modules of this package that they import.

    Without comments, docstrings, annotations, sentences, and what is raised or printed. Packages' `__init__`
    modules count by what they import: they hold tables of names, and a new name changes no result.

    Args:
        modules: dotted names without the package's, such as `train.finetune`.
    """
    digest = hashlib.sha256()
    for path in sorted(dependencies(*modules)):
        if path.name != "__init__.py" and str(path.relative_to(PACKAGE)) not in BOOKKEEPING:
            digest.update(_meaning(_text(path)).encode())
    return digest.hexdigest()[:16]


def dependencies(*modules: str) -> set[Path]:
    """Return the files of the named modules and of all modules of this package that they import."""
    found: set[Path] = set()
    waiting = [_path(module) for module in modules]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(_text(path))
    return found


def _path(module: str) -> Path:
    base = PACKAGE.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _imports(text: str) -> list[Path]:
    names: list[str] = []
    for node in _run(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            module = (node.module or "").partition(".")[2]
            # `from neuropeft.backbones import vit` names a module, `import Cell` from a module does not.
            names += [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
    return [file for name in names if name and (file := _path(name)).is_file()]


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of code that runs: not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _run(node)


@cache
def _meaning(text: str) -> str:
    return ast.dump(_WithoutWords().visit(ast.parse(text)))


class _WithoutWords(ast.NodeTransformer):
    """Drops what no result depends on."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Drop docstrings and prints."""
        value = node.value
        printed = (
            isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
        )
        return ast.Pass() if printed or isinstance(value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep that something is raised, not what it says."""
        return ast.Raise()

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Drop sentences."""
        is_sentence = isinstance(node.value, str) and SENTENCE.search(node.value)
        return ast.Constant("") if is_sentence else node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Drop annotations."""
        return ast.arg(node.arg)
