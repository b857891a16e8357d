"""VGG: Simonyan, Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", section 2, table 1.

    image [N, 3, 224, 224] -> five blocks of 3x3 convolutions, each ended by a 2x2 pooling: [64, 112, 112], [128, 56, 56],
      [256, 28, 28], [512, 14, 14], [512, 7, 7] -> 4096 -> 4096 -> classes

ReLU after every layer but the last, fused into it. Two 3x3 convolutions see 5x5 pixels, three see 7x7, with fewer weights
and more ReLUs than one layer of that size (section 2.3). The networks differ in how many convolutions a block has. The
state_dict is that of torchvision's ``vgg11`` ... ``vgg19_bn``.

What differs: initial weights are He et al. 2015's (the paper copied layers of a trained shallow network; its footnote says
that Glorot & Bengio 2010's would have done); the batch normalisation of the "_bn" presets came later (Ioffe & Szegedy 2015);
the last pooling is followed by an average over a grid of fixed size, which at 224 does nothing and lets other sizes in.
"""

from __future__ import annotations

from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets
from dlops.models.vision._image import check_image, numbered

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class VGG(Presets, nn.Module):
    """Args:
        depths: convolutions in each block.
        widths: maps in each block.
        classes: number of outputs.
        channels: of the image.
        hidden: units of the two hidden linear layers.
        grid: side of the maps that the linear layers read.
        dropout: share of the inputs of the last two linear layers that training drops.
        batch_norm: normalise between convolution and ReLU.
        linear_std: deviation of the linear layers' initial weights; None: He et al.'s, for layers far narrower than 4096.

    Shape:
        image [N, channels, H, W] -> logits [N, classes]. H and W are at least 2 ** number of blocks.

    Raises:
        ValueError: depths and widths of different lengths; an image of another shape or too small.
    """

    PRESETS = {
        **{name: {"depths": depths} for name, depths in DEPTHS.items()},
        **{f"{name}_bn": {"depths": depths, "batch_norm": True} for name, depths in DEPTHS.items()},
        # images of 8 to 32 pixels
        "small": {"depths": (2, 2, 2), "widths": (32, 64, 128), "hidden": 128, "grid": 1, "linear_std": None},
    }  # fmt: skip

    def __init__(
        self, depths: tuple[int, ...] = DEPTHS["vgg16"], widths: tuple[int, ...] = WIDTHS, classes: int = 1000, channels: int = 3,
        hidden: int = 4096, grid: int = 7, dropout: float = 0.5, batch_norm: bool = False, linear_std: float | None = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(depths) != len(widths):
            raise ValueError(f"VGG: depths and widths must be equally many: got {depths} and {widths}")
        self.channels, self.smallest = channels, 2 ** len(depths)
        layers: dict[int, nn.Module] = {}
        c, number = channels, 0
        for depth, width in zip(depths, widths):
            for _ in range(depth):
                layers[number] = nn.Conv2d(c, width, 3, padding=1, activation=None if batch_norm else "relu")
                if batch_norm:
                    layers |= {number + 1: nn.BatchNorm2d(width), number + 2: nn.ReLU(inplace=True)}
                number += 3 if batch_norm else 2
                c = width
            layers[number] = nn.MaxPool2d(2)
            number += 1
        self.features = numbered(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = numbered({
            0: nn.Linear(c * grid * grid, hidden, activation="relu"), 2: nn.Dropout(dropout),
            3: nn.Linear(hidden, hidden, activation="relu"), 5: nn.Dropout(dropout), 6: nn.Linear(hidden, classes),
        })  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Linear) and linear_std is not None:
                nn.init.normal_(module.weight, std=linear_std)
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                continue
            nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        check_image(self, image, self.channels, self.smallest)
        return self.classifier(self.avgpool(self.features(image)).flatten(1))
