"""Kinds of tasks, one module per kind or family: a new kind is a module, its settings and a line of KINDS."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuropeft.errors import UserError, suggest

if TYPE_CHECKING:
    from neuropeft.config import Task
    from neuropeft.tasks.base import TaskKind

# kind -> module and class
KINDS = {
    "binary": "classification.Binary",
    "multiclass": "classification.Multiclass",
    "regression": "regression.Regression",
    "multilabel": "multilabel.Multilabel",
    "segmentation": "segmentation.Segmentation",
    "generation": "generation.Generation",
}


def module_of(kind: str) -> str:
    """Return the module of a kind, below this package's name, for what depends on its code."""
    return f"tasks.{KINDS[kind].split('.')[0]}"


def modules_of(spec: Mapping[str, Any], predicts: bool = False) -> tuple[str, ...]:
    """Return the modules that train a task of this specification; if it `predicts`, those for that, too."""
    kind = of_spec(spec)
    named = (kind.learner, kind.decoder, kind.predictor if predicts else "")
    return (module_of(spec["kind"]), *filter(None, named))


def kind_of(task: "Task") -> "TaskKind":
    """Return the kind of a configured task."""
    return task_kind(task.kind, task.size, task.told)


def of_spec(spec: Mapping[str, Any]) -> "TaskKind":
    """Return the kind of a task that `config.tasks` has specified."""
    return task_kind(spec["kind"], int(spec["size"]), spec.get("told", ""))


@cache
def task_kind(kind: str, size: int, told: str = "") -> "TaskKind":
    """Return a kind of task.

    `size` is how many classes, labels or regions it tells apart, 0 for values; `told` is what else its
    settings say, as JSON.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"task kind {kind!r} is unknown; {suggest(kind, KINDS)}")
    module, name = KINDS[kind].split(".")
    return getattr(import_module(f"neuropeft.tasks.{module}"), name)(size, told)
