"""The environments, the lock and the project's own requirements agree."""

import ast
import importlib
import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import planned
from neuropeft import numerics
from neuropeft.tasks.base import TaskKind
from neuropeft.tasks.generation import Generation
from neuropeft.tasks.segmentation import Segmentation

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"  # of the environments and the images


def _name(requirement):
    return re.split(r"[<>=!\[ ]", requirement)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert "    --hash=sha256:" in lines[2], "pip checks what it installs"
    pins = [line.removesuffix(" \\").split("==") for line in lines if line and line[0] not in "# "]
    assert all(len(pin) == 2 for pin in pins), "the lock pins each package to one version"
    return {_name(name): version.split(" ;")[0] for name, version in pins}


@pytest.mark.parametrize("path", sorted(ROOT.glob("envs/*.yaml")), ids=lambda path: path.stem)
def test_environment_pins_agree_with_the_lock(path, lock):
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    assert f"python={PYTHON}" in dependencies
    packages = next(item for item in dependencies if isinstance(item, dict))
    for requirement in packages["pip"]:
        name, version = requirement.split("==")
        assert lock[_name(name)] == version


@pytest.mark.parametrize("recipe", ["neuropeft.def", "Dockerfile"])
def test_images_are_built_from_the_lock_and_nothing_else(recipe, lock):
    text = (ROOT / "envs" / recipe).read_text()
    locked, cuda = re.findall(r"pip install --no-cache-dir ([^#\\\n]*[^#\\\n ])", text)
    assert locked == "--require-hashes --no-deps --requirement /opt/requirements.lock"
    assert cuda == f"torch=={lock['torch']}", "what its wheel pins, which is no part of the lock"
    assert "requirements.lock /opt/requirements.lock" in text
    assert f"python:{PYTHON}" in text
    assert recipe == "neuropeft.def" or text.endswith("USER neuropeft\n"), "Docker runs it as root otherwise"


APPTAINER = ("--software-deployment-method", "apptainer")


def test_every_command_has_an_environment_and_the_image_that_the_recipe_tells_how_to_build(tmp_path):
    built = re.search(r"apptainer build (\S+)", (ROOT / "envs/neuropeft.def").read_text())[1]
    workflow = planned.read(
        tmp_path, "--configfile", ROOT / "tests/tiny.yaml", "--mode", "subprocess", *APPTAINER
    )
    commands = [rule for rule in workflow.rules if rule.shellcmd]
    assert [rule.name for rule in commands if not rule.conda_env] == []
    assert {rule.container_img for rule in commands} == {str(ROOT / built)}


def test_the_lock_holds_every_requirement(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not [requirement for requirement in required if _name(requirement) not in lock]


@pytest.mark.parametrize(
    ("found", "left"), [("6746dbcb", 1), ("092790c6", 1), ("other", 13)], ids=["cpu", "cuda", "unknown"]
)
def test_of_torch_the_build_that_pip_finds_is_left(monkeypatch, capsys, found, left):
    text = (ROOT / "requirements.lock").read_text()
    (hashed,) = re.findall(rf"--hash=sha256:{found}\w+", text) or [f"--hash=sha256:{found}"]
    monkeypatch.syspath_prepend(ROOT / "envs")
    lock_here = importlib.import_module("lock_here")
    monkeypatch.setattr(lock_here, "hash_found", lambda requirement: hashed)
    lock_here.main()
    before, torch = capsys.readouterr().out.split("torch==")
    assert before == text.split("torch==")[0], "all else stays"
    assert torch.count("--hash") == left


@pytest.mark.parametrize("archive", [{"hash": "sha256=abc"}, {"hashes": {"sha256": "abc"}}])
def test_pips_report_is_read_as_old_and_new_ones_write_it(monkeypatch, archive):
    monkeypatch.syspath_prepend(ROOT / "envs")
    lock_here = importlib.import_module("lock_here")
    said = json.dumps({"install": [{"download_info": {"archive_info": archive}}]})
    monkeypatch.setattr(lock_here.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert lock_here.hash_found("torch") == "--hash=sha256:abc"


def test_every_rule_names_an_environment_that_exists():
    named = set()
    for path in ROOT.glob("workflow/rules/*.smk"):
        named |= {(path.parent / env).resolve() for env in re.findall(r'conda:\s+"(.+?)"', path.read_text())}
    assert named == {path.resolve() for path in ROOT.glob("envs/*.yaml")}


RULE = re.compile(r"^(?:use )?rule (\w+).*?(?=^(?:use )?rule |\Z)", re.MULTILINE | re.DOTALL)
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ants": "antspyx",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "SimpleITK": "simpleitk",
}
# `skull_strip: hd-bet` and tasks that draw images want them, and say how to install them.
OPTIONAL = {"HD_BET", "diffusers", "transformers"}


def _imported(code):
    """Return the modules that some code imports, `package.module` for `from package import module` too."""
    for node in numerics._run(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


VERBS = {
    node.name.replace("_", "-"): [
        name.removeprefix("neuropeft.")
        for name in _imported(ast.unparse(node))
        if name.startswith("neuropeft.")
    ]
    for path in ROOT.glob("workflow/neuropeft/verbs*.py")
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef)
}


def _rules():
    """Yield each rule that calls a verb, its environment and the modules that the verb imports."""
    for path in ROOT.glob("workflow/rules/*.smk"):
        for rule in RULE.finditer(path.read_text()):
            env, verb = (re.search(key, rule[0]) for key in (r'conda:\s+"(.+?)"', r"-m neuropeft ([\w-]+)"))
            if env and verb:
                yield rule[1], env[1], VERBS[verb[1]]


@pytest.mark.parametrize(("rule", "env", "modules"), list(_rules()), ids=lambda value: str(value)[:30])
def test_an_environment_has_what_its_rules_import(rule, env, modules):
    packages = next(
        item
        for item in yaml.safe_load((ROOT / "envs" / Path(env).name).read_text())["dependencies"]
        if isinstance(item, dict)
    )
    there = {_name(requirement) for requirement in packages["pip"]}
    files = numerics.dependencies(*(name for name in modules if numerics._path(name).is_file()))
    if rule == "controls":
        files |= numerics.dependencies(TaskKind.controls, Generation.controls)
    assert files
    if rule in ("finetune", "predict"):  # which find a kind's modules by their names
        files |= numerics.dependencies(Segmentation.learner, Segmentation.decoder, Generation.learner)
    imported = {
        name.split(".")[0]
        for path in files
        for name in _imported(path.read_text())
        # A kind of task imports torch where it is trained, and nowhere else.
        if not (path.parent.name == "tasks" and name.startswith("torch"))
    }
    foreign = imported - set(sys.stdlib_module_names) - OPTIONAL - {"neuropeft"}
    assert {_name(DISTRIBUTIONS.get(name, name)) for name in foreign} <= there, rule


def test_the_rules_of_every_environment_were_looked_at():
    assert {Path(env).name for _, env, _ in _rules()} == {path.name for path in ROOT.glob("envs/*.yaml")}
