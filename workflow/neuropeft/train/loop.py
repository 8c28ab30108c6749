"""The training loop that pretraining and fine-tuning share.

Everything random is a function of (seed, step) or is drawn from a generator whose state the checkpoint holds.
Nothing in a step waits for the device: the loss is summed there and read at each validation.
"""

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuropeft.backbones.base import BATCH_NORMS
from neuropeft.errors import UserError
from neuropeft.progress import track
from neuropeft.train import checkpoint, slurm
from neuropeft.train.checkpoint import Progress, StateFolder
from neuropeft.train.cost import device_name, measure, seconds_since_process_start
from neuropeft.train.data import batch_rows
from neuropeft.train.energy import Meter
from neuropeft.train.history import report
from neuropeft.train.learner import Batch, Learner, Plan
from neuropeft.train.ranks import ALONE, Ranks
from neuropeft.train.schedule import check_warmup, lr_scale
from neuropeft.train.signals import REQUEUE_EXIT_CODE, SIGNALS, stop_request


class NotFiniteError(UserError):
    """The loss of a training or of its validation is not finite."""


class _Run(NamedTuple):
    learner: Learner
    optimizer: torch.optim.AdamW
    plan: Plan
    state: StateFolder
    device: torch.device
    ranks: Ranks
    progress: Progress
    meter: Meter


def fit(
    learner: Learner,
    groups: Sequence[Mapping[str, Any]],
    plan: Plan,
    state: StateFolder,
    device: torch.device,
    betas: tuple[float, float] = (0.9, 0.999),
    ranks: Ranks = ALONE,
) -> Progress:
    """Train `learner`, going on from the checkpoint in `state` if there is one that fits.

    On return the learner holds the best weights (with patience) or the last ones. Checkpoints stay: delete
    them with `checkpoint.remove` once the outputs are written. `groups` are those of AdamW: disjoint `params`
    with their peak `lr` and `weight_decay`.

    Raises:
        UserError: The loss is not finite, a checkpoint cannot be written, or the GPU's memory does not
            suffice: for one scan, or for the parts of several processes, which next time are twice as many.
        SystemExit: With `REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1; the state is saved and a SLURM job
            that is to go on is requeued, see `slurm.requeue`.
    """
    check_warmup(plan.name, plan.warmup_steps, plan.steps)
    peaks = [{**group, "peak_lr": group["lr"]} for group in groups]
    optimizer = torch.optim.AdamW(peaks, betas=betas, fused=True)
    progress = checkpoint.resume(state, plan.name, learner, optimizer, ranks)
    progress.loss_sum = progress.loss_sum.to(device)
    run = _Run(learner, optimizer, plan, state, device, ranks, progress, Meter(device))
    saved_at = time.monotonic()
    with stop_request() as stop:
        while not _finished(plan, progress):
            learner.module.train()
            clock = time.monotonic()
            for step in _steps_to_validation(run):
                scale = lr_scale(step, plan.warmup_steps, plan.steps)
                for group in optimizer.param_groups:
                    group["lr"] = scale * group["peak_lr"]
                learner.before_step(step)
                progress.loss_sum += _backward(run, step)
                nn.utils.clip_grad_norm_(learner.module.parameters(), plan.clip)
                optimizer.step()
                learner.after_step(step)
                optimizer.zero_grad()
                progress.step = step + 1
                _note_start(run)
                now = time.monotonic()
                progress.interval_seconds, clock = progress.interval_seconds + now - clock, now
                # A signal need not have reached all processes yet.
                *came, due = ranks.any(
                    *(number in stop.signals for number in SIGNALS), now - saved_at >= state.seconds
                )
                if any(came) or due:
                    _mean_loss(run)  # a broken run must not replace its last good checkpoint
                    measure(progress, run.meter, device)
                    checkpoint.save_run(state, learner, optimizer, progress, ranks)
                    saved_at = time.monotonic()
                if any(came):
                    # Together: torchrun ends all when one has left, which could be before SLURM is asked.
                    if ranks.first:
                        slurm.requeue({number for number, here in zip(SIGNALS, came, strict=True) if here})
                    ranks.wait()
                    raise SystemExit(REQUEUE_EXIT_CODE)
            _validate(run)
    if progress.best_state:
        learner.load(progress.best_state)
    measure(progress, run.meter, device)
    return progress


def only_validated(learner: Learner, device: torch.device) -> Progress:
    """Return the progress of a run that has nothing to train: no step, and one validation."""
    clock, meter = time.monotonic(), Meter(device)
    learner.module.eval()
    with torch.inference_mode():
        row = {"step": 0, "lr": 0.0, "train_loss": math.nan, **learner.validate()}
    progress = Progress(history=[{**row, "accumulation": 1, "seconds": time.monotonic() - clock}])
    measure(progress, meter, device)
    return progress


def _finished(plan: Plan, progress: Progress) -> bool:
    if plan.patience is None:
        return progress.validated >= plan.steps
    # The weights of the warm-up are no choice: they have hardly left the start.
    since = progress.validated - max(progress.best_step, plan.warmup_steps)
    return progress.validated >= plan.steps or since >= plan.patience * plan.interval


