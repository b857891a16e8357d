"""LeNet-5: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", section II.B.

    image [N, 1, 32, 32] -> C1 5x5 [6, 28, 28] -> S2 [6, 14, 14] -> C3 5x5 [16, 10, 10] -> S4 [16, 5, 5]
                         -> C5 5x5 [120, 1, 1] -> F6 [84] -> output [classes]

What differs: every map of C3 reads all maps of S2 (the paper's table I leaves some out, to save memory), S2 and S4 have no
trainable coefficient and bias, and the output is a linear layer for the cross-entropy instead of Euclidean RBF units.
"""

from __future__ import annotations

from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets


class LeNet5(Presets, nn.Module):
    """Args:
        classes: number of outputs.
        channels: of the image.
        activation: "tanh" (the paper's, with average pooling) or "relu" (as trained today, with max pooling).

    Shape:
        image [N, channels, 32, 32] -> logits [N, classes].

    Raises:
        ValueError: another activation; an image of another size.
    """

    PRESETS = {"original": {"activation": "tanh"}, "relu": {"activation": "relu"}}
    SIDE = 32

    def __init__(self, classes: int = 10, channels: int = 1, activation: str = "tanh") -> None:
        super().__init__()
        if activation not in ("tanh", "relu"):
            raise ValueError(f"LeNet5: activation must be 'tanh' or 'relu': got {activation!r}")
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5, activation=activation)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5, activation=activation)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5, activation=activation)
        self.pool = nn.AvgPool2d(2) if activation == "tanh" else nn.MaxPool2d(2)  # S2 and S4
        self.f6 = nn.Linear(120, 84, activation=activation)
        self.output = nn.Linear(84, classes)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.SIDE, self.SIDE):
            size = "x".join(map(str, image.shape[-2:]))
            raise ValueError(f"LeNet5: image must be {self.SIDE}x{self.SIDE}: got {size}")
        maps = self.pool(self.c1(image))  # [N, 6, 14, 14]
        maps = self.pool(self.c3(maps))  # [N, 16, 5, 5]
        return self.output(self.f6(self.c5(maps).flatten(1)))
