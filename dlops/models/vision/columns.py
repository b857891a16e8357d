"""Multi-column deep neural networks: Ciresan, Meier, Schmidhuber 2012, "Multi-column deep neural networks for image
classification" (MCDNN), section 2 and figure 1; for traffic signs Ciresan, Meier, Masci, Schmidhuber 2012, "Multi-column deep
neural network for traffic sign classification"; for Chinese characters Ciresan & Schmidhuber 2013.

Columns, convolutional networks that were trained apart, each on its own preprocessing of the image, are averaged:

    image -> preprocessing 1 -> column 1 -> softmax \\
    image -> preprocessing 2 -> column 2 -> softmax  -> mean [N, classes]
    ...                                             /

What differs: the columns end in a linear layer and the mean is given as its logarithm, so that it can stand where logits do;
the activation may be ReLU instead of the paper's scaled tanh; colour images are preprocessed by channel, not in Lab space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlops import nn
from dlops.models._preset import Presets


class Column(Presets, nn.Module):
    """One column: convolutions, each with a max pooling, then two linear layers; 1x29x29-20C4-MP2-40C5-MP3-150N-10N.

    Args:
        side, channels: of the image.
        convolutions: (maps, kernel size, pooling size) of every stage: (20, 4, 2) is 20C4-MP2.
        hidden: width of the linear layer before the last. classes: number of outputs.
        activation: "tanh" (the paper's) or "relu".

    Shape:
        image [N, channels, side, side] -> logits [N, classes].

    Raises:
        ValueError: another activation; stages that leave nothing of the image; an image of another size.
    """

    PRESETS = {  # those of the papers; "signs" is the one with 1,543,443 parameters, 25 of which won the GTSRB contest
        "mnist": {},
        "characters": {
            "side": 48, "convolutions": ((100, 3, 2), (200, 2, 2), (300, 2, 2), (400, 2, 2)), "hidden": 500, "classes": 3755,
        },
        "signs": {
            "side": 48, "channels": 3, "convolutions": ((100, 7, 2), (150, 4, 2), (250, 4, 2)), "hidden": 300, "classes": 43,
        },
        "small signs": {
            "side": 32, "channels": 3, "convolutions": ((16, 5, 2), (32, 3, 2), (64, 3, 2)), "hidden": 128, "classes": 43,
            "activation": "relu",
        },
    }  # fmt: skip

    def __init__(
        self, side: int = 29, channels: int = 1, convolutions: Sequence[tuple[int, int, int]] = ((20, 4, 2), (40, 5, 3)),
        hidden: int = 150, classes: int = 10, activation: str = "tanh",
    ) -> None:  # fmt: skip
        super().__init__()
        if activation not in ("tanh", "relu"):
            raise ValueError(f"Column: activation must be 'tanh' or 'relu': got {activation!r}")
        self.shape, left = (channels, side, side), side
        self.stages = nn.Sequential()
        for maps, size, pool in convolutions:
            self.stages.append(nn.Conv2d(channels, maps, kernel_size=size, activation=activation))
            self.stages.append(nn.MaxPool2d(pool))
            channels, left = maps, (left - size + 1) // pool
        if left < 1:
            raise ValueError(
                f"Column: convolutions leave nothing of an image of side {side}: got {tuple(convolutions)}"
            )
        self.hidden = nn.Linear(channels * left**2, hidden, activation=activation)
        self.output = nn.Linear(hidden, classes)
        if activation == "relu":  # He et al. 2015; tanh keeps torch's
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer is not self.output:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1:] != self.shape:
            raise ValueError(f"Column: image must be {_shape(self.shape)}: got {_shape(image.shape[1:])}")
        return self.output(self.hidden(self.stages(image).flatten(1)))


class MultiColumn(nn.Module):
    """Columns, each behind its own preprocessing, averaged with equal weights.

    Args:
        columns: networks, image -> logits [N, classes].
        preprocessings: modules, image -> image, one per column; None: none for any.

    Shape:
        image -> log of the mean probability [N, classes]: its argmax is the class, its nll_loss the cross-entropy.

    Raises:
        ValueError: no column, or another number of preprocessings.
    """

    def __init__(self, columns: Sequence[nn.Module], preprocessings: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        if not columns:
            raise ValueError("MultiColumn: columns is empty, expected at least one")
        if preprocessings is not None and len(preprocessings) != len(columns):
            raise ValueError(
                f"MultiColumn: preprocessings must be one per column ({len(columns)}): got {len(preprocessings)}"
            )
        self.columns = nn.ModuleList(columns)
        self.preprocessings = nn.ModuleList(preprocessings or [nn.Identity() for _ in columns])

    def log_probabilities(self, image: Tensor) -> Tensor:
        """What every column says by itself: [columns, N, classes]."""
        pairs = zip(self.preprocessings, self.columns)
        return torch.stack([F.log_softmax(column(prepare(image)), dim=1) for prepare, column in pairs])

    def forward(self, image: Tensor) -> Tensor:
        each = self.log_probabilities(image)
        return each.logsumexp(0) - math.log(len(each))


class NormaliseWidth(nn.Module):
    """Stretches what is drawn on an image [N, C, H, W] to `width` columns in its middle (section 3.1, "width normalisation").

    Args:
        width: in pixels, of the whole drawing. paper: the value of an empty pixel; drawn is what is above it by `ink`.
    """

    def __init__(self, width: int, paper: float = -1.0, ink: float = 0.2) -> None:
        super().__init__()
        self.width, self.paper, self.ink = width, paper, ink

    def forward(self, image: Tensor) -> Tensor:
        drawn = (image > self.paper + self.ink).any(dim=2).any(dim=1)  # [N, W]: is anything in this column
        side = image.shape[-1]
        places = torch.arange(side, device=image.device)
        first = torch.where(drawn, places, side).amin(1)
        last = torch.where(drawn, places, -1).amax(1)
        first, last = (
            torch.where(last < 0, 0, first),
            torch.where(last < 0, side - 1, last),
        )  # an empty image: all of it
        # pixel x of the result reads the image at `centre + (x - middle) * (drawn width / width)`
        scale = (last - first + 1).to(image.dtype) / self.width
        centre = (first + last).to(image.dtype) / 2
        at = centre[:, None] + (places - (side - 1) / 2) * scale[:, None]  # [N, W]
        weights = (1 - (at[..., None] - places).abs()).clamp(min=0)  # [N, W out, W in], linear interpolation
        return self.paper + torch.einsum("nchw,nxw->nchx", image - self.paper, weights)


class StretchContrast(nn.Module):
    """Every channel of every image [N, C, H, W] from its darkest (-1) to its brightest (1), `share` of both ends cut off
    (the paper's "Imadjust")."""

    def __init__(self, share: float = 0.01) -> None:
        super().__init__()
        self.share = share

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.flatten(2).sort(dim=2).values
        cut = int(self.share * pixels.shape[2])
        low, high = pixels[..., cut, None, None], pixels[..., -1 - cut, None, None]
        return ((image - low) / (high - low).clamp(min=1e-3) * 2 - 1).clamp(-1, 1)


class LocalContrast(nn.Module):
    """A difference of Gaussians: what an image [N, C, H, W] has more than the mean around it, in units of its deviation (the
    paper's "Conorm").

    Args:
        radius: standard deviation of the surround, pixels.
    """

    def __init__(self, radius: float = 3.0) -> None:
        super().__init__()
        reach = math.ceil(2 * radius)
        line = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * radius**2))
        self.register_buffer("line", line / line.sum(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        n, c, height, width = image.shape
        reach = len(self.line) // 2
        padded = F.pad(image, [reach] * 4, mode="replicate").reshape(n * c, 1, height + 2 * reach, width + 2 * reach)
        around = F.conv2d(F.conv2d(padded, self.line.view(1, 1, 1, -1)), self.line.view(1, 1, -1, 1)).view_as(image)
        detail = image - around
        return detail / detail.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
