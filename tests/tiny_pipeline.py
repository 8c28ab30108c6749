"""A Stable Diffusion pipeline and a CLIP model of random weights, in folders as libraries store them."""

import json
from importlib.util import find_spec
from pathlib import Path

import torch

EDGE = 16  # of images, in pixels
WORDS = 12  # of a text at most
INSTALLED = find_spec("diffusers") is not None and find_spec("transformers") is not None


def _tokenizer(folder: Path):
    """Return a tokenizer of single letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    known = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({one: place for place, one in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=WORDS,
        pad_token="<|endoftext|>",
    )


def make_pipeline(folder: Path, prediction_type: str = "epsilon", edge: int = EDGE) -> Path:
    """Write the folder of a pipeline whose VAE halves images once."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    blocks = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": edge // 2,
    }
    unet = UNet2DConditionModel(
        **blocks,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        **blocks | {"sample_size": edge},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )
    tokenizer = _tokenizer(folder / "letters")
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": 1}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        **ends,
    )
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(prediction_type=prediction_type, num_train_timesteps=100),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_clip(folder: Path, edge: int = EDGE) -> Path:
    """Write the folder of a CLIP model."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(1)
    tokenizer = _tokenizer(folder / "letters")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": 1}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": WORDS, **ends}
    vision = {**small, "image_size": edge, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": edge, "width": edge}
    CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=size).save_pretrained(folder)
    return folder
