"""What methods save of full fine-tuning: time of a step and peak memory, ViT-B at 80^3 on random volumes.

    python benchmarks/methods.py                  # the CPU, one thread
    python benchmarks/methods.py --device cuda
    python benchmarks/methods.py lora vpt_deep    # of these methods of workflow/configs/methods.yaml alone
    python benchmarks/methods.py lora --batch 32  # in steps of 32 scans, not of 4

Each method trains in a process of its own, by `finetune` with the settings of config.yaml. Memory is what the
process takes beyond its imports; on a GPU, what it allocates there. `linear, scans as they are` has no
augmentation, so that each scan passes the frozen backbone once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from snakemake.utils import update_config
from trainings import ROOT, Case, finetuned

from neuropeft.config import Config
from neuropeft.config.read import read_yaml
from neuropeft.grid import cell_spec, cells
from neuropeft.train.cost import peak_memory, reset_peak_memory
from neuropeft.train.data import pick_device

AS_THEY_ARE = ", scans as they are"
DEFAULT = (
    "full",
    "lora",
    "bitfit",
    "layernorm",
    "adaptformer",
    "vpt_deep",
    "partial",
    f"linear{AS_THEY_ARE}",
)


@dataclass(frozen=True)
class Few(Case):
    """A case of few scans: nothing but a step's time and memory is wanted."""

    step: int = 4

    @property
    def scans(self) -> int:
        """Return the training scans, of which a step takes a quarter."""
        return 4 * self.step


def spec_of(name: str, batch: int) -> dict[str, Any]:
    """Return a short fine-tune by a method of config.yaml or methods.yaml."""
    whole = read_yaml(ROOT / "config.yaml")
    update_config(whole, read_yaml(ROOT / "workflow/configs/methods.yaml"))
    config = Config.model_validate(whole)
    method = name.removesuffix(AS_THEY_ARE)
    chosen = next(one for one in cells(config) if (one.method, one.backbone) == (method, "vit_b"))
    spec = cell_spec(config, chosen) | {"subset": "fraction-100"}
    short: dict[str, Any] = {
        "epochs": 4,
        "min_steps": 0,
        "warmup_epochs": 1,
        "patience": 99,
        "batch_size": batch,
    }
    if name.endswith(AS_THEY_ARE):
        short["augment"] = {}
    return spec | {"training": spec["training"] | short}


def measure(name: str, device: torch.device, batch: int) -> dict[str, float]:
    """Return the seconds of a step and the peak memory in bytes, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        case = Few(Path(folder), device, small=False, step=batch)
        case.write_volumes()
        reset_peak_memory(device)
        before = peak_memory(device)
        run = finetuned(case, spec_of(name, case.batch))
        return {"seconds": case.batch / run.speed, "bytes": peak_memory(device) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=DEFAULT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="scans of a step")
    parser.add_argument("--here", action="store_true", help="measure the one method in this process")
    options = parser.parse_args()
    if options.here:
        torch.set_num_threads(1)
        (name,) = options.methods
        print(json.dumps(measure(name, pick_device(options.device), options.batch)))
        return
    whole: dict[str, float] = {}
    for name in ("full", *(name for name in options.methods if name != "full")):
        command = [
            sys.executable,
            __file__,
            "--here",
            "--device",
            options.device,
            "--batch",
            str(options.batch),
            name,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        whole = whole or found
        time, memory = (found[what] / whole[what] for what in ("seconds", "bytes"))
        told = f"{found['seconds']:7.3f} s a step and {found['bytes'] / 1e9:.2f} GB"
        print(f"{name:<28} {told}: {time:.2f} and {memory:.2f} of full", flush=True)


if __name__ == "__main__":
    main()
