"""What a run cost: seconds, bytes and parameters, as cost.json."""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from neuropeft.files import write_text
from neuropeft.peaks import peak_of
from neuropeft.train.checkpoint import Progress
from neuropeft.train.energy import Meter
from neuropeft.train.learner import Plan


def seconds_since_process_start() -> float | None:
    """Return the age of this process in seconds, interpreter start included; None where there is no /proc."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Field 22 of proc(5), counted from 1; two of them stand before the closing bracket.
    started = int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on; on the CPU only where /proc allows it."""
    if device.type == "cuda":
        torch.cuda.init()  # or the statistics of an explicit device are refused
        torch.cuda.empty_cache()  # what an earlier cell has left reserved is not this one's
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has used at once: of GPU memory, or of main memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss where there is a choice: it begins with the peak of the process that started this one, and
    # cannot be reset.
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_reserved(device: torch.device) -> int | None:
    """Return the most bytes that PyTorch has held of a GPU at once, used or not; None on the CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def measure(progress: Progress, meter: Meter, device: torch.device) -> None:
    """Write down the memory and the energy that a run has taken, those of its earlier parts included."""
    progress.peak_memory = max(progress.peak_memory, peak_memory(device))
    if (reserved := peak_reserved(device)) is not None:
        progress.peak_reserved = max(progress.peak_reserved or 0, reserved)
    used, before = meter.since_last(), progress.energy_joule
    progress.energy_joule = None if used is None or before is None else before + used


def run_cost(progress: Progress, plan: Plan, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Return what the cost.json of every finished run holds.

    Returns:
        Among others `train_seconds`, of all steps and validations, without the start, the scans' one pass
        through layers that are held, and checkpoints; what was done again after a kill counts once.
        `seconds_per_step` and `samples_per_second` rest on it: the latter are training scans that passed
        through, steps times the batch size over all processes, for each of these seconds. `most_steps` are
        those without an early stop. `energy_joule` is what the GPU of the first process consumed from the
        first step to the last, whoever else used it, over all parts of an interrupted run; None if the driver
        did not tell in one of them.
    """
    seconds = sum(row["seconds"] for row in progress.history)
    return {
        "train_seconds": seconds,
        "start_seconds": progress.start_seconds,
        "seconds_per_step": seconds / progress.step if progress.step else None,
        "samples_per_second": progress.step * plan.batch_size / seconds,
        "energy_joule": progress.energy_joule,
        "steps": progress.step,
        "most_steps": plan.steps,
        "device": device_name(device),
        "resumed": progress.resumed,
        "accumulation": progress.parts,
        "fingerprint": fingerprint,
    }


def share_of_peak(cost: Mapping[str, Any]) -> float | None:
    """Return the model FLOPs utilisation (MFU) of a run, from what its cost.json holds.

    That is the operations of its training steps a second over those that its GPU reaches at most, of dense
    bfloat16 products; validations take seconds and count no operations. None where the peak is not known, as
    of every CPU.
    """
    peak = peak_of(cost["device"])
    return None if peak is None else cost["samples_per_second"] * cost["flops_per_sample"] / peak


def write_cost(path: Path, cost: Mapping[str, Any]) -> None:
    """Write cost.json atomically; the version of torch is added."""
    write_text(path, json.dumps({**cost, "torch": torch.__version__}, indent=2) + "\n")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
