"""What only a GPU can show, checked on one GPU with random volumes: a line for each check.

    python benchmarks/gpu.py                       # the current GPU
    python benchmarks/gpu.py --device cpu --small  # the same code in a minute, on tiny networks

The exit status is 1 if a check fails; the others run nevertheless. Trainings are those of `pretrain` and
`finetune` with the settings of config.yaml, of ViT-S where losses are compared and of ViT-B where speed is
set beside the peak of the GPU; `--small` makes them tiny. The memory is limited for the check of memory.
"""

import argparse
import csv
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from trainings import ROOT, Case, Run, finetuned, pretrained

from neuropeft.forecast.networks import AutoencoderLoss
from neuropeft.peaks import peak_of
from neuropeft.pretraining.mae3d import MAE3D
from neuropeft.train import data, pretrain
from neuropeft.train.cost import device_name, peak_memory, reset_peak_memory
from neuropeft.train.data import Volumes, load_volumes, pass_order, pick_device
from neuropeft.train.flops import training_flops
from neuropeft.train.graphs import Recorded
from neuropeft.train.prefetch import prefetch

GOAL = 0.4  # of the peak
# Largest relative differences of a step's loss: between number formats or kernels, and by rounding alone.
COARSE, FINE = 0.02, 1e-3
Outcome = tuple[str, bool | str]  # figure, and whether it is as it must be, or why that cannot be told


def alike(one: Sequence[float], other: Sequence[float], limit: float) -> Outcome:
    """Return by how much the losses of two trainings differ, and whether that is within the limit."""
    if len(one) != len(other):
        return f"{len(one)} steps and {len(other)}", False
    worst = max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))
    return f"losses of {len(one)} steps differ by {worst:.1e} (at most {limit:g})", worst <= limit


def speeds(one: Run, name: str, other: Run, other_name: str) -> str:
    """Return the speeds of two trainings in words."""
    return f"{one.speed:.0f} scans/s {name}, {other.speed:.0f} {other_name}"


def check_precision(case: Case) -> Outcome:
    exact, mixed = (pretrained(case, case.mae(mixed_precision=mixed)) for mixed in (False, True))
    figure, good = alike(exact.losses, mixed.losses, COARSE)
    return f"{figure}; {speeds(mixed, 'mixed', exact, 'float32')}", good


def check_compile(case: Case) -> Outcome:
    if case.small:
        return "half a minute of compilation", "skipped"
    plain, compiled = (pretrained(case, case.mae(compile=compiled)) for compiled in (False, True))
    figure, good = alike(plain.losses, compiled.losses, COARSE)
    return f"{figure}; {speeds(compiled, 'compiled', plain, 'not')}", good


def check_volumes(case: Case) -> Outcome:
    source = np.load(case.store / "volumes.npy", mmap_mode="r")
    resident = Volumes(torch.from_numpy(np.array(source)).to(case.device), case.device)
    inside = pretrained(case, case.mae())
    with patch.object(data, "SHARE_OF_FREE_MEMORY", 0.0):
        with redirect_stderr(io.StringIO()):
            mapped = load_volumes(source, range(len(source)), case.device)
        outside = pretrained(case, case.mae())
    batches = pass_order(len(source), 0, 0).split(case.batch)
    same = all(torch.equal(batch, resident.take(rows)) for rows, batch in prefetch(mapped, batches))
    figure, good = alike(inside.losses, outside.losses, FINE)
    which = "same batches" if same else "other batches"
    return f"{which}; {figure}; {speeds(inside, 'on the device', outside, 'off')}", good and same


@contextmanager
def little_memory(case: Case, share: float, peak: int) -> Iterator[None]:
    """Leave `share` of the memory `peak` that a training took; on the CPU, room for that share of a batch."""
    if case.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(case.device).total_memory
        torch.cuda.set_per_process_memory_fraction(share * peak / total, case.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, case.device)
        return
    forward = MAE3D.forward

    def limited(self: MAE3D, x: Tensor, noise: Tensor | None = None) -> Any:
        if len(x) > share * case.batch:
            raise torch.OutOfMemoryError("a pretended lack of memory")
        return forward(self, x, noise)

    with patch.object(MAE3D, "forward", limited):
        yield


def check_memory(case: Case) -> Outcome:
    spec = case.mae(mixed_precision=False)
    reset_peak_memory(case.device)
    whole = pretrained(case, spec)
    whole.module = nn.Identity()  # or its weights would stay
    with little_memory(case, 0.7, peak_memory(case.device)):
        cut = pretrained(case, spec)
    figure, good = alike(whole.losses, cut.losses, FINE)
    return f"batches of {case.batch} scans in {cut.parts} parts; {figure}", good and cut.parts > 1


