"""The 1,797 handwritten digits inside scikit-learn (Alpaydin & Kaynak 1998), split for training and judging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 10
LEVELS = 17  # grey levels 0..16, stored here as -1, -7/8, ..., 1


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] float32 from -1 (paper) to 1 (ink) and their labels [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def load_digits(held_out: float = 0.2) -> tuple[Digits, Digits]:
    """(training, test): a split with the same share of every class; the same split on every call."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    raw = sklearn_digits()
    parts = train_test_split(raw.images, raw.target, test_size=held_out, stratify=raw.target, random_state=0)
    half_scale = (LEVELS - 1) / 2
    images = [torch.tensor(part / half_scale - 1, dtype=torch.float32)[:, None] for part in parts[:2]]
    labels = [torch.tensor(part, dtype=torch.int64) for part in parts[2:]]
    return Digits(images[0], labels[0]), Digits(images[1], labels[1])
