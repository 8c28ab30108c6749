"""The training loop that pretraining and fine-tuning share.

Everything random is a function of (seed, epoch, step) or is drawn from a generator whose state the checkpoint
holds. Nothing in a step waits for the device: the loss is summed there and read once an epoch.
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
from neuropeft.train.data import epoch_order
from neuropeft.train.optimizer import AdamW
from neuropeft.train.ranks import ALONE, Ranks
from neuropeft.train.schedule import check_warmup, lr_scale
from neuropeft.train.signals import REQUEUE_EXIT_CODE, SIGNALS, StopRequest, stop_request

CHECKPOINT_SECONDS = 120.0
UNSAID = ("epoch", "accumulation", "seconds")  # of a row of the history, in the line that a log gets


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        module: The network; `train()` is called before each epoch.
        batch_losses: (rows [B] of a batch, epoch, step, parts) -> scalars that add up to the mean loss of the
            batch; over several processes, to what makes the mean over the processes that loss. The backward
            pass of each follows before the next is asked for, and none needs the memory of more than one of
            `parts` parts of the batch, whose scans, changes and masks stay those of the whole batch.
        validate: () -> `val_loss` and whatever else the history shall hold.
        state: () -> the tensors that training changes, not copied.
        load: Takes back what `state` returned.
    """

    module: nn.Module
    batch_losses: Callable[[Tensor, int, int, int], Iterator[Tensor]]
    validate: Callable[[], dict[str, float]]
    state: Callable[[], dict[str, Tensor]]
    load: Callable[[Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train.

    Attributes:
        name: The run, for the log and for errors.
        samples: Scans of an epoch.
        epochs: The most epochs.
        batch_size: Scans of a step, over all processes.
        warmup_epochs: Epochs in which the learning rate rises to its peak.
        clip: Largest norm of the gradient.
        seed: Seed of the run.
        patience: Stop after so many epochs without a better validation loss, and keep the best weights; None
            trains to the end and keeps the last.
        began: Age of the process, in seconds, from which the time to the first step counts.
    """

    name: str
    samples: int
    epochs: int
    batch_size: int
    warmup_epochs: int
    clip: float
    seed: int
    patience: int | None = None
    began: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.samples // self.batch_size)


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

    `epoch` and `step` are those that come next, from 0; `best_epoch` counts from 1, as the history does.
    `parts` is into how many parts a batch is cut so that it fits into the memory.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    epoch_seconds: float = 0.0
    best_epoch: int = 0
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
    check_warmup(plan.name, plan.warmup_epochs, plan.epochs)
    optimizer = AdamW(groups, betas)
    progress = _resume(learner, optimizer, plan, home, ranks)
    progress.loss_sum = progress.loss_sum.to(device)
    with stop_request() as stop:
        run = _Run(learner, optimizer, plan, home, device, ranks, progress, stop)
        saved_at = time.monotonic()
        while not _finished(run):
            saved_at = _train_epoch(run, saved_at)
            _close_epoch(run)
    if plan.patience is not None:
        learner.load(progress.best_state)
    progress.peak_memory = max(progress.peak_memory, peak_memory(device))
    return progress


def run_cost(progress: Progress, home: Home, device: torch.device) -> dict[str, Any]:
    """Return what the cost.json of every finished run holds."""
    seconds, epochs = sum(row["seconds"] for row in progress.history), len(progress.history)
    return {
        "train_seconds": seconds,
        "start_seconds": progress.start_seconds,
        "seconds_per_epoch": seconds / epochs,
        "epochs": epochs,
        "device": device_name(device),
        "resumed": progress.resumed,
        "accumulation": progress.parts,
        "fingerprint": home.fingerprint,
    }


def _finished(run: _Run) -> bool:
    epoch, patience = run.progress.epoch, run.plan.patience
    tired = patience is not None and epoch - run.progress.best_epoch >= patience
    return epoch >= run.plan.epochs or tired


def _train_epoch(run: _Run, saved_at: float) -> float:
    """Train to the end of the current epoch; return when the last checkpoint was written."""
    plan, progress = run.plan, run.progress
    order = epoch_order(plan.samples, plan.seed, progress.epoch)
    if run.device.type == "cuda":
        order = order.pin_memory()  # copied from there without a wait
    run.learner.module.train()
    clock = time.monotonic()
    for step in _shown(range(progress.step, plan.steps), run):
        rows = order[step * plan.batch_size : (step + 1) * plan.batch_size]
        loss = _backward(run, rows, step)
        nn.utils.clip_grad_norm_(run.optimizer.parameters, plan.clip)
        run.optimizer.step(_scale(plan, progress.epoch, step))
        run.optimizer.zero_grad()
        progress.loss_sum += loss * len(rows)
        progress.step = step + 1
        if progress.start_seconds is None:
            _note_start(run)
        now = time.monotonic()
        progress.epoch_seconds, clock = progress.epoch_seconds + now - clock, now
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
        for loss in run.learner.batch_losses(rows, progress.epoch, step, parts):
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
    # On a terminal a bar runs through each epoch; a log gets its one line an epoch from `_close_epoch`.
    if not (run.ranks.first and sys.stderr.isatty()):
        return steps
    return track(steps, len(steps), f"epoch {run.progress.epoch + 1}/{run.plan.epochs}")


def _scale(plan: Plan, epoch: int, step: int) -> float:
    return lr_scale(epoch * plan.steps + step, plan.warmup_epochs * plan.steps, plan.epochs * plan.steps)


def _note_start(run: _Run) -> None:
    # The only wait for the device outside of reading the loss, once in a process.
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    age = seconds_since_process_start()
    run.progress.start_seconds = None if age is None else age - run.plan.began


def _close_epoch(run: _Run) -> None:
    """Validate, write down the epoch, remember the best weights, and move on to the next epoch."""
    plan, progress = run.plan, run.progress
    clock = time.monotonic()
    train_loss = _checked_loss(run) / plan.samples
    run.learner.module.eval()
    with torch.inference_mode():
        validation = run.learner.validate()
    if not math.isfinite(validation["val_loss"]):
        raise _not_finite(run, "validation")
    seconds = progress.epoch_seconds + time.monotonic() - clock
    lr = run.optimizer.groups[0]["lr"] * _scale(plan, progress.epoch, plan.steps - 1)
    losses = {"train_loss": train_loss, **validation}
    progress.history.append(
        {"epoch": progress.epoch + 1, "lr": lr, **losses, "accumulation": progress.parts, "seconds": seconds}
    )
    if plan.patience is not None and validation["val_loss"] < progress.best_loss:
        progress.best_epoch, progress.best_loss = progress.epoch + 1, validation["val_loss"]
        # On the CPU, so that the copy does not count as the method's memory.
        progress.best_state = {k: v.to("cpu", copy=True) for k, v in run.learner.state().items()}
    progress.epoch, progress.step, progress.epoch_seconds = progress.epoch + 1, 0, 0.0
    progress.loss_sum = torch.zeros((), device=run.device)
    if run.ranks.first:
        _report(run)


def _report(run: _Run) -> None:
    history = run.progress.history
    last = history[-1]
    left = sum(row["seconds"] for row in history) / len(history) * (run.plan.epochs - len(history))
    numbers = ", ".join(f"{key} {last[key]:.4g}" for key in last if key not in UNSAID)
    print(
        f"{run.plan.name}: epoch {len(history)}/{run.plan.epochs}, {numbers}, {last['seconds']:.1f} s, "
        f"at most {left:.0f} s left",
        file=sys.stderr,
        flush=True,
    )


def _checked_loss(run: _Run) -> float:
    """Return the summed loss of the epoch so far over all processes; this waits for the device."""
    loss = float(run.ranks.sum(run.progress.loss_sum)) / run.ranks.size
    if not math.isfinite(loss):
        raise _not_finite(run, "training")
    return loss


def _not_finite(run: _Run, which: str) -> UserError:
    lr = max(group["lr"] for group in run.optimizer.groups)
    return UserError(
        f"{run.plan.name}: the {which} loss is not finite in epoch {run.progress.epoch + 1} "
        f"at peak learning rate {lr:g}; give a lower lr, such as {lr / 3:.1g}"
    )


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
        place = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
        print(f"{plan.name}: going on from {place} of the checkpoint", file=sys.stderr, flush=True)
    return progress