def _steps_to_validation(run: _Run) -> Iterable[int]:
    plan, progress = run.plan, run.progress
    end = min(plan.steps, (progress.validated // plan.interval + 1) * plan.interval)
    steps = range(progress.step, end)
    # On a terminal a bar runs up to each validation; a log gets one line a validation.
    if not (run.ranks.first and sys.stderr.isatty()):
        return steps
    return track(steps, len(steps), f"step {steps.start}/{plan.steps}")


def _backward(run: _Run, step: int) -> Tensor:
    """Leave the gradient of a step's mean loss in the parameters and return that loss.

    A batch that does not fit into the memory is cut into twice as many parts, as often as it takes; the parts
    stay for the rest of the run. What then differs from a run that had the memory: rounding, the random
    numbers of the network itself (dropout), and batch norms' running statistics by a step that counts twice.
    """
    rows = batch_rows(run.plan.samples, run.plan.batch_size, run.plan.seed, step)
    if run.device.type == "cuda":
        rows = rows.pin_memory()  # copied from there without a wait
    while True:
        try:
            sums = _summed_over_parts(run, rows, step)
            break
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: leave it before memory is asked for again
        run.optimizer.zero_grad()
        torch.cuda.empty_cache()
        _cut_further(run)
    loss, weight = run.ranks.sum(sums)
    scale = run.ranks.size / weight.clamp_min(1)  # the backward pass has averaged over the processes
    # At once: a ViT-B has 150 parameters, and a GPU waits for as many launches.
    torch._foreach_mul_([p.grad for p in run.learner.module.parameters() if p.grad is not None], scale)
    return loss / weight.clamp_min(1)


def _summed_over_parts(run: _Run, rows: Tensor, step: int) -> Tensor:
    """Leave the gradient of the summed loss in the parameters; return that loss and its weight, [2]."""
    volumes, first = run.learner.volumes(rows, step), run.ranks.share(len(rows)).start
    parts = min(run.progress.parts, run.ranks.largest_share(len(rows)))
    sums = torch.zeros(2, device=run.device)
    for place in (run.ranks.share(len(rows), part, parts) for part in range(parts)):
        held = volumes[place.start - first : place.stop - first]
        loss, weight = run.learner.loss(Batch(rows[place], held, step, place.start, len(rows)))
        loss.backward()
        sums[0] += loss.detach()
        sums[1] += weight
    return sums


def _cut_further(run: _Run) -> None:
    """Double the parts of a batch and say so; several processes can only do that by starting again."""
    plan, parts, share = run.plan, run.progress.parts, run.ranks.largest_share(run.plan.batch_size)
    if parts >= share:
        raise UserError(
            f"{plan.name}: not even one scan at a time fits into the memory of {device_name(run.device)}; "
            "give a GPU with more memory, a smaller backbone or a smaller preprocessing.size"
        )
    run.progress.parts = 2 * parts
    what = f"{plan.name}: out of GPU memory with {-(-share // parts)} scans at once"
    if run.ranks.size > 1:
        checkpoint.note_parts(run.state, 2 * parts)
        raise UserError(
            f"{what}; start again, then each process goes through its share of a batch in {2 * parts} parts"
        )
    norms = tuple(BATCH_NORMS.values())
    inside = any(isinstance(module, norms) for module in run.learner.module.modules())
    note = "; the backbone's batch norms see one part at a time" if inside else ""
    print(
        f"{what}; from here on the gradients of {2 * parts} parts of a batch are added up: batches stay "
        f"{plan.batch_size} scans, steps take longer{note}",
        file=sys.stderr,
        flush=True,
    )


def _note_start(run: _Run) -> None:
    if run.progress.start_seconds is not None:
        return
    if run.device.type == "cuda":  # the only wait for it outside of reading the loss, once in a process
        torch.cuda.synchronize(run.device)
    age = seconds_since_process_start()
    run.progress.start_seconds = None if age is None else age - run.plan.began


def _validate(run: _Run) -> None:
    """Validate, write down the interval, and remember the best weights."""
    plan, progress = run.plan, run.progress
    clock = time.monotonic()
    train_loss = _mean_loss(run)
    run.learner.module.eval()
    with torch.inference_mode():
        validation = run.learner.validate()
    if not math.isfinite(validation["val_loss"]):
        raise _not_finite(run, "validation")
    seconds = progress.interval_seconds + time.monotonic() - clock
    lr = plan.lr * lr_scale(progress.step - 1, plan.warmup_steps, plan.steps)
    row = {"step": progress.step, "lr": lr, "train_loss": train_loss, **validation}
    progress.history.append({**row, "accumulation": progress.parts, "seconds": seconds})
    warm = progress.step > plan.warmup_steps or progress.step >= plan.steps
    if plan.patience is not None and warm and validation["val_loss"] < progress.best_loss:
        progress.best_step, progress.best_loss = progress.step, validation["val_loss"]
        # On the CPU, so that the copy does not count as the method's memory.
        progress.best_state = {k: v.to("cpu", copy=True) for k, v in run.learner.state().items()}
    progress.interval_seconds = 0.0
    progress.loss_sum = torch.zeros((), device=run.device)
    if run.ranks.first:
        report(plan.name, progress.history, plan.steps)
    if plan.watch:
        plan.watch(progress.history)


def _mean_loss(run: _Run) -> float:
    """Return the mean loss of the steps since the last validation; this waits for the device."""
    loss = float(run.progress.loss_sum) / (run.progress.step - run.progress.validated)
    if not math.isfinite(loss):
        raise _not_finite(run, "training")
    return loss


def _not_finite(run: _Run, which: str) -> NotFiniteError:
    lr = run.plan.lr
    return NotFiniteError(
        f"{run.plan.name}: the {which} loss is not finite at step {run.progress.step} "
        f"at peak learning rate {lr:g}; give a lower lr, such as {lr / 3:.1g}"
    )
