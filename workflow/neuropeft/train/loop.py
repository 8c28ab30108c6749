"""The training loop that pretraining and fine-tuning share.

Everything random is a function of (seed, step) or is drawn from a generator whose state the checkpoint holds.
Nothing in a step waits for the device: the loss is summed there and read at each validation.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from neuropeft.errors import UserError
from neuropeft.progress import track
from neuropeft.train import checkpoint, slurm
from neuropeft.train.cost import device_name, peak_memory, seconds_since_process_start
from neuropeft.train.data import batch_rows
from neuropeft.train.optimizer import AdamW
from neuropeft.train.ranks import ALONE, Ranks
from neuropeft.train.schedule import check_warmup, lr_scale
from neuropeft.train.signals import REQUEUE_EXIT_CODE, SIGNALS, StopRequest, stop_request

CHECKPOINT_SECONDS = 120.0
UNSAID = ("step", "accumulation", "seconds")  # of a row of the history, in the line that a log gets


class NotFiniteError(UserError):
    """The loss of a training or of its validation is not finite."""


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        module: The network; `train()` is called after each validation.
        batch_losses: (rows [B] of a batch, step, parts) -> scalars that add up to the mean loss of the batch;
            over several processes, to what makes the mean over the processes that loss. The backward pass of
            each follows before the next is asked for, and none needs the memory of more than one of `parts`
            parts of the batch, whose scans, changes and masks stay those of the whole batch.
        validate: () -> `val_loss` and whatever else the history shall hold.
        state: () -> the tensors that training changes, not copied.
        load: Takes back what `state` returned.
    """

    module: nn.Module
    batch_losses: Callable[[Tensor, int, int], Iterator[Tensor]]
    validate: Callable[[], dict[str, float]]
    state: Callable[[], dict[str, Tensor]]
    load: Callable[[Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train.

    Attributes:
        name: The run, for the log and for errors.
        samples: Scans to train on; they are passed through again and again, each time in another order.
        steps: The most steps.
        interval: Steps between validations.
        batch_size: Scans of a step, over all processes.
        warmup_steps: Steps in which the learning rate rises to its peak.
        clip: Largest norm of the gradient.
        seed: Seed of the run.
        patience: Stop after so many validations without a better loss, those of the warm-up not counted, and
            keep the best weights; None trains to the end and keeps the last.
        began: Age of the process, in seconds, from which the time to the first step counts.
    """

    name: str
    samples: int
    steps: int
    interval: int
    batch_size: int
    warmup_steps: int
    clip: float
    seed: int
    patience: int | None = None
    began: float = 0.0


@dataclass(frozen=True)
class Home:
    """Where a run's checkpoints live.

    Attributes:
        folder: Folder of this run alone.
        fingerprint: Hash of all that the run depends on.
        configuration: The run's settings, stored for people.
        seconds: Least time between two checkpoints.
    """

    folder: Path
    fingerprint: str
    configuration: Mapping[str, Any]
    seconds: float = CHECKPOINT_SECONDS


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it beside weights, optimiser and generators.

    `step` counts the steps that are done; `loss_sum` and `interval_seconds` are those since the last
    validation. `parts` is into how many parts a batch is cut so that it fits into the memory.
    """

    step: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    interval_seconds: float = 0.0
    best_step: int = 0
    best_loss: float = math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    resumed: int = 0
    parts: int = 1
    peak_memory: int = 0
    start_seconds: float | None = None


@dataclass(frozen=True)
class _Run:
    learner: Learner
    optimizer: AdamW
    plan: Plan
    home: Home
    device: torch.device
    ranks: Ranks
    progress: Progress
    stop: StopRequest


def fit(
    learner: Learner,
    groups: Sequence[Mapping[str, Any]],
    plan: Plan,
    home: Home,
    device: torch.device,
    betas: tuple[float, float] = (0.9, 0.999),
    ranks: Ranks = ALONE,
) -> Progress:
    """Train `learner`, going on from the checkpoint in `home` if there is one that fits.

    On return the learner holds the best weights (with patience) or the last ones. Checkpoints stay: delete
    them with `checkpoint.remove` once the outputs are written.

    Raises:
        UserError: The loss is not finite, a checkpoint cannot be written, or the memory of the GPU does not
            suffice: for one scan, or, over several processes, for the parts so far; started again, these cut
            their batches into twice as many.
        SystemExit: With `REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1; the state is saved and a SLURM job
            that is to go on is requeued, see `slurm.requeue`.
    """
    check_warmup(plan.name, plan.warmup_steps, plan.steps)
    optimizer = AdamW(groups, betas)
    progress = _resume(learner, optimizer, plan, home, ranks)
    progress.loss_sum = progress.loss_sum.to(device)
    with stop_request() as stop:
        run = _Run(learner, optimizer, plan, home, device, ranks, progress, stop)
        saved_at = time.monotonic()
        while not _finished(run):
            saved_at = _train_interval(run, saved_at)
            _validate(run)
    if progress.best_state:
        learner.load(progress.best_state)
    progress.peak_memory = max(progress.peak_memory, peak_memory(device))
    return progress


def run_cost(progress: Progress, home: Home, device: torch.device) -> dict[str, Any]:
    """Return what the cost.json of every finished run holds."""
    seconds = sum(row["seconds"] for row in progress.history)
    return {
        "train_seconds": seconds,
        "start_seconds": progress.start_seconds,
        "seconds_per_step": seconds / progress.step,
        "steps": progress.step,
        "device": device_name(device),
        "resumed": progress.resumed,
        "accumulation": progress.parts,
        "fingerprint": home.fingerprint,
    }


def _finished(run: _Run) -> bool:
    plan, progress, validated = run.plan, run.progress, _validated(run)
    if plan.patience is None:
        return validated >= plan.steps
    # The weights of the warm-up are no choice: they have hardly left the start.
    since = validated - max(progress.best_step, plan.warmup_steps)
    return validated >= plan.steps or since >= plan.patience * plan.interval


def _validated(run: _Run) -> int:
    """Return the step of the last validation; a checkpoint may come after the steps up to the next one."""
    return int(run.progress.history[-1]["step"]) if run.progress.history else 0


def _train_interval(run: _Run, saved_at: float) -> float:
    """Train up to the next validation; return when the last checkpoint was written."""
    plan, progress = run.plan, run.progress
    run.learner.module.train()
    end = min(plan.steps, (_validated(run) // plan.interval + 1) * plan.interval)
    clock = time.monotonic()
    for step in _shown(range(progress.step, end), run):
        rows = batch_rows(plan.samples, plan.batch_size, plan.seed, step)
        if run.device.type == "cuda":
            rows = rows.pin_memory()  # copied from there without a wait
        progress.loss_sum += _backward(run, rows, step)
        nn.utils.clip_grad_norm_(run.optimizer.parameters, plan.clip)
        run.optimizer.step(lr_scale(step, plan.warmup_steps, plan.steps))
        run.optimizer.zero_grad()
        progress.step = step + 1
        if progress.start_seconds is None:
            _note_start(run)
        now = time.monotonic()
        progress.interval_seconds, clock = progress.interval_seconds + now - clock, now
        # A signal need not have reached all processes yet.
        *came, due = run.ranks.any(
            *(number in run.stop.signals for number in SIGNALS), now - saved_at >= run.home.seconds
        )
        if any(came) or due:
            _save(run)
            saved_at = time.monotonic()
        if any(came):
            _leave(run, {number for number, here in zip(SIGNALS, came, strict=True) if here})
    return saved_at


def _backward(run: _Run, rows: Tensor, step: int) -> Tensor:
    """Leave the gradient of a batch's mean loss in the parameters and return that loss.

    A batch that does not fit into the memory is cut into twice as many parts, as often as it takes; the parts
    stay for the rest of the run. What then differs from a run that had the memory: rounding, the random
    numbers of the network itself (dropout), and batch norms' running statistics by a step that counts twice.
    """
    while True:
        loss = _try_backward(run, rows, step)
        if loss is not None:
            return loss
        run.optimizer.zero_grad()
        torch.cuda.empty_cache()
        _cut_further(run, len(rows))


def _try_backward(run: _Run, rows: Tensor, step: int) -> Tensor | None:
    progress = run.progress
    parts = min(progress.parts, _share(run, len(rows)))
    total = torch.zeros((), device=run.device)
    try:
        for loss in run.learner.batch_losses(rows, step, parts):
            loss.backward()
            total += loss.detach()
    except torch.OutOfMemoryError:
        return None  # its traceback holds tensors: leave it before memory is asked for again
    return total


def _share(run: _Run, scans: int) -> int:
    # Of the process that has the most: all processes must cut into the same number of parts.
    return -(-scans // run.ranks.size)


def _cut_further(run: _Run, scans: int) -> None:
    """Double the parts of a batch and say so; several processes can only do that by starting again."""
    name, progress, share = run.plan.name, run.progress, _share(run, scans)
    if progress.parts >= share:
        raise UserError(
            f"{name}: not even one scan at a time fits into the memory of {device_name(run.device)}; give a "
            "GPU with more memory, a smaller backbone or a smaller preprocessing.size"
        )
    before, progress.parts = progress.parts, 2 * progress.parts
    what = f"{name}: out of GPU memory with {-(-share // before)} scans at once"
    if run.ranks.size > 1:
        checkpoint.note_parts(run.home.folder, run.home.fingerprint, progress.parts)
        raise UserError(
            f"{what}; start again, then each process goes through its share of a batch in "
            f"{progress.parts} parts"
        )
    inside = any(isinstance(module, nn.BatchNorm3d) for module in run.learner.module.modules())
    note = "; the backbone's batch norms see one part at a time" if inside else ""
    print(
        f"{what}; from here on the gradients of {progress.parts} parts of a batch are added up: batches stay "
        f"{run.plan.batch_size} scans, steps take longer{note}",
        file=sys.stderr,
        flush=True,
    )


def _leave(run: _Run, signals: set[signal.Signals]) -> NoReturn:
    # Together: torchrun ends all processes when one has left, which could be before SLURM is asked.
    if run.ranks.first:
        slurm.requeue(signals)
    run.ranks.wait()
    raise SystemExit(REQUEUE_EXIT_CODE)


def _shown(steps: range, run: _Run) -> Iterable[int]:
    # On a terminal a bar runs up to each validation; a log gets one line a validation from `_validate`.
    if not (run.ranks.first and sys.stderr.isatty()):
        return steps
    return track(steps, len(steps), f"step {steps.start}/{run.plan.steps}")


def _note_start(run: _Run) -> None:
    # The only wait for the device outside of reading the loss, once in a process.
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    age = seconds_since_process_start()
    run.progress.start_seconds = None if age is None else age - run.plan.began


def _validate(run: _Run) -> None:
    """Validate, write down the interval, and remember the best weights."""
    plan, progress = run.plan, run.progress
    clock = time.monotonic()
    train_loss = _checked_loss(run) / (progress.step - _validated(run))
    run.learner.module.eval()
    with torch.inference_mode():
        validation = run.learner.validate()
    if not math.isfinite(validation["val_loss"]):
        raise _not_finite(run, "validation")
    seconds = progress.interval_seconds + time.monotonic() - clock
    lr = _peak_lr(run) * lr_scale(progress.step - 1, plan.warmup_steps, plan.steps)
    losses = {"train_loss": train_loss, **validation}
    progress.history.append(
        {"step": progress.step, "lr": lr, **losses, "accumulation": progress.parts, "seconds": seconds}
    )
    warm = progress.step > plan.warmup_steps or progress.step >= plan.steps
    if plan.patience is not None and warm and validation["val_loss"] < progress.best_loss:
        progress.best_step, progress.best_loss = progress.step, validation["val_loss"]
        # On the CPU, so that the copy does not count as the method's memory.
        progress.best_state = {k: v.to("cpu", copy=True) for k, v in run.learner.state().items()}
    progress.interval_seconds = 0.0
    progress.loss_sum = torch.zeros((), device=run.device)
    if run.ranks.first:
        _report(run)


def _report(run: _Run) -> None:
    history, plan = run.progress.history, run.plan
    last = history[-1]
    left = sum(row["seconds"] for row in history) / last["step"] * (plan.steps - last["step"])
    numbers = ", ".join(f"{key} {last[key]:.4g}" for key in last if key not in UNSAID)
    print(
        f"{plan.name}: step {last['step']}/{plan.steps}, {numbers}, {last['seconds']:.1f} s, "
        f"at most {left:.0f} s left",
        file=sys.stderr,
        flush=True,
    )


def _checked_loss(run: _Run) -> float:
    """Return the summed loss since the last validation over all processes; this waits for the device."""
    loss = float(run.ranks.sum(run.progress.loss_sum)) / run.ranks.size
    if not math.isfinite(loss):
        raise _not_finite(run, "training")
    return loss


def _not_finite(run: _Run, which: str) -> NotFiniteError:
    lr = _peak_lr(run)
    return NotFiniteError(
        f"{run.plan.name}: the {which} loss is not finite at step {run.progress.step} "
        f"at peak learning rate {lr:g}; give a lower lr, such as {lr / 3:.1g}"
    )


def _peak_lr(run: _Run) -> float:
    """Return the peak learning rate as it is configured: not that of a head or of lower layers."""
    named = [(str(group.get("name", "")), group["lr"]) for group in run.optimizer.groups]
    return max(lr for name, lr in named if not name.startswith("head"))


def _save(run: _Run) -> None:
    # A broken run must not replace its last good checkpoint: look at the loss before saving.
    loss = _checked_loss(run)
    generators = run.ranks.gather(checkpoint.rng_state())
    if not run.ranks.first:
        return
    progress = {item.name: getattr(run.progress, item.name) for item in fields(Progress)}
    progress["peak_memory"] = max(run.progress.peak_memory, peak_memory(run.device))
    if run.ranks.size > 1:
        progress["loss_sum"] = torch.tensor(loss)
    state = {
        "fingerprint": run.home.fingerprint,
        "configuration": dict(run.home.configuration),
        "model": run.learner.state(),
        "optimizer": run.optimizer.state(),
        "progress": progress,
        "generators": generators,
    }
    checkpoint.save(run.home.folder, state)


def _resume(learner: Learner, optimizer: AdamW, plan: Plan, home: Home, ranks: Ranks) -> Progress:
    state = checkpoint.load(home.folder, home.fingerprint, quiet=not ranks.first)
    parts = checkpoint.noted_parts(home.folder, home.fingerprint)
    if state is None:
        return Progress(parts=parts)
    learner.load(state["model"])
    optimizer.load(state["optimizer"])
    if len(state["generators"]) == ranks.size:
        checkpoint.set_rng_state(state["generators"][ranks.rank])
    progress = Progress(**state["progress"])
    progress.resumed += 1
    progress.parts = max(progress.parts, parts)
    progress.start_seconds = None
    if ranks.first:
        print(
            f"{plan.name}: going on from step {progress.step} of the checkpoint", file=sys.stderr, flush=True
        )
    return progress
