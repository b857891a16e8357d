"""Denoisers of diffusion models."""

from dlops.models.diffusion.unet import UNet, timestep_embedding

__all__ = ["UNet", "timestep_embedding"]
