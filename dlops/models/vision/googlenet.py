"""GoogLeNet: Szegedy, Liu, Jia and others 2015, "Going deeper with convolutions", sections 4 and 5, table 1.

    image [N, 3, 224, 224] -> conv1 7x7 stride 2, pool [64, 56, 56] -> conv2 1x1, conv3 3x3, pool [192, 28, 28]
      -> inception 3a, 3b, pool [480, 14, 14] -> inception 4a ... 4e, pool [832, 7, 7] -> inception 5a, 5b [1024, 7, 7]
      -> average [1024] -> dropout -> classes

An inception module (figure 2b) reads its input at four scales and stacks what it finds:

    branch1  1x1                       branch3  1x1 (fewer maps), 5x5
    branch2  1x1 (fewer maps), 3x3     branch4  3x3 max pooling, 1x1

Every convolution ends in a ReLU, fused into it. While training, two more classifiers read the maps behind 4a and 4d
(section 5): their losses, weighted 0.3, are added to the main one, see :func:`googlenet_loss`.

Preset "batch_norm" is torchvision's ``googlenet``, with its state_dict: batch normalisation (Ioffe & Szegedy 2015) between
convolution and ReLU in place of the local one, and 3x3 in branch3 (a slip that its trained weights froze).

What differs: the auxiliary classifiers average into a grid of 4x4 cells whatever the size of the maps, where the paper takes
5x5 windows of stride 3 on 14x14; initial weights, of which the paper says nothing, are He et al. 2015's, or torchvision's in
preset "batch_norm".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dlops import nn
from dlops.models._preset import Presets
from dlops.models.vision._image import check_image
from dlops.models.vision.alexnet import local_response_norm

#: One inception module: maps of branch1, branch2 (1x1, then 3x3), branch3 (1x1, then 5x5), branch4.
Widths = tuple[int, int, int, int, int, int]
#: Table 1, column by column; pooling between the stages 3, 4 and 5.
TABLE_1: dict[str, Widths] = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
SMALL: dict[str, Widths] = {
    "3a": (16, 16, 24, 8, 8, 8), "4a": (24, 24, 40, 8, 16, 16), "5a": (32, 32, 64, 8, 16, 16),
}  # fmt: skip


class Unit(nn.Module):
    """Convolution that keeps the size (but for its stride), batch normalisation if asked for, ReLU."""

    def __init__(self, c: int, o: int, kernel: int, stride: int = 1, batch_norm: bool = False) -> None:
        super().__init__()
        activation = None if batch_norm else "relu"
        self.conv = nn.Conv2d(c, o, kernel, stride, kernel // 2, bias=not batch_norm, activation=activation)
        self.bn = nn.BatchNorm2d(o, eps=1e-3) if batch_norm else None

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return maps if self.bn is None else torch.relu_(self.bn(maps))


class Inception(nn.Module):
    """Figure 2b: maps [N, c, H, W] -> [N, sum of the last widths of the branches, H, W]."""

    def __init__(self, c: int, widths: Widths, batch_norm: bool = False) -> None:
        super().__init__()
        one, three_reduced, three, five_reduced, five, pooled = widths
        self.width = one + three + five + pooled
        self.branch1 = Unit(c, one, 1, batch_norm=batch_norm)
        self.branch2 = nn.Sequential(
            Unit(c, three_reduced, 1, batch_norm=batch_norm), Unit(three_reduced, three, 3, batch_norm=batch_norm)
        )
        self.branch3 = nn.Sequential(
            Unit(c, five_reduced, 1, batch_norm=batch_norm),
            Unit(five_reduced, five, 3 if batch_norm else 5, batch_norm=batch_norm),
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), Unit(c, pooled, 1, batch_norm=batch_norm))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([self.branch1(maps), self.branch2(maps), self.branch3(maps), self.branch4(maps)], dim=1)


class Auxiliary(nn.Module):
    """A classifier on inner maps, section 5: [N, c, H, W] -> [N, classes]."""

    def __init__(self, c: int, classes: int, widths: tuple[int, int], batch_norm: bool, dropout: float) -> None:
        super().__init__()
        maps, hidden = widths
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.conv = Unit(c, maps, 1, batch_norm=batch_norm)
        self.fc1 = nn.Linear(maps * 16, hidden, activation="relu")
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.fc1(self.conv(self.grid(maps)).flatten(1))))


def _smallest(modules: dict[str, Widths], small_images: bool, batch_norm: bool) -> int:
    """The smallest side of an image that leaves a pixel to the last module."""
    poolings = len({name[0] for name in modules}) - 1 + (0 if small_images else 2)
    side = 1
    for k in range(poolings):
        side = 2 * side - 1 if batch_norm and k == 0 else 2 * side  # of the pooling's input; windows of 2, of 3
    return side if small_images else 2 * side - 1


class GoogLeNet(Presets, nn.Module):
    """Args:
        modules: inception modules by name, "3a" the first; a pooling comes before each change of the digit.
        stem: maps of conv1, conv2, conv3.
        auxiliary: after which two modules the auxiliary classifiers read; () for none.
        auxiliary_widths: their maps and hidden units.
        classes: number of outputs.
        channels: of the image.
        small_images: conv1 is 3x3 of stride 1 and the stem does not pool, so that the image is reduced by 4 and not by 32.
        batch_norm: torchvision's form.
        dropout, auxiliary_dropout: share of the inputs of the last linear layers that training drops.

    Shape:
        image [N, channels, H, W] -> logits [N, classes]; in training mode, with auxiliary classifiers, the triple
        (logits, logits behind 4a, logits behind 4d). H and W are at least 31; with preset
        "batch_norm" 15, with "small" 4.

    Raises:
        ValueError: an auxiliary classifier after a module that is not there; an image of another shape or too small.
    """

    PRESETS = {
        "original": {},
        "batch_norm": {"batch_norm": True, "dropout": 0.2},
        # images of 8 to 32 pixels
        "small": {"modules": SMALL, "stem": (16, 16, 32), "auxiliary": ("3a", "4a"), "auxiliary_widths": (16, 64),
                  "small_images": True},
    }  # fmt: skip

    def __init__(
        self, modules: dict[str, Widths] = TABLE_1, stem: tuple[int, int, int] = (64, 64, 192),
        auxiliary: tuple[str, ...] = ("4a", "4d"), auxiliary_widths: tuple[int, int] = (128, 1024), classes: int = 1000,
        channels: int = 3, small_images: bool = False, batch_norm: bool = False, dropout: float = 0.4,
        auxiliary_dropout: float = 0.7,
    ) -> None:  # fmt: skip
        super().__init__()
        if unknown := [name for name in auxiliary if name not in modules]:
            raise ValueError(f"GoogLeNet: auxiliary names {unknown[0]!r}, expected some of {', '.join(modules)}")
        self.channels, self.smallest = channels, _smallest(modules, small_images, batch_norm)
        self._names = tuple(modules)
        self._auxiliary = {name: f"aux{k}" for k, name in enumerate(auxiliary, 1)}
        self._small_images = small_images
        first = (3, 1) if small_images else (7, 2)
        self.conv1 = Unit(channels, stem[0], *first, batch_norm=batch_norm)
        self.conv2 = Unit(stem[0], stem[1], 1, batch_norm=batch_norm)
        self.conv3 = Unit(stem[1], stem[2], 3, batch_norm=batch_norm)
        self.norm = nn.Identity() if batch_norm or small_images else local_response_norm()
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        # torchvision's last pooling has windows of 2
        self.last_pool = nn.MaxPool2d(2, stride=2, ceil_mode=True) if batch_norm else self.pool
        c = stem[2]
        heads = {}
        for name, widths in modules.items():
            module = Inception(c, widths, batch_norm)
            self.add_module(f"inception{name}", module)
            c = module.width
            heads[name] = c
        for name, head in self._auxiliary.items():
            self.add_module(head, Auxiliary(heads[name], classes, auxiliary_widths, batch_norm, auxiliary_dropout))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(c, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                if batch_norm:
                    nn.init.trunc_normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _stem(self, image: Tensor) -> Tensor:
        if self._small_images:
            return self.conv3(self.conv2(self.conv1(image)))
        maps = self.norm(self.pool(self.conv1(image)))  # [N, 64, 56, 56]
        return self.pool(self.norm(self.conv3(self.conv2(maps))))  # [N, 192, 28, 28]

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        check_image(self, image, self.channels, self.smallest)
        maps = self._stem(image)
        auxiliary = []
        for before, name in zip((self._names[0], *self._names), self._names):
            if name[0] != before[0]:
                maps = (self.last_pool if name[0] == self._names[-1][0] else self.pool)(maps)
            maps = self.get_submodule(f"inception{name}")(maps)
            if self.training and name in self._auxiliary:
                auxiliary.append(self.get_submodule(self._auxiliary[name])(maps))
        logits = self.fc(self.dropout(maps.mean((2, 3))))
        return (logits, *auxiliary) if auxiliary else logits


def googlenet_loss(logits: Tensor | tuple[Tensor, ...], labels: Tensor, weight: float = 0.3) -> Tensor:
    """Cross-entropy, plus `weight` times that of each auxiliary classifier (section 5)."""
    main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
    return cross_entropy(main, labels) + weight * sum(cross_entropy(each, labels) for each in auxiliary)
