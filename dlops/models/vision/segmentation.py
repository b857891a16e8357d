"""Networks that give every pixel a class: the fully convolutional network and the U-Net, and the Dice coefficient.

FCN: Long, Shelhamer, Darrell 2015, "Fully convolutional networks for semantic segmentation", section 4 and figure 3. A
classifier whose dense layers have become convolutions scores every 32nd pixel; finer scores come from pool4 and pool3.

    image [N, C, H, W] -> stages 1..5, each halves -> fc6, fc7 -> score [N, K, H/32, W/32] -> x2 + score of pool4
                       -> x2 + score of pool3 [N, K, H/8, W/8] -> x8 -> [N, K, H, W]

U-Net: Ronneberger, Fischer, Brox 2015, "U-Net: convolutional networks for biomedical image segmentation", section 2 and
figure 1. Goes down as a classifier does, and up again reading at every level what the way down saw there.

    image -> block -> [pool -> block] * 4 -> [up-convolution, concatenate with the way down, block] * 4 -> 1x1 -> [N, K, ...]

What differs: the FCN pads every convolution by half its size (the paper pads the image by 100 and crops the scores). The
U-Net that the course trains, preset "small", pads too, has one convolution in a block and a batch norm behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets


def dice(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The soft Dice coefficient of every class, over all pixels of all samples: 1 where the masks are equal, 0 where apart.

    2 sum(p g) / (sum(p^2) + sum(g^2)): Milletari, Navab, Ahmadi 2016, "V-Net", section 3. A class that is in neither has 1.

    Args:
        probabilities: [N, K, ...].
        targets: [N, K, ...], usually one-hot.

    Returns:
        [K].
    """
    axes = [axis for axis in range(probabilities.dim()) if axis != 1]
    shared = (probabilities * targets).sum(axes)
    total = probabilities.square().sum(axes) + targets.square().sum(axes)
    return torch.where(total > 0, 2 * shared / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0)


def bilinear_kernel(factor: int) -> Tensor:
    """[2 * factor, 2 * factor]: what a transposed convolution of that stride, padded by factor / 2, must hold to interpolate."""
    centre = factor - 0.5
    ramp = 1 - (torch.arange(2 * factor) - centre).abs() / factor
    return ramp[:, None] * ramp


def _upsampling(classes: int, factor: int) -> nn.Module:
    """A transposed convolution of each class by itself, which starts as bilinear interpolation."""
    layer = nn.ConvTranspose2d(
        classes, classes, kernel_size=2 * factor, stride=factor, padding=factor // 2, groups=classes, bias=False
    )
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(factor).expand_as(layer.weight))
    return layer


