"""AlexNet: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks", section 3.

    image [N, 3, 224, 224] -> conv1 11x11 stride 4 [96, 55, 55] -> norm, pool [96, 27, 27]
      -> conv2 5x5 [256, 27, 27] -> norm, pool [256, 13, 13] -> conv3 3x3 [384, 13, 13] -> conv4 3x3 [384, 13, 13]
      -> conv5 3x3 [256, 13, 13] -> pool [256, 6, 6] -> 4096 -> 4096 -> classes

ReLU after every layer but the last (section 3.1), fused into it. In conv2, conv4 and conv5 the maps of each half read only
their own half: the two halves were two GPUs (section 3.2), here they are groups=2. `norm` is section 3.3, its pooling
windows of 3 overlap by 1 (section 3.4), and the two hidden linear layers read their input through dropout (section 4.2).

One tower: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", footnote 1 of section 5: no
halves, no normalisation, other widths. This is torchvision's ``alexnet``; its state_dict loads here and ours there.

What differs: conv1 pads by 2 (the paper's 224 and 55 do not agree without), the last pooling is followed by an average over
a grid of fixed size, which at 224 does nothing and lets other sizes in, and initial weights are torch's, not N(0, 0.01).
"""

from __future__ import annotations

from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets
from dlops.models.vision._image import check_image, numbered


def local_response_norm(size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> nn.Module:
    """b_i = a_i / (k + alpha * sum of a_j^2 over the `size` maps around i)^beta: section 3.3, with its constants.

    torch's divides alpha by `size`: it averages where the paper adds up.
    """
    return nn.LocalResponseNorm(size, alpha * size, beta, k)


class AlexNet(Presets, nn.Module):
    """Args:
        classes: number of outputs.
        channels: of the image.
        widths: maps of conv1 to conv5.
        hidden: units of the two hidden linear layers.
        stem: (kernel size, stride, padding) of conv1.
        groups: into how many halves conv2, conv4 and conv5 are cut.
        norm: local response normalisation after conv1 and conv2.
        grid: side of the maps that the linear layers read.
        dropout: share of the inputs of the hidden layers that training drops.

    Shape:
        image [N, channels, H, W] -> logits [N, classes]. H and W are at least 63; with preset "small" 15.

    Raises:
        ValueError: widths are not five; an image of another shape or too small.
    """

    PRESETS = {
        "original": {},
        "one_tower": {"widths": (64, 192, 384, 256, 256), "groups": 1, "norm": False},
        # images of 24 to 64 pixels: everything of the original, an eighth of its width
        "small": {"widths": (16, 32, 48, 48, 32), "hidden": 128, "stem": (5, 1, 2), "grid": 3},
    }  # fmt: skip

    def __init__(
        self, classes: int = 1000, channels: int = 3, widths: tuple[int, ...] = (96, 256, 384, 384, 256), hidden: int = 4096,
        stem: tuple[int, int, int] = (11, 4, 2), groups: int = 2, norm: bool = True, grid: int = 6, dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(widths) != 5:
            raise ValueError(f"AlexNet: widths must be five numbers: got {widths}")
        kernel, stride, padding = stem
        self.channels = channels
        self.smallest = 14 * stride + kernel - 2 * padding  # conv1 must leave 15 pixels, of which the poolings make 7, 3, 1

        def pool(normed: bool) -> nn.Module:
            windows = nn.MaxPool2d(3, stride=2)
            return nn.Sequential(local_response_norm(), windows) if normed else windows

        def conv(c: int, o: int, k: int, groups: int) -> nn.Module:
            return nn.Conv2d(c, o, k, padding=k // 2, groups=groups, activation="relu")

        c1, c2, c3, c4, c5 = widths
        self.features = numbered({
            0: nn.Conv2d(channels, c1, kernel, stride, padding, activation="relu"), 2: pool(norm),
            3: conv(c1, c2, 5, groups), 5: pool(norm),
            6: conv(c2, c3, 3, 1), 8: conv(c3, c4, 3, groups), 10: conv(c4, c5, 3, groups), 12: pool(False),
        })  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = numbered({
            0: nn.Dropout(dropout), 1: nn.Linear(c5 * grid * grid, hidden, activation="relu"),
            3: nn.Dropout(dropout), 4: nn.Linear(hidden, hidden, activation="relu"), 6: nn.Linear(hidden, classes),
        })  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        check_image(self, image, self.channels, self.smallest)
        return self.classifier(self.avgpool(self.features(image)).flatten(1))
