"""How cohorts, seeds and metrics are called in tables, figures and the summary."""

from neuropeft.config import Config, Task
from neuropeft.grid import used_cohorts
from neuropeft.tasks import kind_of


def cohort_label(config: Config, cohort: str) -> str:
    """Return the cohort's name, and that it is simulated or synthetic if it is."""
    if is_synthetic(config, cohort):
        return f"{cohort} (synthetic)"
    return f"{cohort} (simulated)" if is_simulated(config, cohort) else cohort


def is_synthetic(config: Config, cohort: str) -> bool:
    """Whether a cohort is synthetic: painted, to pretrain on only."""
    return config.cohorts[cohort].synthetic is not None


def is_simulated(config: Config, cohort: str) -> bool:
    """Whether a cohort is simulated; a synthetic one, which no score is about, is not."""
    return config.cohorts[cohort].simulated is not None


def metric_name(task: Task, name: str) -> str:
    """Return the name of a metric in tidy tables: of that of a label, `auc_oedema` in place of `auc_0`."""
    label = next((one.part for one in kind_of(task).parts if one.name == name), None)
    return name if label is None else name.removesuffix(str(label)) + task.part_names[label]


def simulated_text(config: Config) -> str:
    """Return a sentence that names the simulated cohorts that are used; empty if none is."""
    some = [cohort for cohort in used_cohorts(config) if is_simulated(config, cohort)]
    return f"Simulated data: {', '.join(some)}; their numbers say nothing about real brains." if some else ""


def seeds_text(config: Config, seeds: int) -> str:
    """Return `1 seed` or `3 seeds`, of so many folds each where there are folds."""
    text = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"
    return f"{text}, {folds_text(config)}" if config.splits.folds else text


def folds_text(config: Config) -> str:
    """Return `5-fold`; empty where all seeds share a fixed test side."""
    return f"{config.splits.folds}-fold" if config.splits.folds else ""
