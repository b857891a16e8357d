"""Whole networks made of `dlops.nn` modules, a folder per chapter of the courses, a file per family of architectures.

Each file can be read beside its paper: the docstrings name section and equation, shapes stand in brackets, and what
differs from the paper is said. Sizes are arguments; the paper's own are presets: ``ResNet.from_preset("resnet18")``.
"""

from dlops.models.diffusion.unet import UNet, timestep_embedding

__all__ = ["UNet", "timestep_embedding"]
