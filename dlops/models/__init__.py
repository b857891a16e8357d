"""Whole networks made of `dlops.nn` modules."""

from dlops.models.unet import UNet, timestep_embedding

__all__ = ["UNet", "timestep_embedding"]
