"""Two questions to a set of drawn digits: does each show the class that was asked for, and is each more than a copy?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlops.courses.data.digits import Digits

ACCURACY_GOAL = 0.97
DISTANCE_GOAL = 0.15  # how far the nearest-neighbour ratio may be from 1


@dataclass(frozen=True)
class Verdict:
    """accuracy: share of images that the classifier gives the intended class. distance: mean distance (L2 over pixels)
    from an image to the nearest training image. distance_ratio: the same over that of real test digits."""

    accuracy: float
    distance: float
    distance_ratio: float

    @property
    def passed(self) -> bool:
        return self.accuracy >= ACCURACY_GOAL and abs(self.distance_ratio - 1) <= DISTANCE_GOAL


class Judge:
    """A support vector machine, trained apart on the training digits, and the nearest of those digits.

    A model that memorises draws training images: a distance ratio near 0. One that draws noise or blends lands far from
    any digit: a ratio well above 1 or a poor accuracy. Unseen real digits have the ratio 1 by definition.
    """

    def __init__(self, training: Digits, test: Digits) -> None:
        from sklearn.svm import SVC

        self._training = training.images.flatten(1)  # [N, 64]
        # gamma as in scikit-learn's own example for these digits (0.001 on grey levels 0..16), in units of our pixels
        self._classifier = SVC(C=10.0, gamma=0.001 * 8**2).fit(self._training.numpy(), training.labels.numpy())
        self._real_distance = self._distance(test.images)
        self.real = self(test)

    def __call__(self, drawn: Digits) -> Verdict:
        """drawn: images and the classes that were asked for."""
        found = torch.from_numpy(self._classifier.predict(drawn.images.flatten(1).numpy()))
        accuracy = (found == drawn.labels).double().mean().item()
        distance = self._distance(drawn.images)
        return Verdict(accuracy, distance, distance / self._real_distance)

    def _distance(self, images: Tensor) -> float:
        return torch.cdist(images.flatten(1), self._training).amin(dim=1).double().mean().item()
