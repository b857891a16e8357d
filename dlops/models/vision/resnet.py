"""Residual networks: He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition".

A block learns the difference from its input, y = relu(F(x) + x) (eq. 1); where the shapes differ, y = relu(F(x) + W x) (eq. 2):

    basic (fig. 5 left)        x [N, C, H, W] -> 3x3 -> norm -> relu -> 3x3 -> norm -> + x -> relu
    bottleneck (fig. 5 right)  x [N, 4C, H, W] -> 1x1 [C] -> norm -> relu -> 3x3 -> norm -> relu
                                               -> 1x1 [4C] -> norm -> + x -> relu

    ImageNet, table 1          image [N, 3, 224, 224] -> 7x7 /2 [64, 112, 112] -> max pool /2 [64, 56, 56]
                               -> four stages [64, 56, 56] [128, 28, 28] [256, 14, 14] [512, 7, 7] (bottleneck: 4x the maps)
                               -> average [512] -> logits
    CIFAR, section 4.2         image [N, 3, 32, 32] -> 3x3 [16, 32, 32] -> three stages [16, 32, 32] [32, 16, 16] [64, 8, 8]
                               of n blocks each, 6 n + 2 layers -> average [64] -> logits

What differs: a bottleneck that halves the image does so in its 3x3 convolution, not in the first 1x1 (as torchvision, whose
weights load: the parameters have its names). `norm=False`, which the paper has not, leaves the batch normalisation out; then
every convolution, its bias, the shortcut and the ReLU are one kernel, and the last convolution of each branch starts at zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlops import nn
from dlops.models._preset import Presets

STEMS = ("imagenet", "small")
SHORTCUTS = ("A", "B", "none")


class Subsample(nn.Module):
    """Shortcut of option A: every stride-th pixel, and zeros for the maps that the input does not have. No parameters."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, maps: Tensor) -> Tensor:
        return pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def _conv(inputs: int, outputs: int, kernel: int, stride: int, norm: bool, relu: bool = True) -> nn.Conv2d:
    """Without a norm behind it the convolution has a bias and does the ReLU itself."""
    activation = "relu" if relu and not norm else None
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm, activation=activation)


def _norm(maps: int, norm: bool) -> nn.BatchNorm2d | None:
    return nn.BatchNorm2d(maps) if norm else None


