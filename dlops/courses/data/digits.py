"""The 1,797 handwritten digits inside scikit-learn (Alpaydin & Kaynak 1998), split for training and judging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 10
LEVELS = 17  # grey levels 0..16


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] float32 from -1 or 0 (paper) to 1 (ink) and their labels [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def load_digits(held_out: float = 0.2, low: float = -1.0) -> tuple[Digits, Digits]:
    """(training, test): a split with the same share of every class; the same split on every call. Paper is `low`, ink 1."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    raw = sklearn_digits()
    parts = train_test_split(raw.images, raw.target, test_size=held_out, stratify=raw.target, random_state=0)
    scale = (LEVELS - 1) / (1 - low)
    images = [torch.tensor(part / scale + low, dtype=torch.float32)[:, None] for part in parts[:2]]
    labels = [torch.tensor(part, dtype=torch.int64) for part in parts[2:]]
    return Digits(images[0], labels[0]), Digits(images[1], labels[1])
