"""The search: every method gets the same number of trials, and validation chooses.

A comparison of methods at one learning rate compares learning rates. A trial is a cell with other settings
and a share of its steps, on the training subjects of a fold alone. Optuna draws what each one tries; that
depends on the seed, the fold and the trial's number, and for `tpe` on the trials before it.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from neuropeft.config.search import RELATIVE, Choices, Range, Search, contains, extremes
from neuropeft.files import read_tsv, write_tsv
from neuropeft.records import write_record
from neuropeft.train import checkpoint
from neuropeft.train.checkpoint import CHECKPOINT_SECONDS
from neuropeft.train.choices import (
    FINISHED_TRIAL,
    FIRST,
    LAST,
    NOT_FINITE,
    PRUNED,
    Row,
    read_trials,
    with_choice,
)
from neuropeft.train.finetune import Shared, finetune, open_shared, split_of
from neuropeft.train.lock import lock
from neuropeft.train.loop import NotFiniteError
from neuropeft.train.seeds import derive_seed
from neuropeft.train.signals import stop_request
from neuropeft.train.sources import cell_sources, trial_sources
from neuropeft.train.state import FINISHED


def run_trials(
    specs: Mapping[str, Mapping[str, Any]],
    store_dir: str | Path,
    splits: Iterable[str | Path],
    encoder_path: str | Path | None,
    state_root: str | Path,
    table: str | Path,
    search: Search,
    first: int,
    earlier: Sequence[str | Path] = (),
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train some trials of a method on each fold, one after another, and write what each gave.

    `specs` has a cell of each fold, and `first` is the number of the first trial, from 0;
    `search.trials_per_job` are trained. `earlier` are tables of trials before, which `tpe` learns from.
    `table` gets fold, trial, the settings that are tried, and what came of them; `losses` are the validation
    losses up to the end. The rest is as in `pack.finetune_pack`.

    Raises:
        UserError: An input is missing or wrong.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1; trials that are finished are
            kept.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[Row] = []
    with stop_request():
        shared = open_shared(specs.values(), store_dir, splits, encoder_path, device)
        scans = shared.store.path / "scans.tsv"
        made_from = {
            path: cell_sources(spec, split_of(shared.splits, spec), scans, shared.encoder, None)
            for path, spec in specs.items()
        }
        for path, spec in specs.items():
            tried = [row for one in earlier for row in read_trials(one) if row["fold"] == spec["fold"]]
            before = len(tried)
            for number in range(first, min(first + search.trials_per_job, search.count(spec["method"]))):
                state = Path(state_root) / path / f"trial-{number}"
                tried.append(_trial(number, spec, search, tried, shared, state, checkpoint_seconds))
                print(f"{spec['cell']}: {tried[-1]}", file=sys.stderr, flush=True)
            rows += tried[before:]
    settings = search.of(next(iter(specs.values()))["method"])
    write_tsv(table, [_text(row) for row in rows], (*FIRST, *settings, *LAST))
    write_record([Path(table)], trial_sources(search.model_dump(mode="json"), made_from))


def _trial(
    number: int,
    spec: Mapping[str, Any],
    search: Search,
    tried: Sequence[Row],
    shared: Shared,
    state: Path,
    checkpoint_seconds: float,
) -> Row:
    """Train one trial; return its settings and what it gave."""
    trial = _ask(number, spec, search, tried)
    choice = _absolute(trial.params, spec["method"])
    losses: list[float] = []

    def watch(history: Sequence[Mapping[str, float]]) -> None:
        losses[:] = [float(row["val_loss"]) for row in history]
        trial.report(losses[-1], len(losses))
        if trial.should_prune():
            raise optuna.TrialPruned

    row: Row = {"fold": spec["fold"], "trial": number, **choice, "drawn": trial.params, "losses": losses}
    wanted = shortened(with_choice(spec, choice), search.share)
    try:
        with lock(state):
            finetune(wanted, shared, state, checkpoint_seconds, watch=watch)
    except NotFiniteError as error:
        print(error, file=sys.stderr, flush=True)
        return {**row, "outcome": NOT_FINITE, "val_loss": math.inf}
    except optuna.TrialPruned:
        checkpoint.remove(state)
        return {**row, "outcome": PRUNED, "val_loss": losses[-1]}
    cost = json.loads((state / FINISHED / "cost.json").read_text(encoding="utf-8"))
    # Those of a trial that was kept, too.
    losses[:] = [float(one["val_loss"]) for one in read_tsv(state / FINISHED / "history.csv")]
    return {
        **row,
        "outcome": FINISHED_TRIAL,
        "steps": cost["steps"],
        "val_loss": cost["best_val_loss"],
        "seconds": cost["train_seconds"],
    }


def _ask(number: int, spec: Mapping[str, Any], search: Search, tried: Sequence[Row]) -> optuna.Trial:
    """Return what a trial tries, as Optuna draws it after those that it may know of."""
    method, space = spec["method"], search.of(spec["method"])
    distributions = {name: _distribution(values) for name, values in search.drawn(method).items()}
    seed = derive_seed(int(spec["seed"]), "trial", int(spec["fold"]), number) % 2**32
    # Nobody is judged while some still warm up.
    warming = max(extremes(space.get("warmup_epochs", [spec["training"]["warmup_epochs"]])))
    median = MedianPruner(n_startup_trials=3, n_warmup_steps=round(search.share * warming))
    study = optuna.create_study(
        sampler=TPESampler(seed=seed) if search.sampler == "tpe" else RandomSampler(seed=seed),
        pruner=median if search.pruner == "median" else NopPruner(),
    )
    study.add_trials([_known(row, distributions) for row in tried])
    if search.sampler == "grid":
        study.enqueue_trial(search.grid(method)[number])
    elif number == 0:  # the method as it is, where that is among what is tried
        given = {**method, **spec["training"], **dict.fromkeys(RELATIVE, 1.0)}
        own = {name: _given(name, given) for name in distributions}
        study.enqueue_trial(
            {name: value for name, value in own.items() if contains(search.drawn(method)[name], value)}
        )
    return study.ask(distributions)


def _given(name: str, settings: Mapping[str, Any]) -> Any:
    """Return the setting that is drawn by this name, or the entry of a list that is."""
    key, _, entry = name.partition(".")
    return settings[key][int(entry)] if entry else settings[key]


def _distribution(tried: Range | Choices) -> BaseDistribution:
    if not isinstance(tried, Range):
        return CategoricalDistribution(tried)
    if isinstance(tried.low, int) and isinstance(tried.high, int):
        return IntDistribution(tried.low, tried.high, log=tried.log)
    return FloatDistribution(tried.low, tried.high, log=tried.log)


def _known(row: Row, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Return a trial that was trained, as Optuna takes it."""
    pruned = row["outcome"] == PRUNED
    loss = row["val_loss"] if math.isfinite(row["val_loss"]) else sys.float_info.max
    return create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=None if pruned else loss,
        params=row["drawn"],
        distributions=dict(distributions),
        intermediate_values=dict(enumerate(row["losses"], start=1)),
    )


def _absolute(drawn: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial: learning rates are drawn as factors on the method's own."""
    own = {"lr": method["lr"], "head_lr": method.get("head_lr") or method["lr"]}
    choice: dict[str, Any] = {}
    for name, value in drawn.items():
        key, _, entry = name.partition(".")
        if entry:  # of a list, in order
            choice[key] = [*choice.get(key, []), value]
        else:
            choice[key] = own[key] * value if key in RELATIVE else value
    return choice


def shortened(spec: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return the settings of a cell that trains for a share of its steps, and beyond its warm-up."""
    training = spec["training"]
    warmup = min(int(training["warmup_epochs"]), max(1, round(share * training["warmup_epochs"])))
    shorter = {
        **training,
        "epochs": max(warmup + 1, round(share * training["epochs"])),
        "warmup_epochs": warmup,
        "min_steps": round(share * training["min_steps"]),
    }
    return {**spec, "training": shorter}


def _text(row: Row) -> Row:
    """Return a row as the table holds it."""
    return {
        name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in row.items()
    }
