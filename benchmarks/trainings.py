"""Short trainings on random volumes by `pretrain` and `finetune`, and the loss of each of their steps."""

import io
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests")]

import tiny_cells  # noqa: E402
from neuropeft.config import Config  # noqa: E402
from neuropeft.grid import cell_spec, cells, pretraining_spec  # noqa: E402
from neuropeft.train import finetune, loop, pretrain  # noqa: E402
from neuropeft.train.learner import Learner, Plan  # noqa: E402

CONFIG = Config.model_validate(yaml.safe_load((ROOT / "config.yaml").read_text()))
INTERVAL = 4  # steps between validations
TINY = {"width": 48, "depth": 2, "heads": 2, "patch_size": 4, "image_size": 16}


@dataclass(frozen=True)
class Case:
    """What is measured on, and how large."""

    folder: Path
    device: torch.device
    small: bool

    @property
    def scans(self) -> int:
        """Return the training scans."""
        return 16 if self.small else 512

    @property
    def batch(self) -> int:
        """Return the scans of a step: four steps are a pass over all of them."""
        return self.scans // 4

    @property
    def edge(self) -> int:
        """Return the edge of the volumes, in voxels."""
        return TINY["image_size"] if self.small else CONFIG.preprocessing.size

    def mae(self, backbone: str = "vit_s", **changes: Any) -> dict[str, Any]:
        """Return the settings of a short pretraining."""
        spec = json.loads(pretraining_spec(CONFIG, "mae_ukb", backbone))
        if self.small:
            spec |= {"backbone": spec["backbone"] | TINY, "decoder": tiny_cells.DECODER}
        short = {"steps": 12, "warmup_steps": 4, "batch_size": self.batch, "validation_share": 1e-9}
        return spec | short | changes

    def cell(self, method: str, backbone: str = "vit_b", **changes: Any) -> dict[str, Any]:
        """Return the settings of a short fine-tune."""
        chosen = next(c for c in cells(CONFIG) if (c.method, c.backbone) == (method, backbone))
        spec = cell_spec(CONFIG, chosen) | {"subset": "fraction-100"}
        if self.small:
            spec["backbone"] |= TINY
        short = {
            "epochs": 3, "min_steps": 0, "warmup_epochs": 1, "patience": 99, "batch_size": self.batch
        }  # fmt: skip
        return spec | {"training": spec["training"] | short | changes}

    @property
    def store(self) -> Path:
        """Return the folder of the random volumes."""
        return self.folder / "store"

    @property
    def split(self) -> Path:
        """Return the split of the store: one scan validates, one is tested on, the others train."""
        return self.folder / "seed-0.tsv"

    def write_volumes(self) -> None:
        """Write the store and its split."""
        tiny_cells.make_store(self.store, self.scans + 2, edge=self.edge)
        tiny_cells.make_split(self.split, self.store, validation=1, test=1)

    def new_folder(self) -> Path:
        """Return an empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))


@dataclass
class Run:
    """What a training showed: the loss of each step, when steps were validated, and what was trained."""

    losses: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    scans: int = 0  # between two validations
    parts: int = 1
    module: nn.Module = field(default_factory=nn.Identity)

    @property
    def speed(self) -> float:
        """Return scans per second, by the median of the times between validations."""
        return self.scans / statistics.median(np.diff(self.ends).tolist())


class _Trained(Exception):
    """The training is over, and its outputs are not wanted."""


def watch(module: ModuleType, start: Callable[[], object], stop_at: int | None = None) -> Run:
    """Return what `start` shows, which trains by the loop of `module`, without validation.

    The process gets a SIGUSR1 in step `stop_at`, counted from 0.
    """
    run, losses, backward = Run(), list[Tensor](), loop._backward

    def watched_backward(trained: Any, step: int) -> Tensor:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        losses.append(backward(trained, step))
        return losses[-1]

    def fit(learner: Learner, groups: Any, plan: Plan, *rest: Any) -> None:
        plan = replace(plan, interval=INTERVAL)

        def validate() -> dict[str, float]:
            run.ends.append(time.perf_counter())  # the loop has just waited for the device
            return {"val_loss": 0.0}

        run.module, run.scans = learner.module, INTERVAL * plan.batch_size
        watched = replace(learner, validate=validate)
        run.parts = loop.fit(watched, groups, plan, *rest).parts
        raise _Trained

    left = (_Trained,) if stop_at is None else (_Trained, SystemExit)
    with (
        patch.object(module, "fit", fit),
        patch.object(loop, "_backward", watched_backward),
        patch.object(loop.slurm, "requeue"),  # of the job that this may run in
        redirect_stderr(io.StringIO()),
        suppress(*left),
    ):
        start()
    run.losses = [float(loss) for loss in losses]
    return run


def pretrained(
    case: Case, spec: dict[str, Any], state: Path | None = None, stop_at: int | None = None
) -> Run:
    """Return what a pretraining shows."""
    paths = case.store, [case.split], case.new_folder(), state or case.new_folder()
    return watch(pretrain, lambda: pretrain.pretrain(spec, *paths, device=str(case.device)), stop_at)


def finetuned(case: Case, spec: dict[str, Any]) -> Run:
    """Return what a fine-tune shows."""
    shared = finetune.open_shared([spec], case.store, [case.split], None, str(case.device))
    return watch(finetune, lambda: finetune.finetune(spec, shared, case.new_folder()))