def check_ranks(case: Case) -> Outcome:
    on_gpu = case.device.type == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        return "one GPU", "skipped"
    spec, one, two = case.mae(mixed_precision=False), case.new_folder(), case.new_folder()
    with redirect_stderr(io.StringIO()):
        pretrain.pretrain(spec, case.store, [case.split], one, case.new_folder(), device=str(case.device))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
        *("neuropeft", "pretrain", "--spec", json.dumps(spec), "--store", case.store),
        *("--hold-out", case.split, "--out", two, "--state", case.new_folder()),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1], False
    figure, good = alike(_train_losses(one), _train_losses(two), FINE)
    return f"{'NCCL' if on_gpu else 'gloo'}; {figure}", good


def _train_losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


def check_resume(case: Case) -> Outcome:
    state = case.new_folder()
    whole = pretrained(case, case.mae())
    stopped = pretrained(case, case.mae(), state, stop_at=5)
    resumed = pretrained(case, case.mae(), state)
    figure, good = alike(whole.losses, stopped.losses + resumed.losses, FINE)
    return f"stopped after {len(stopped.losses)} steps; {figure}", good and len(stopped.losses) == 6


def check_graphs(case: Case) -> Outcome:
    """The batch size of config.yaml: there a step's launches take longer than its arithmetic."""
    spec = case.cell("lora", batch_size=max(1, case.batch // 8))
    replayed = finetuned(case, spec)
    with patch.object(Recorded, "__call__", lambda self, volumes: self.forward(volumes)):
        plain = finetuned(case, spec)
    figure, good = alike(plain.losses, replayed.losses, FINE)
    return f"{figure}; {speeds(replayed, 'recorded', plain, 'not')}", good


def utilisation(case: Case, train: Callable[[bool], Run]) -> Outcome:
    """Return which part of the device's peak the products of a training reach, compiled or not."""
    run = train(False)
    module = AutoencoderLoss(run.module) if isinstance(run.module, MAE3D) else run.module
    flops = training_flops(module, case.edge, case.device)
    speed, figure = run.speed, f"{run.speed:.0f} scans/s"
    if not case.small:  # three more compilations tell nothing new there
        compiled = train(True).speed
        speed, figure = max(speed, compiled), f"{figure}, {compiled:.0f} compiled,"
    figure += f" of {flops / 1e9:.3g} GFLOP"
    name = device_name(case.device)
    peak = peak_of(name)
    if peak is None:
        return f"{figure}; the peak of {name} is not known here", "unknown"
    share = speed * flops / peak
    return f"{figure}: {share:.0%} of {peak / 1e12:.0f} TFLOP/s (goal {GOAL:.0%})", share >= GOAL


def check_mae_speed(case: Case) -> Outcome:
    return utilisation(
        case, lambda on: pretrained(case, case.mae("vit_b", steps=32, batch_size=case.scans, compile=on))
    )


def check_full_speed(case: Case) -> Outcome:
    return utilisation(case, lambda on: finetuned(case, case.cell("full", epochs=8, compile=on)))


def check_lora_speed(case: Case) -> Outcome:
    return utilisation(case, lambda on: finetuned(case, case.cell("lora", epochs=8, compile=on)))


CHECKS = {
    "bf16 against float32": check_precision,
    "torch.compile": check_compile,
    "volumes off the device": check_volumes,
    "a batch that does not fit": check_memory,
    "two processes": check_ranks,
    "stop and resume": check_resume,
    "CUDA graphs": check_graphs,
    "MFU of MAE, ViT-B": check_mae_speed,
    "MFU of full fine-tuning, ViT-B": check_full_speed,
    "MFU of LoRA, ViT-B": check_lora_speed,
}


def outcome(check: Callable[[Case], Outcome], case: Case) -> tuple[str, str]:
    """Return figure and verdict of a check, whatever becomes of it."""
    try:
        figure, good = check(case)
    except Exception as error:
        traceback.print_exc()
        figure, good = f"{type(error).__name__}: {error}".splitlines()[0], False
    gc.collect()
    if case.device.type == "cuda":
        torch.cuda.empty_cache()
    return figure, good if isinstance(good, str) else "pass" if good else "FAIL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and volumes")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU; give --device cpu --small to run the same code without one")
    device = pick_device(None if options.device == "cuda" else options.device)
    print(f"torch {torch.__version__}, {device_name(device)}", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        case = Case(Path(name), device, options.small)
        case.write_volumes()
        for title, check in CHECKS.items():
            began = time.perf_counter()
            figure, verdict = outcome(check, case)
            failed |= verdict == "FAIL"
            print(f"{title:<38} {time.perf_counter() - began:4.0f} s  {verdict:<8} {figure}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
