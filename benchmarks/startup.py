"""How long a fine-tune takes to its first step, against importing torch and one forward pass.

A cell of ViT-S with LoRA on simulated noise, run as the verb `finetune`, from the start of its process to the
end of its first step, backward pass and update included (`start_seconds` of cost.json). Beside it:
`python -c "import torch"`, and the first forward pass of the same network alone. Processor seconds are told,
too, as wall seconds mean little on a machine that is busy otherwise.

    python benchmarks/startup.py [repetitions]
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import save_encoder
from neuropeft.files import write_tsv

WORKFLOW = Path(__file__).parents[1] / "workflow"
SCANS, BATCH = 6, 2
SPEC: dict[str, Any] = {
    "cell": "simulated/vit_s/none/lora/fraction-100/0",
    "task": {"name": "simulated", "kind": "binary", "size": 2},
    "backbone": {"kind": "vit", "width": 384, "depth": 6, "heads": 8},
    "method": {"kind": "lora", "r": 32, "alpha": 32.0, "targets": ["q", "v"], "dropout": 0.0, "lr": 1e-3},
    "training": {
        "epochs": 1,
        "batch_size": BATCH,
        "warmup_epochs": 0,
        "patience": 1,
        "min_steps": 0,
        "min_validation": 1,
        "pool": "mean",
        "feature_norm": "fixed",
        "head_start": "random",
        "drop_path": 0.0,
        "clip": 1.0,
        "augment": {"flip": True, "rotate_deg": 5, "translate_voxels": 2, "intensity": 0.1},
        "mixed_precision": True,
        "compile": False,
    },
    "subset": "fraction-100",
    "seed": 0,
    "fold": 0,
    "shuffle_labels": False,
}
FORWARD = f"""
import time, torch
from neuropeft.backbones.build import build_predictor
model, batch = build_predictor({SPEC["backbone"]!r}, 1), torch.randn({BATCH}, 1, 80, 80, 80)
device = "cuda" if torch.cuda.is_available() else "cpu"
model, batch = model.to(device), batch.to(device)
wall, cpu = time.perf_counter(), time.process_time()
model(batch).sum().item()
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
# Notes the processor time at the moment at which the trainer takes the time for cost.json.
FINETUNE = """
import sys, time
from neuropeft.train import loop
age = loop.seconds_since_process_start
def both():
    print(age(), time.process_time())
    return age()
loop.seconds_since_process_start = both
from neuropeft.cli import main
sys.exit(main(sys.argv[1:]))
"""
NAMES = ("import torch", "forward pass", "fine-tune to its first step")


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        save_encoder(Path(folder) / "encoder.safetensors", vit.build(SPEC["backbone"]), {})
        measured = np.array([measure(Path(folder)) for _ in range(repetitions)])  # [repetitions, 3, 2]
    ratios = measured[:, 2] / (measured[:, 0] + measured[:, 1])
    print(f"{'median (range), seconds':28} {'wall':>22} {'processor':>22}")
    for name, values in zip((*NAMES, "ratio"), [*measured.transpose(1, 0, 2), ratios], strict=True):
        columns = (f"{np.median(v):6.2f} ({v.min():.2f} to {v.max():.2f})" for v in values.T)
        print(f"{name:28}", *(f"{column:>22}" for column in columns))


def measure(folder: Path) -> list[tuple[float, float]]:
    """Return wall and processor seconds of importing torch, of a forward pass, and of a fine-tune's start."""
    wall, cpu = time.perf_counter(), child_seconds()
    run("-c", "import torch")
    imported = time.perf_counter() - wall, child_seconds() - cpu
    paths = {
        "--store": folder / "store",
        "--splits": folder / "seed-0.tsv",
        "--encoder": folder / "encoder.safetensors",
        "--table": folder / "pack.tsv",
        "--state": tempfile.mkdtemp(dir=folder),  # of a cell that has not been trained
    }
    options = [text for option, path in paths.items() for text in (option, str(path))]
    forward = run("-c", FORWARD)
    started = run("-c", FINETUNE, "finetune", "--specs", json.dumps({"cell": SPEC}), *options)
    return [imported, numbers(forward), numbers(started)]


def numbers(text: str) -> tuple[float, float]:
    """Return the two numbers that a process printed."""
    wall, cpu = map(float, text.split())
    return wall, cpu


def child_seconds() -> float:
    """Return the processor seconds of all processes run so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(*arguments: str) -> str:
    """Return what Python prints when it is run with `arguments`."""
    environment = {**os.environ, "PYTHONPATH": str(WORKFLOW)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def write_data(folder: Path) -> None:
    """Write a store of noise and a split of it."""
    (folder / "store").mkdir()
    volumes = np.random.default_rng(0).standard_normal((SCANS, 1, 80, 80, 80), dtype=np.float32)
    np.save(folder / "store" / "volumes.npy", volumes.astype(np.float16))
    scans = [f"sub-{i:02d}" for i in range(SCANS)]
    sides = ["train"] * (SCANS - 4) + ["val"] * 2 + ["test"] * 2
    rows = [
        {
            "row": i,
            "scan_id": scan,
            "subject": scan,
            "side": side,
            "order": {"train": i, "val": i - (SCANS - 4)}.get(side),
            "y": i % 2,
            "sha1": f"{i:040x}",
        }
        for i, (scan, side) in enumerate(zip(scans, sides, strict=True))
    ]
    write_tsv(folder / "store" / "scans.tsv", rows, ["row", "scan_id", "subject", "session", "sha1"])
    write_tsv(folder / "seed-0.tsv", rows, ["scan_id", "subject", "side", "order", "y"])


if __name__ == "__main__":
    main()
