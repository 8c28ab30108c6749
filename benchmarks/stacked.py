"""Do LoRA cells that share a frozen base train faster in one pass over it? 8 in turn against 8 stacked.

    python benchmarks/stacked.py                    # ViT-B at 80^3, steps of 4 scans, one thread
    python benchmarks/stacked.py --device cuda --batch 8
    python benchmarks/stacked.py --backbone vit_xs  # that of workflow/configs/ixi.yaml

The cells' adapters are stacked by `torch.func`, and each has a batch of its own, as cells of different seeds,
folds and subsets have. The two ways alternate; shown are medians, and by how much their gradients differ.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from trainings import ROOT

from neuropeft.config import Config
from neuropeft.config.read import read_yaml
from neuropeft.grid import cell_spec, cells
from neuropeft.train.finetune import make_model

CONFIGS = {"vit_xs": "workflow/configs/ixi.yaml"}
Gradients = dict[str, Tensor]
Way = Callable[[list[nn.Module], Tensor, Tensor], list[Gradients]]


def spec_of(backbone: str) -> dict[str, Any]:
    """Return the settings of a cell of LoRA."""
    config = Config.model_validate(read_yaml(ROOT / CONFIGS.get(backbone, "config.yaml")))
    return cell_spec(config, next(c for c in cells(config) if (c.method, c.backbone) == ("lora", backbone)))


def adapted(spec: dict[str, Any], cell: int) -> nn.Module:
    """Return the network of a cell: the same frozen base, adapters of its own that are not zero."""
    model = make_model(spec, None)
    generator = torch.Generator().manual_seed(cell)
    for value in model.parameters():
        if value.requires_grad:
            nn.init.normal_(value, std=0.02, generator=generator)
    return model.eval()  # without dropout the two ways are comparable


def in_turn(models: list[nn.Module], scans: Tensor, labels: Tensor) -> list[Gradients]:
    """Return each cell's gradients, one cell after another."""
    found = []
    for model, x, y in zip(models, scans, labels, strict=True):
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        loss = F.binary_cross_entropy_with_logits(model(x), y)
        found.append(dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True)))
    return found


def stacked(models: list[nn.Module], scans: Tensor, labels: Tensor) -> list[Gradients]:
    """Return each cell's gradients, all cells in one pass over the base."""
    base = models[0]
    cells = [dict(model.named_parameters()) for model in models]
    adapters = {
        name: torch.stack([cell[name].detach() for cell in cells]).requires_grad_()
        for name, value in cells[0].items()
        if value.requires_grad
    }
    frozen: dict[str, Tensor] = {name: value for name, value in cells[0].items() if name not in adapters}
    frozen |= dict(base.named_buffers())

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(functional_call(base, own | frozen, (x,)), y)

    total = vmap(loss)(adapters, scans, labels).sum()
    found = torch.autograd.grad(total, list(adapters.values()))
    return [
        {name: value[cell] for name, value in zip(adapters, found, strict=True)}
        for cell in range(len(models))
    ]


def seconds(way: Way, models: list[nn.Module], scans: Tensor, labels: Tensor) -> float:
    """Return how long a step takes."""
    began = time.perf_counter()
    way(models, scans, labels)
    if scans.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="scans of a cell's step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    spec = spec_of(options.backbone)
    models = [adapted(spec, cell).to(device) for cell in range(options.cells)]
    edge = spec["backbone"]["image_size"]
    scans = torch.randn(options.cells, options.batch, 1, edge, edge, edge, device=device)
    labels = torch.randint(2, (options.cells, options.batch, 1), device=device).float()
    ways: dict[str, Way] = {"in turn": in_turn, "stacked": stacked}
    results = {name: way(models, scans, labels) for name, way in ways.items()}
    apart = max(
        float((one[name] - other[name]).abs().max() / one[name].abs().max())
        for one, other in zip(*results.values(), strict=True)
        for name in one
    )
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            times[name].append(seconds(way, models, scans, labels))
    turn, stack = (statistics.median(found) for found in times.values())
    told = f"{turn:.2f} s in turn, {stack:.2f} s stacked: {stack / turn:.2f}"
    what = f"{options.cells} cells of {options.batch} scans, {options.backbone}"
    print(f"{what}: {told}; gradients differ by {apart:.1e}")


if __name__ == "__main__":
    main()
