"""What a kind of pretraining says: what an encoder is trained for on scans before it sees any task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from neuropeft.train.pretraining_run import Run

# (purpose, width) -> uniform random numbers [B, width] for the scans at hand. Those of a training follow from
# seed, step and place in the batch; those of validations are always the same.
Noise = Callable[[str, int], Tensor]


class Pretraining(ABC):
    """A pretraining of a kind, of one run.

    What it needs of a backbone, and what else defines it, its settings say.

    Attributes:
        shows: What a validation shows, the loss first; what can be read from the features comes on top.
        files: What it leaves beside the encoder, its history and its cost.
        run: What it is trained on.
        network: What is trained; its `encoder` is what stays.
    """

    shows: ClassVar[tuple[str, ...]] = ("val_loss",)
    files: ClassVar[tuple[str, ...]] = ()
    network: Any

    def __init__(self, run: "Run") -> None:
        """Build the network."""
        self.run = run
        self.network = self.build()

    @abstractmethod
    def build(self) -> "nn.Module":
        """Return the network, on the CPU, drawn from torch's global generator; it has an `encoder`."""

    @abstractmethod
    def losses(self, network: Any, volumes: Tensor, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the loss of scans; what is computed for one must not depend on the others.

        Args:
            network: `network`, or what stands for it when it is compiled or shared by processes.
            volumes: The scans [B, 1, S, S, S], changed at random in training.
            rows: Which of the run's scans they are, [B] on the device.
            noise: Where random numbers come from.

        Returns:
            The terms of the loss, each summed over scans, [terms]; and over how much they are to be averaged,
            such as the number of scans, a scalar. The loss is the sum of the means.
        """

    def validation(self, means: Sequence[float]) -> dict[str, float]:
        """Return what a validation shows, from the means of the loss's terms."""
        return {"val_loss": sum(means)}

    def verdict(self, last: Mapping[str, float]) -> dict[str, Any]:
        """Return what cost.json says beside the last validation's numbers; print what a user must know."""
        return {}

    def write(self, folder: Path) -> None:  # noqa: B027 (there may be no files)
        """Write `files`."""
