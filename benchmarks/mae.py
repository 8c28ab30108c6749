"""Time and memory of a masked-autoencoder training step on CPU: ours beside MONAI's MaskedAutoEncoderViT.

Both have the paper's ViT-S encoder (384 wide, 6 blocks, 8 heads), a decoder of 4 blocks and 8 heads of the
same width, MLPs of 4 times the width, qkv biases, 75 % of the patches hidden, 80^3 voxels in patches of 16^3.
A step is forward, loss, backward and AdamW. Steps alternate in one process and count processor seconds of a
single thread (threads that wait for each other burn processor time), so that other work on the machine
disturbs both little and alike; peak memory is that of a process of its own for each.

Run as: python benchmarks/mae.py [--batch 8] [--steps 10]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from neuropeft.backbones.patches import patchify
from neuropeft.pretraining.mae3d import build_mae

WIDTH, DEPTH, HEADS, DECODER_DEPTH, DECODER_HEADS = 384, 6, 8, 4, 8
SIZE, PATCH, MASK_RATIO = 80, 16, 0.75
NAMES = ("neuropeft", "monai")


def ours() -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    backbone = {"kind": "vit", "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    decoder = {"width": WIDTH, "depth": DECODER_DEPTH, "heads": DECODER_HEADS}
    model = build_mae(backbone, decoder, MASK_RATIO)
    return model, lambda x: model(x).loss


def monai() -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

    model = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=SIZE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        mlp_dim=4 * WIDTH,
        num_layers=DEPTH,
        num_heads=HEADS,
        masking_ratio=MASK_RATIO,
        decoder_hidden_size=WIDTH,
        decoder_mlp_dim=4 * WIDTH,
        decoder_num_layers=DECODER_DEPTH,
        decoder_num_heads=DECODER_HEADS,
        qkv_bias=True,
    )

    def loss(x: Tensor) -> Tensor:
        # MONAI leaves the loss to its user; this is MAE's, as in its tutorials, on normalised targets as
        # ours.
        prediction, mask = model(x)
        target = patchify(x, PATCH)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        error = (prediction - (target - mean) / (variance + 1e-6).sqrt()).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()

    return model, loss


def stepper(name: str, batch: int) -> Callable[[], float]:
    """Return a function that makes one training step and tells its processor seconds."""
    torch.manual_seed(0)
    model, loss = ours() if name == "neuropeft" else monai()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    scans = torch.randn(batch, 1, SIZE, SIZE, SIZE)

    def step() -> float:
        start = time.process_time()
        optimiser.zero_grad(set_to_none=True)
        loss(scans).backward()
        optimiser.step()
        return time.process_time() - start

    return step


def peak_mebibytes(name: str, batch: int) -> tuple[float, float]:
    """Return the process's peak memory before the network is made, and after three steps, in MiB."""
    command = [sys.executable, __file__, "--memory-of", name, "--batch", str(batch)]
    before, after = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(before), float(after)


def measure_memory(name: str, batch: int) -> None:
    # MONAI is imported in both processes: its own code must not count against it.
    import monai.networks.nets.masked_autoencoder_vit  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    step = stepper(name, batch)
    for _ in range(3):
        step()
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        measure_memory(options.memory_of, options.batch)
        return
    # First, while this process is small: on Linux a child starts with its parent's size as its peak.
    memory = {name: peak_mebibytes(name, options.batch) for name in NAMES}
    steps = {name: stepper(name, options.batch) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for i in range(options.steps + 1):  # the first pair warms up
        for name in NAMES if i % 2 else reversed(NAMES):
            taken = steps[name]()
            if i:
                seconds[name].append(taken)
    print(f"torch {torch.__version__}, 1 thread, batch {options.batch}")
    print("network     CPU s/step   peak MiB   of it above start MiB")
    for name in NAMES:
        before, after = memory[name]
        print(f"{name:<12}{statistics.median(seconds[name]):>10.3f}{after:>11.0f}{after - before:>24.0f}")
    speed = [b / a for a, b in zip(seconds["neuropeft"], seconds["monai"], strict=True)]
    (ours_before, ours_peak), (monai_before, monai_peak) = memory["neuropeft"], memory["monai"]
    print(f"neuropeft is {statistics.median(speed):.2f} times as fast", end=" ")
    print(f"(pairs of steps: {min(speed):.2f} to {max(speed):.2f})")
    print(f"and peaks at {ours_peak / monai_peak:.2f} of the memory, ", end="")
    print(f"{(ours_peak - ours_before) / (monai_peak - monai_before):.2f} above start")


if __name__ == "__main__":
    main()
