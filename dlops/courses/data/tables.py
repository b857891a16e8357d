"""The tables inside scikit-learn: iris, wine, breast cancer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("iris", "wine", "breast_cancer")


@dataclass(frozen=True)
class Table:
    """Features [N, F] float32, standardised by the training rows, labels [N] int64, and the names of both."""

    features: Tensor
    labels: Tensor
    columns: tuple[str, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)


def load_table(name: str, held_out: float = 0.3) -> tuple[Table, Table]:
    """(training, test): a split with the same share of every class; the same split on every call.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"load_table: name must be one of {', '.join(NAMES)}: got {name!r}")
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    raw = getattr(datasets, f"load_{name}")()
    parts = train_test_split(raw.data, raw.target, test_size=held_out, stratify=raw.target, random_state=0)
    features = [torch.tensor(part, dtype=torch.float64) for part in parts[:2]]
    mean, deviation = features[0].mean(0), features[0].std(0)
    names = tuple(map(str, raw.feature_names)), tuple(map(str, raw.target_names))
    training, test = (
        Table(((part - mean) / deviation).float(), torch.tensor(labels, dtype=torch.int64), *names)
        for part, labels in zip(features, parts[2:])
    )
    return training, test
