"""What the training loop trains, scans by scans, and for how long."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Watch = Callable[[Sequence[Mapping[str, float]]], None]


class Batch(NamedTuple):
    """Scans of a step that pass through the network at once: all of this process's, or as many as fit.

    What is random for one of them follows from the seed, the step and its place among `total`.

    Attributes:
        rows: Which of the training scans they are, [b] on the CPU.
        volumes: Their volumes as stored, float16 [b, S, S, S], on the device.
        step: Step of the run, from 0.
        first: Place of the first of them among the scans of the step.
        total: Scans of the step, over all processes.
    """

    rows: Tensor
    volumes: Tensor
    step: int
    first: int
    total: int


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        module: The network; `train()` is called after each validation.
        volumes: (rows [B] of a step, step) -> this process's part of their volumes, as in `Batch`.
        loss: Batch -> the loss summed over its scans, and over how much it is to be averaged, such as the
            number of scans; scalars. Over several processes the backward pass averages gradients.
        validate: () -> `val_loss` and whatever else the history shall hold.
        before_step: Step of the run, from 0 -> what must be changed before its scans pass through.
        after_step: Step -> the same after the optimiser's, while the gradients are still there.
        state: () -> the tensors that training changes, not copied.
        load: Takes back what `state` returned.
    """

    module: nn.Module
    volumes: Callable[[Tensor, int], Tensor]
    loss: Callable[[Batch], tuple[Tensor, Tensor | int]]
    validate: Callable[[], dict[str, float]]
    state: Callable[[], dict[str, Tensor]]
    load: Callable[[Mapping[str, Tensor]], None]
    before_step: Callable[[int], None] = lambda step: None
    after_step: Callable[[int], None] = lambda step: None


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
        lr: Peak learning rate as configured; groups may have others.
        patience: Stop after so many validations without a better loss, those of the warm-up not counted, and
            keep the best weights; None trains to the end and keeps the last.
        began: Age of the process, in seconds, from which the time to the first step counts.
        watch: Is shown the history after each validation, and may end the training by an exception.
    """

    name: str
    samples: int
    steps: int
    interval: int
    batch_size: int
    warmup_steps: int
    clip: float
    seed: int
    lr: float
    patience: int | None = None
    began: float = 0.0
    watch: Watch | None = None
