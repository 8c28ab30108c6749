"""Encoder weights in and out: our safetensors files, and checkpoints of MONAI's transformers."""