def _he(layer: nn.Module) -> nn.Module:
    """Weights from a Gaussian of variance 2 / fan-in, biases 0 (U-Net, section 3; He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def _convolution(channels_in: int, channels_out: int, size: int, padding: int, normed: bool = False) -> nn.Module:
    """Convolution and ReLU in one kernel, or with a batch norm between the two."""
    sizes = {"kernel_size": size, "padding": padding}
    if not normed:
        return _he(nn.Conv2d(channels_in, channels_out, **sizes, activation="relu"))
    return nn.Sequential(_he(nn.Conv2d(channels_in, channels_out, **sizes)), nn.BatchNorm2d(channels_out), nn.ReLU())


def _zero(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FCN(Presets, nn.Module):
    """FCN-32s, FCN-16s or FCN-8s on a VGG-like backbone.

    Args:
        classes: number of classes, the background among them.
        channels: of the image.
        stride: of the finest scores: 32 (from the top alone), 16 (and pool4) or 8 (and pool3).
        widths: channels of the five stages.
        convolutions: 3x3 convolutions of each stage; a 2x2 max pooling follows them.
        head: channels of fc6 and fc7. head_size: odd side of the kernel of fc6.
        dropout: after fc6 and fc7.

    Shape:
        image [N, channels, H, W] with H and W multiples of 32 -> logits [N, classes, H, W].

    Raises:
        ValueError: another stride, not five stages, an even head_size; an image of another size.
    """

    PRESETS = {  # the paper's backbone is VGG-16, its 21 classes those of Pascal VOC
        "paper": {"classes": 21},
        "small": {
            "classes": 11, "channels": 1, "widths": (16, 32, 64, 64, 64), "convolutions": (1, 2, 2, 1, 1),
            "head": 128, "head_size": 3, "dropout": 0.0,
        },
    }  # fmt: skip

    def __init__(
        self, classes: int = 21, channels: int = 3, stride: int = 8, widths: Sequence[int] = (64, 128, 256, 512, 512),
        convolutions: Sequence[int] = (2, 2, 3, 3, 3), head: int = 4096, head_size: int = 7, dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if stride not in (8, 16, 32):
            raise ValueError(f"FCN: stride must be 8, 16 or 32: got {stride}")
        if len(widths) != 5 or len(convolutions) != 5:
            raise ValueError(
                f"FCN: widths and convolutions must have five entries: got {len(widths)} and {len(convolutions)}"
            )
        if head_size % 2 == 0:
            raise ValueError(f"FCN: head_size must be odd: got {head_size}")
        self.stages = nn.ModuleList()
        for width, count in zip(widths, convolutions):
            stage = nn.Sequential()
            for _ in range(count):
                stage.append(_convolution(channels, width, size=3, padding=1))
                channels = width
            stage.append(nn.MaxPool2d(2))
            self.stages.append(stage)
        self.fc6 = _convolution(channels, head, size=head_size, padding=head_size // 2)
        self.fc7 = _convolution(head, head, size=1, padding=0)
        self.dropout = nn.Dropout2d(dropout)
        # the scores start at zero (section 4.3), from the top down: fc7, pool4, pool3
        sources = [head, widths[3], widths[2]][: {32: 1, 16: 2, 8: 3}[stride]]
        self.scores = nn.ModuleList(_zero(nn.Conv2d(source, classes, kernel_size=1)) for source in sources)
        self.doublings = nn.ModuleList(_upsampling(classes, 2) for _ in sources[1:])
        self.enlargement = _upsampling(classes, stride).requires_grad_(
            False
        )  # fixed; the doublings learn (section 4.3)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % 32 or width % 32 or not height or not width:
            raise ValueError(f"FCN: image must have sides that are multiples of 32: got {height}x{width}")
        maps, pools = image, []
        for stage in self.stages:
            maps = stage(maps)
            pools.append(maps)
        maps = self.dropout(self.fc7(self.dropout(self.fc6(maps))))  # [N, head, H/32, W/32]
        scores = self.scores[0](maps)
        for doubling, score, pool in zip(self.doublings, self.scores[1:], (pools[3], pools[2])):
            scores = doubling(scores) + score(pool)
        return self.enlargement(scores)


class SegmentationUNet(Presets, nn.Module):
    """The U-Net.

    Args:
        classes: number of classes, the background among them.
        channels: of the image.
        widths: channels of every level; each level below the first works at half the size of the one above.
        padded: pad the 3x3 convolutions, so that the logits are as large as the image. Without, as in the paper, every
            convolution takes a pixel off each side and the logits are those of the middle of the image.
        dropout: at the end of the way down.
        normed: a batch norm between every 3x3 convolution and its ReLU. The paper has none; with it a network learns in
            hundreds of steps from few images.
        convolutions: 3x3 convolutions of a block; the paper has two.

    Shape:
        image [N, channels, H, W] -> logits [N, classes, H - margin, W - margin]; padded: margin 0, H and W multiples of
        2**L (L = len(widths) - 1). Not padded, two convolutions: margin 12 * 2**L - 8, H and W 2**L * k - 4 (the paper:
        572 -> 388).

    Raises:
        ValueError: fewer than two widths, no convolution; an image of another size.

    Attributes:
        reach: how many pixels around it a logit can depend on, at most, on each side.
    """

    PRESETS = {
        "paper": {},
        "small": {
            "classes": 11, "widths": (16, 32, 64, 128, 128), "padded": True, "dropout": 0.0, "normed": True, "convolutions": 1,
        },
    }  # fmt: skip

    def __init__(
        self, classes: int = 2, channels: int = 1, widths: Sequence[int] = (64, 128, 256, 512, 1024), padded: bool = False,
        dropout: float = 0.5, normed: bool = False, convolutions: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"SegmentationUNet: widths must have at least two entries: got {len(widths)}")
        if convolutions < 1:
            raise ValueError(f"SegmentationUNet: convolutions must be at least 1: got {convolutions}")
        padding = 1 if padded else 0

        def block(channels_in: int, channels_out: int) -> nn.Module:
            sources = [channels_in, *[channels_out] * (convolutions - 1)]
            return nn.Sequential(*(_convolution(source, channels_out, 3, padding, normed) for source in sources))

        self.padded = padded
        self.factor = 2 ** (len(widths) - 1)
        self._short = 2 * convolutions  # what a block without padding takes off a side
        # a pixel per convolution at the scale of its level, on the way down, at the bottom and on the way up, and the pixels
        # of the coarsest grid that share one value
        self.reach = 3 * convolutions * self.factor - self._short + self.factor - 1
        self.down = nn.ModuleList(block(a, b) for a, b in zip([channels, *widths], widths))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(low, high, kernel_size=2, stride=2) for high, low in zip(widths, widths[1:])
        )
        self.up = nn.ModuleList(block(2 * width, width) for width in widths[:-1])
        self.score = nn.Conv2d(widths[0], classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        self._check_size(*image.shape[-2:])
        skips, maps = [], image
        for level, block in enumerate(self.down):
            maps = block(self.pool(maps) if level else maps)
            skips.append(maps)
        maps = self.dropout(skips.pop())
        for level in reversed(range(len(skips))):
            maps = self.enlarge[level](maps)
            maps = self.up[level](torch.cat([_middle(skips[level], maps), maps], dim=1))
        return self.score(maps)

    def _check_size(self, height: int, width: int) -> None:
        # unpadded: block, halving, block, ...: the side at the bottom is whole where side + short divides by the factor; from
        # 3 * short * factor - short on there is something left at the top
        short, least = (0, self.factor) if self.padded else (self._short, (3 * self.factor - 1) * self._short)
        if (height + short) % self.factor or (width + short) % self.factor or min(height, width) < least:
            form = f"multiples of {self.factor}" + (f" less {short}" if short else "")
            raise ValueError(
                f"SegmentationUNet: image must have sides that are {form}, at least {least}: got {height}x{width}"
            )


def _middle(larger: Tensor, like: Tensor) -> Tensor:
    """The middle of `larger` [..., H, W], as large as `like`."""
    top, left = (larger.shape[-2] - like.shape[-2]) // 2, (larger.shape[-1] - like.shape[-1]) // 2
    return larger[..., top : top + like.shape[-2], left : left + like.shape[-1]]
