"""The environments, the lock and the project's own requirements agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def _name(requirement):
    return re.split(r"[<>=!\[ ]", requirement)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "the lock pins each package to one version"
    return {_name(name): version for name, version in pins}


@pytest.mark.parametrize("path", sorted(ROOT.glob("envs/*.yaml")), ids=lambda path: path.stem)
def test_environment_pins_agree_with_the_lock(path, lock):
    packages = next(
        item for item in yaml.safe_load(path.read_text())["dependencies"] if isinstance(item, dict)
    )
    for requirement in packages["pip"]:
        name, version = requirement.split("==")
        assert lock[_name(name)] == version


@pytest.mark.parametrize("recipe", ["neuropeft.def", "Dockerfile"])
def test_images_are_built_from_the_lock_and_nothing_else(recipe):
    text = (ROOT / "envs" / recipe).read_text()
    assert re.findall(r"pip install (.*)", text) == ["--no-cache-dir --requirement /opt/requirements.lock"]
    assert "requirements.lock /opt/requirements.lock" in text
    assert "python:3.11" in text


def test_the_lock_holds_every_requirement(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not [requirement for requirement in required if _name(requirement) not in lock]


def test_every_rule_names_an_environment_that_exists():
    named = set()
    for path in ROOT.glob("workflow/rules/*.smk"):
        named |= {(path.parent / env).resolve() for env in re.findall(r'conda:\s+"(.+?)"', path.read_text())}
    assert named == {path.resolve() for path in ROOT.glob("envs/*.yaml")}
