"""What the loop trains of a cell that draws images from texts; `drawn` draws them.

The VAE and the text encoder are frozen: each scan passes through them once, before the first step. Trained is
what the U-Net says of latents to which noise was added (Ho et al. 2020; Rombach et al. 2022).
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuropeft.backbones.diffusion import Diffusion, unet_of
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.tasks.base import Objective
from neuropeft.tasks.generation import Generation
from neuropeft.train.augment import read_augmentation
from neuropeft.train.data import Volumes, generator
from neuropeft.train.labels import Sides, subject_weights
from neuropeft.train.learner import Batch, Learner
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.supervised import forward_outputs, with_method

if TYPE_CHECKING:
    from neuropeft.train.finetune import Shared

LEVELS = 4  # of noise, the same in each validation
CPU = torch.device("cpu")


def learner(
    spec: Mapping[str, Any],
    model: Predictor,
    goal: Objective,
    shared: "Shared",
    sides: Sides,
    steps: int,
) -> Learner:
    """Return what the loop trains of a cell; see `supervised.learner`.

    Raises:
        UserError: Training is to augment images, whose latents are made once.
    """
    volumes, training, seed = shared.volumes, spec["training"], int(spec["seed"])
    if read_augmentation(training["augment"]).any:
        raise UserError(
            f"{spec['cell']}: the latents of an image are made once, so it cannot be changed at random: "
            "leave `training.augment` out"
        )
    unet = unet_of(model)
    at_once, device = BatchSize(int(training["batch_size"])), volumes.device
    both, count = [*sides.train, *sides.validation], len(sides.train)
    rows = torch.tensor([shared.places[row["scan_id"]] for row in both], device=volumes.data.device)
    weights = torch.tensor(subject_weights(sides.train), device=device)
    targets = [Generation.words(row["y"]) for row in both]
    words = list(dict.fromkeys(targets))
    number = {text: place for place, text in enumerate(words)}
    if cut := unet.cut_off(words):
        what = f"{spec['cell']}: the text encoder reads the first part of {cut} of {len(words)} texts"
        print(f"{what}, which are too long for it", file=sys.stderr, flush=True)
    with torch.no_grad():
        held = in_batches(
            lambda some: unet.latents(volumes.batch(rows[some])), torch.arange(len(both)), at_once
        )
        parts = in_batches(
            lambda some: unet.texts([words[place] for place in some]), torch.arange(len(words)), at_once
        )
    latents, texts = Volumes(torch.cat(held), device), torch.cat(parts)
    of_words = torch.tensor([number[text] for text in targets], device=device)
    said = torch.compile(unet.denoised) if training["compile"] else unet.denoised
    batches = TrainingBatches(latents, torch.arange(count, device=device), int(training["batch_size"]), seed)

    def losses(held: Tensor, some: Tensor, purposes: Sequence[tuple[object, ...]], levels: Tensor) -> Tensor:
        """Return the loss [b] of scans `some` [b] with latents [b, 2, C, h, w], and a time each."""
        noisy, wanted, times = corrupted(unet, held, seed, purposes, levels)
        texts_here = texts[of_words[some.to(device)]]
        outputs = forward_outputs(
            partial(said, times=times, texts=texts_here), noisy, training["mixed_precision"]
        )
        return goal.loss(outputs, wanted)

    def weighted(held: Tensor, some: Tensor, step: int, first: int) -> Tensor:
        purposes = [("noise", step, first + place) for place in range(len(some))]
        levels = torch.cat([torch.rand(1, generator=generator(CPU, seed, "time", *one)) for one in purposes])
        return (weights[some.to(device)] * losses(held, some, purposes, levels)).sum()

    def loss(batch: Batch) -> Tensor:
        return weighted(batch.volumes, batch.rows, batch.step, batch.first)

    def unchanged_loss(some: Tensor) -> Tensor:
        return weighted(latents.batch(some), some, 0, int(some[0]))

    def checked(some: Tensor) -> Tensor:
        """Return the losses [n, LEVELS] of validation scans at levels of noise that never change."""
        found = []
        for level in range(LEVELS):
            purposes = [("validation", int(place), level) for place in some]
            levels = torch.full((len(some),), (level + 0.5) / LEVELS)
            found.append(losses(latents.batch(some), some, purposes, levels))
        return torch.stack(found, dim=1)

    def validate() -> dict[str, float]:
        with torch.inference_mode():
            found = float(torch.cat(in_batches(checked, torch.arange(count, len(both)), at_once)).mean())
        return {"val_loss": found, "val_metric": found}

    everyone = torch.arange(count, device=device)
    return with_method(spec, model, batches, loss, validate, unchanged_loss, everyone, at_once, steps)


def corrupted(
    unet: Diffusion, held: Tensor, seed: int, purposes: Sequence[tuple[object, ...]], levels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add noise to latents.

    Args:
        unet: Whose noise, and whose kind of answer: the noise, the velocity or the latents.
        held: Mean and SD of the latents, [B, 2, C, h, w].
        seed: Of the run.
        purposes: What the noise of each is drawn for.
        levels: How far through the times each is, [B] within 0..1.

    Returns:
        Noisy latents [B, C, h, w], what the U-Net should say [B, C, h, w], times [B].
    """
    noise = unet.noise
    drawn = torch.stack(
        [torch.randn(held.shape[1:], generator=generator(CPU, seed, *one)) for one in purposes]
    )
    own, added = drawn.to(held.device).unbind(1)
    clean = held[:, 0].float() + held[:, 1].float() * own  # a draw of what the VAE says
    last = noise.config.num_train_timesteps
    times = (levels * last).long().clamp(max=last - 1).to(held.device)
    wanted = {
        "epsilon": lambda: added,
        "v_prediction": lambda: noise.get_velocity(clean, added, times),
        "sample": lambda: clean,
    }[noise.config.prediction_type]()
    return noise.add_noise(clean, added, times), wanted, times
