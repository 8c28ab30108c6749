"""The README's examples of new kinds work as they stand: each passes the conformance suite of its place."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_command import ROOT

pytestmark = pytest.mark.slow

SECTION = re.search(
    r"^## Add your own\n(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)[1]
FILES = re.findall(
    r"```python\n# (\S+)\n(.*?)```", SECTION, re.DOTALL
)  # path, text: a module and its settings
# place -> the settings' union, the table's head, its line, and where the suite lists it
PLACES = {
    "methods": (
        "Selective = ",
        "MODULES = {",
        '"NAME": "methods.NAME",',
        "kinds.py",
        "METHODS = [",
        '{"kind": "NAME"},',
    ),
    "backbones": (
        *("Backbone = Annotated[", "MODULES = {", '"NAME": "backbones.NAME",'),
        *("kinds.py", "BACKBONES = [", '{"kind": "NAME"},'),
    ),
    "tasks": (
        *("Task = Annotated[", "KINDS = {", '"NAME": "NAME.CLASS",'),
        *("tiny_cells.py", "TASKS: dict[str, tuple[int, Callable[[float, float], Any]]] = {"),
        '"NAME": (0, lambda a, b: 60 + 10 * a),',
    ),
}


def insert(path, where, text, after=True):
    """Put text after, or before, the only occurrence of `where` in a file."""
    whole = path.read_text()
    assert whole.count(where) == 1, f"{path} has {where!r} not once"
    path.write_text(whole.replace(where, where + text if after else text + where))


@pytest.mark.parametrize("place", PLACES)
def test_the_example_of_a_place_passes_its_suite(place, tmp_path):
    for part in ("workflow/neuropeft", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (path, module), (settings, klass) = [file for file in FILES if place in file[0]]
    name, package = Path(path).stem, tmp_path / "workflow/neuropeft"
    union, table, line, suite, listed, entry = PLACES[place]
    (tmp_path / path).write_text(module)
    class_name = re.search(r"class (\w+)", module)[1]
    insert(tmp_path / settings, f"\n{union}", klass + "\n", after=False)
    insert(tmp_path / settings, f"\n{union}", re.search(r"class (\w+)", klass)[1] + " | ")
    insert(
        package / place / "__init__.py",
        table,
        "\n    " + line.replace("NAME", name).replace("CLASS", class_name),
    )
    insert(tmp_path / "tests" / suite, listed, entry.replace("NAME", name))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            name,
            f"tests/test_{place}.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/workflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 2, done.stdout
