"""Backbones, the masked autoencoder, heads and encoder files."""
