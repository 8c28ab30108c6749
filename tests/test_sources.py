"""Rules depend on the modules that their result depends on, and on no others."""

from pathlib import Path

from neuropeft.sources import PACKAGE, sources


def _names(*modules):
    return {str(Path(path).relative_to(PACKAGE)) for path in sources(*modules)}


def test_a_stage_depends_on_what_it_imports_and_on_what_that_imports():
    names = _names("train.finetune")
    assert {"train/finetune.py", "peft/lora.py", "models/vit3d.py", "store.py", "errors.py"} <= names


def test_a_stage_does_not_depend_on_verbs_figures_or_preprocessing():
    names = _names("train.finetune")
    assert "cli.py" not in names
    assert not any(name.startswith(("publish/", "preprocess/", "evaluate/")) for name in names)


def test_a_package_is_its_init_file():
    assert _names("cohorts") == {"cohorts/__init__.py"}
