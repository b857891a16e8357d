"""The two photographs inside scikit-learn: a temple in China and a flower."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("china.jpg", "flower.jpg")


def load_photographs() -> Tensor:
    """float32 [2, 3, 427, 640], from 0 to 1."""
    from sklearn.datasets import load_sample_image

    images = [torch.from_numpy(load_sample_image(name).copy()) for name in NAMES]
    return torch.stack(images).permute(0, 3, 1, 2).contiguous().float() / 255
