"""A U-Net that takes noise from latents under a text (Rombach et al. 2022), of a local `diffusers` pipeline.

The folder is one of Stable Diffusion: unet, vae, text_encoder, tokenizer, scheduler. Only the U-Net is this
backbone, and its weights come as those of any other. What makes latents and understands text stays as the
folder has it; the digests of both are part of the architecture, for weights fit no other ones.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone, FeatureSpec, InputSpec
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.records import file_digest

WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"  # of the VAE, of the text encoder


class Diffusion(Backbone):
    """The U-Net: noisy latents [B, C, h, w], their times [B] and texts [B, words, d] -> what was added."""

    NAMES: ClassVar[Mapping[str, str]] = {
        **{"to_q": "q", "to_k": "k", "to_v": "v", "0": "proj"},
        **{"proj": "fc1", "2": "fc2"},
    }
    recordable = False  # its times and texts are no scans

    def __init__(self, folder: Path, image_size: int) -> None:
        """Make a U-Net with random weights from the configurations of a folder.

        `image_size` is the edge of the images in pixels.

        Raises:
            UserError: diffusers is not installed, or the folder is of no such pipeline.
        """
        super().__init__()
        try:
            from diffusers import AutoencoderKL, UNet2DConditionModel
            from diffusers.models.attention import FeedForward
            from diffusers.models.attention_processor import Attention
        except ImportError as error:
            raise UserError(
                f"a backbone of kind diffusion needs diffusers and transformers ({error}): "
                "`pip install 'neuropeft[generation]'`"
            ) from error
        self.folder = folder
        self.SITES = {  # type: ignore[misc]  # classes of a package that is imported only here
            "attention": Attention,
            "mlp": FeedForward,
            "linear": nn.Linear,
            "layernorm": (nn.LayerNorm, nn.GroupNorm),
            "conv": nn.Conv2d,
        }
        try:
            of_unet, of_vae = (
                one.load_config(folder, subfolder=name, local_files_only=True)
                for one, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
            )
            self.unet = UNet2DConditionModel.from_config(of_unet)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder} is no folder of a Stable Diffusion pipeline: {error}") from error
        if of_unet.get("addition_embed_type") or of_unet.get("class_embed_type"):
            raise UserError(
                f"{folder}: its U-Net needs more than a text, as that of SDXL does: give a pipeline of "
                "Stable Diffusion 1 or 2"
            )
        factor = 2 ** (len(of_vae["block_out_channels"]) - 1)
        edge, lowest = image_size // factor, 2 ** (len(of_unet["block_out_channels"]) - 1)
        if image_size % factor or edge % lowest:
            raise UserError(
                f"{folder} makes images whose edge is a multiple of {factor * lowest} pixels: change "
                f"`preprocessing.size` {image_size}"
            )
        self.takes = InputSpec(2, of_unet["in_channels"], edge)
        self.gives = FeatureSpec(of_unet["out_channels"], (edge, edge))

    # -- the network --

    def denoised(self, latents: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        """Return what the U-Net says of noisy latents [B, C, h, w]: their noise, or velocity."""
        said: Tensor = self.unet(latents, times, encoder_hidden_states=texts).sample
        return said

    def tokens(self, x: Tensor) -> Tensor:
        """Return what it says of latents at time 0 and without words [B, h * w, C], to count operations."""
        texts = x.new_zeros(len(x), 77, self.unet.config.cross_attention_dim)  # as many as CLIP's
        return self.denoised(x, x.new_zeros(len(x)).long(), texts).flatten(2).transpose(1, 2)

    def width_of(self, module: nn.Module) -> int:
        """Return the channels of what an attention or an MLP gives: those of its last linear layer."""
        return [part for part in module.modules() if isinstance(part, nn.Linear)][-1].out_features

    def architecture(self) -> dict[str, Any]:
        """Return the U-Net's shape and what is in the folder beside it."""
        named = ("in_channels", "block_out_channels", "cross_attention_dim", "attention_head_dim")
        shape = {name: self.unet.config[name] for name in named}
        beside = {
            name: file_digest(self.folder / name / file)
            for name, file in zip(("vae", "text_encoder"), WEIGHTS, strict=True)
        }
        return {"kind": "diffusion", **shape, **beside}

    # -- what stays as the folder has it --

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline of the folder, with this U-Net; VAE and text encoder are where that is."""
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging
        from transformers.utils import logging as of_transformers

        logging.set_verbosity_error()  # or it writes what it cuts off of a report into the log
        for one in (logging, of_transformers):
            one.disable_progress_bar()
        try:
            made = StableDiffusionPipeline.from_pretrained(
                self.folder,
                unet=self.unet,
                safety_checker=None,
                requires_safety_checker=False,
                local_files_only=True,
            )
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.folder} is no folder of a Stable Diffusion pipeline: {error}") from error
        made.set_progress_bar_config(disable=True)
        for part in (made.vae, made.text_encoder):
            part.float().requires_grad_(False).eval().to(self.unet.device)
        return made

    @cached_property
    def noise(self) -> Any:
        """How noise is added in training: the folder's own levels, as DDPM has them."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    def latents(self, images: Tensor) -> Tensor:
        """Return mean and SD of the latents [B, 2, C, h, w] of images [B, 3, H, W] within 0..1."""
        vae = self.pipeline.vae
        found = vae.encode(2 * images - 1).latent_dist
        shift = vae.config.shift_factor or 0.0
        both = torch.stack([found.mean - shift, found.std], dim=1)
        return both * vae.config.scaling_factor

    def texts(self, words: Sequence[str]) -> Tensor:
        """Return what the text encoder makes of texts [B, words, d]; what is too long is cut off."""
        pipeline = self.pipeline
        found, _ = pipeline.encode_prompt(list(words), self.unet.device, 1, False)
        embedded: Tensor = found
        return embedded

    def cut_off(self, words: Sequence[str]) -> int:
        """Return how many texts are longer than what the text encoder reads."""
        tokenizer = self.pipeline.tokenizer
        longest = tokenizer.model_max_length
        return sum(len(of_text) > longest for of_text in tokenizer(list(words), verbose=False).input_ids)

    def draw(
        self, words: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
    ) -> NDArray[np.uint8]:
        """Return an image [n, H, W, 3] for each text, from noise of the seed that stands beside it."""
        edge = self.takes.size * self.pipeline.vae_scale_factor
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore", FutureWarning)
            drawn = self.pipeline(
                list(words),
                height=edge,
                width=edge,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
            ).images
        return np.rint(drawn * 255).astype(np.uint8)


def build(settings: Mapping[str, Any]) -> Diffusion:
    """Return the U-Net of a folder with random weights."""
    return Diffusion(Path(settings["folder"]), settings["image_size"])


def build_predictor(settings: Mapping[str, Any], outputs: int, decoder: str | None) -> Predictor:
    """Return the U-Net as what is trained: its outputs are those of the whole, so it has no head."""
    model = Predictor(build(settings), nn.Identity())
    model.by_tokens = False
    return model


def unet_of(model: Predictor) -> Diffusion:
    """Return the U-Net of what `build_predictor` made."""
    assert isinstance(model.backbone, Diffusion), "no other backbone draws"
    return model.backbone