def _layer(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, maps: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(conv(maps)) + residual)"""
    if norm is None:
        return conv(maps, residual)  # one kernel
    maps = norm(conv(maps))
    return (maps if residual is None else maps + residual).relu_()


def _shortcut(option: str, inputs: int, outputs: int, stride: int, norm: bool) -> nn.Module | None:
    """What brings the input of a block to the shape of its output; None where it has that shape."""
    if option == "none" or (inputs == outputs and stride == 1):
        return None
    if option == "A":
        return Subsample(stride, outputs - inputs)
    conv = _conv(inputs, outputs, 1, stride, norm, relu=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs)) if norm else nn.Sequential(conv)


class _Block(nn.Module):
    EXPANSION: int  # maps of the output / width
    residual: bool
    downsample: nn.Module | None

    def shortcut(self, maps: Tensor) -> Tensor | None:
        """What is added to the branch; None in a plain network."""
        if not self.residual:
            return None
        return maps if self.downsample is None else self.downsample(maps)


class BasicBlock(_Block):
    """Two 3x3 convolutions.

    Args:
        inputs: maps of the input. width: maps of the output.
        stride: of the first convolution.
        shortcut: where the shapes differ, "A" (zeros for new maps) or "B" (1x1 convolution); "none": a plain network, no sum.
        norm: batch normalisation after every convolution.

    Shape:
        [N, inputs, H, W] -> [N, width, ceil(H / stride), ceil(W / stride)]
    """

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, shortcut: str = "B", norm: bool = True) -> None:
        super().__init__()
        self.residual = shortcut != "none"
        downsample = _shortcut(shortcut, inputs, width, stride, norm)  # before the rest: torchvision's order of drawing
        self.conv1 = _conv(inputs, width, 3, stride, norm)
        self.bn1 = _norm(width, norm)
        self.conv2 = _conv(width, width, 3, 1, norm)
        self.bn2 = _norm(width, norm)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        inner = _layer(self.conv1, self.bn1, maps)
        return _layer(self.conv2, self.bn2, inner, self.shortcut(maps))


class Bottleneck(_Block):
    """1x1 to `width` maps, 3x3, 1x1 to 4 `width` maps. Arguments as BasicBlock.

    Shape:
        [N, inputs, H, W] -> [N, 4 width, ceil(H / stride), ceil(W / stride)]
    """

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, shortcut: str = "B", norm: bool = True) -> None:
        super().__init__()
        outputs = width * self.EXPANSION
        self.residual = shortcut != "none"
        downsample = _shortcut(shortcut, inputs, outputs, stride, norm)
        self.conv1 = _conv(inputs, width, 1, 1, norm)
        self.bn1 = _norm(width, norm)
        self.conv2 = _conv(width, width, 3, stride, norm)
        self.bn2 = _norm(width, norm)
        self.conv3 = _conv(width, outputs, 1, 1, norm)
        self.bn3 = _norm(outputs, norm)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        inner = _layer(self.conv1, self.bn1, maps)
        inner = _layer(self.conv2, self.bn2, inner)
        return _layer(self.conv3, self.bn3, inner, self.shortcut(maps))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _imagenet(block: str, *depths: int) -> dict:
    return {"block": block, "depths": depths}


def _cifar(layers: int, shortcut: str = "A") -> dict:
    depth = (layers - 2) // 6
    sizes = {"block": "basic", "depths": (depth,) * 3, "widths": (16, 32, 64)}
    return {**sizes, "classes": 10, "stem": "small", "shortcut": shortcut}


class ResNet(Presets, nn.Module):
    """Args:
        block: "basic" or "bottleneck".
        depths: blocks of each stage. widths: maps of each stage (of a bottleneck: of its 3x3 convolution).
        classes: number of outputs. channels: of the image.
        stem: "imagenet" (7x7 of stride 2, then max pooling) or "small" (3x3, for images of about 8x8 to 64x64 pixels).
        shortcut: "A", "B" or "none", see BasicBlock.
        norm: batch normalisation after every convolution.
        zero_branches: every block starts as the identity (the scale of its last normalisation is zero).

    Shape:
        image [N, channels, H, W] -> logits [N, classes].

    Raises:
        ValueError: an unknown block, stem or shortcut; depths and widths of different lengths; an image of another shape.
    """

    PRESETS = {
        "resnet18": _imagenet("basic", 2, 2, 2, 2),
        "resnet34": _imagenet("basic", 3, 4, 6, 3),
        "resnet50": _imagenet("bottleneck", 3, 4, 6, 3),
        "resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
        "resnet152": _imagenet("bottleneck", 3, 8, 36, 3),
        "resnet8": _cifar(8),
        "resnet20": _cifar(20),
        "resnet56": _cifar(56),
        "plain20": _cifar(20, shortcut="none"),
        "plain56": _cifar(56, shortcut="none"),
    }

    def __init__(
        self, block: str = "basic", depths: Sequence[int] = (2, 2, 2, 2), widths: Sequence[int] = (64, 128, 256, 512),
        classes: int = 1000, channels: int = 3, stem: str = "imagenet", shortcut: str = "B", norm: bool = True,
        zero_branches: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        depths, widths = tuple(depths), tuple(widths)
        for name, value, allowed in ("block", block, BLOCKS), ("stem", stem, STEMS), ("shortcut", shortcut, SHORTCUTS):
            if value not in allowed:
                raise ValueError(f"ResNet: {name} must be one of {', '.join(map(repr, allowed))}: got {value!r}")
        if not depths or len(depths) != len(widths) or min(*depths, *widths) < 1:
            raise ValueError(f"ResNet: depths and widths must be positive and equally many: got {depths} and {widths}")
        if shortcut == "A" and list(widths) != sorted(widths):
            raise ValueError(f"ResNet: widths must not decrease with shortcut 'A', which only adds maps: got {widths}")
        self._arguments = dict(
            block=block, depths=depths, widths=widths, classes=classes, channels=channels, stem=stem, shortcut=shortcut,
        )  # fmt: skip
        self.channels = channels
        make, maps = BLOCKS[block], widths[0]
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = _conv(channels, maps, kernel, stride, norm)
        self.bn1 = _norm(maps, norm)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages = len(depths)
        for stage, (depth, width) in enumerate(zip(depths, widths), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(make(maps, width, stride, shortcut, norm))
                maps = width * make.EXPANSION
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(maps, classes)
        self._start(norm, zero_branches)

    def _start(self, norm: bool, zero_branches: bool) -> None:
        """He et al. 2015, eq. 15, with the number of outputs as torchvision has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block) and module.residual and (zero_branches or not norm):
                number = 3 if isinstance(module, Bottleneck) else 2
                torch.nn.init.zeros_(getattr(module, f"{'bn' if norm else 'conv'}{number}").weight)

    def forward(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != self.channels or 0 in image.shape[2:]:
            raise ValueError(f"ResNet: image must be [N, {self.channels}, H, W]: got {list(image.shape)}")
        maps = self.pool(_layer(self.conv1, self.bn1, image))
        for stage in range(1, self.stages + 1):
            maps = getattr(self, f"layer{stage}")(maps)
        return self.fc(maps.mean((2, 3)))

    @torch.no_grad()
    def folded(self) -> ResNet:
        """A network for inference without batch normalisation: its scale and shift, from the running statistics, become part
        of the convolution before it, so that each layer with its shortcut and ReLU is one kernel. The same outputs.

        Raises:
            ValueError: there is no batch normalisation.
        """
        if self.bn1 is None:
            raise ValueError("ResNet: folded needs norm=True, but this network has no batch normalisation")
        plain = ResNet(**self._arguments, norm=False).to(self.fc.weight)
        weights = copy.deepcopy(self.state_dict())
        for name in [name for name in weights if name.endswith("running_mean")]:
            # layer1.0.bn2 goes with layer1.0.conv2, downsample.1 with downsample.0
            norm = name.removesuffix(".running_mean")
            conv = norm.replace("bn", "conv") if "bn" in norm else norm.removesuffix("1") + "0"
            scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + self.get_submodule(norm).eps).sqrt()
            weights[f"{conv}.weight"] *= scale[:, None, None, None]
            weights[f"{conv}.bias"] = weights[f"{norm}.bias"] - weights[name] * scale
        names = plain.state_dict().keys()
        plain.load_state_dict({name: weights[name] for name in names})
        return plain.eval()
