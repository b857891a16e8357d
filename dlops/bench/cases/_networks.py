"""Convolutional networks in as few lines as show their layers: the published widths, random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """The basic block of He et al. 2016, figure 5 left."""

    def __init__(self, c: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, o, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        skip = nn.Sequential(nn.Conv2d(c, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.skip = nn.Identity() if stride == 1 and c == o else skip

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x), inplace=True)


def resnet18() -> nn.Module:
    """He et al. 2016, table 1."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    for c, o, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [ResidualBlock(c, o, stride), ResidualBlock(o, o, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def vgg11() -> nn.Module:
    """The convolutional part of Simonyan & Zisserman 2015, table 1, column A."""
    layers: list[nn.Module] = []
    c = 3
    for o, pools in ((64, True), (128, True), (256, False), (256, True), (512, False), (512, True), (512, False), (512, True)):
        layers += [nn.Conv2d(c, o, 3, padding=1), nn.ReLU(True), *([nn.MaxPool2d(2)] if pools else [])]
        c = o
    return nn.Sequential(*layers)


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022, figure 4 right, channels last throughout."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.scale = nn.Parameter(torch.full((c,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).movedim(-1, 1)


def convnext() -> nn.Module:
    """ConvNeXt-T (Liu et al. 2022, section 2) with 1, 1, 3, 1 blocks instead of 3, 3, 9, 3."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4)]
    for c, blocks, following in ((96, 1, 192), (192, 1, 384), (384, 3, 768), (768, 1, 0)):
        layers += [ConvNeXtBlock(c) for _ in range(blocks)]
        layers += [nn.Conv2d(c, following, 2, 2)] if following else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 1000))


class SmallUNet(nn.Module):
    """Ronneberger et al. 2015, figure 1, with two levels, padding and a quarter of the channels."""

    def __init__(self) -> None:
        super().__init__()

        def twice(c: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c, o, 3, 1, 1), nn.ReLU(True), nn.Conv2d(o, o, 3, 1, 1), nn.ReLU(True))

        self.down1, self.down2, self.middle = twice(1, 32), twice(32, 64), twice(64, 128)
        self.raise2, self.raise1 = nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.up2, self.up1, self.last = twice(128, 64), twice(64, 32), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.raise2(self.middle(F.max_pool2d(b, 2)))
        y = self.raise1(self.up2(torch.cat((b, y), 1)))
        return self.last(self.up1(torch.cat((a, y), 1)))


def dcgan() -> nn.Module:
    """The generator of Radford et al. 2016, figure 1: noise [N, 100, 1, 1] to images [N, 3, 64, 64]."""
    layers: list[nn.Module] = []
    for c, o, stride, padding in ((100, 512, 1, 0), (512, 256, 2, 1), (256, 128, 2, 1), (128, 64, 2, 1)):
        layers += [nn.ConvTranspose2d(c, o, 4, stride, padding, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh())


#: name: (network, shape of its input, memory format)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.memory_format]] = {
    "resnet18": (resnet18, (1, 3, 224, 224), torch.contiguous_format),
    "resnet18.last": (resnet18, (1, 3, 224, 224), torch.channels_last),
    "vgg11": (vgg11, (1, 3, 224, 224), torch.contiguous_format),
    "convnext": (convnext, (2, 3, 224, 224), torch.channels_last),
    "small_unet": (SmallUNet, (2, 1, 128, 128), torch.contiguous_format),
    "dcgan": (dcgan, (16, 100, 1, 1), torch.contiguous_format),
}
TRAINED = ("resnet18", "convnext", "small_unet")
