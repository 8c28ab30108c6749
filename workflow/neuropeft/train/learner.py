"""What the training loop trains, scans by scans, and for how long."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Watch = Callable[[Sequence[Mapping[str, float]]], None]


class Batch(NamedTuple):
    """Scans of a step that pass through the network at once: all of this process's, or as many as fit.

    What is random for one of them follows from the seed, the step and its place among `total`.
    """

    rows: Tensor  # which of the training scans they are, [b] on the CPU
    volumes: Tensor  # their volumes as stored, float16 [b, S, S, S], on the device
    step: int  # step of the run, from 0
    first: int  # place of the first of them among the scans of the step
    total: int  # scans of the step, over all processes


@dataclass(frozen=True)
class Learner:
    """What is trained."""

    module: nn.Module  # the network; `train()` is called after each validation
    # (rows [B] of a step, step) -> this process's part of their volumes, as in `Batch`
    volumes: Callable[[Tensor, int], Tensor]
    # Batch -> the loss summed over its scans, and over how much it is to be averaged, such as the number of
    # scans; scalars. Over several processes the backward pass averages gradients
    loss: Callable[[Batch], tuple[Tensor, Tensor | int]]
    validate: Callable[[], dict[str, float]]  # () -> `val_loss` and whatever else the history shall hold
    state: Callable[[], dict[str, Tensor]]  # () -> the tensors that training changes, not copied
    load: Callable[[Mapping[str, Tensor]], None]  # takes back what `state` returned
    # Step of the run, from 0 -> what must be changed before its scans pass through
    before_step: Callable[[int], None] = lambda step: None
    # Step -> the same after the optimiser's, while the gradients are still there
    after_step: Callable[[int], None] = lambda step: None


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train."""

    name: str  # the run, for the log and for errors
    samples: int  # scans to train on; they are passed through again and again, each time in another order
    steps: int  # the most steps
    interval: int  # steps between validations
    batch_size: int  # scans of a step, over all processes
    warmup_steps: int  # steps in which the learning rate rises to its peak
    clip: float  # largest norm of the gradient
    seed: int  # seed of the run
    lr: float  # peak learning rate as configured; groups may have others
    # Stop after so many validations without a better loss, those of the warm-up not counted, and keep the
    # best weights; None trains to the end and keeps the last
    patience: int | None = None
    began: float = 0.0  # age of the process, in seconds, from which the time to the first step counts
    # Is shown the history after each validation, and may end the training by an exception
    watch: Watch | None = None
