"""DnCNN: Zhang, Zuo, Chen, Meng & Zhang 2017, "Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising",
section III.

    noisy [N, C, H, W] -> conv 3x3 + ReLU [width] -> (depth - 2) x (conv 3x3 + batch norm + ReLU) [width] -> conv 3x3 [C] = noise
    clean = noisy - noise  (section III.A: the noise is the easier thing to predict)

Every size of image: there is no code, each output pixel sees a square of 2 * depth + 1 pixels. The denoising autoencoder with
a code (Vincent et al. 2008) is `Autoencoder`, or `ConvAutoencoder`, trained from noisy to clean images.

What differs: norm=False leaves the batch norms out, so that every convolution and its ReLU are one kernel; the paper reports
that the norm helps very deep networks, and shallow ones train without.
"""

from __future__ import annotations

from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets


class DnCNN(Presets, nn.Module):
    """Args:
        depth: number of convolutions, at least 2.
        width: channels between them.
        channels: of the image.
        norm: batch norms after all convolutions but the first and the last.

    Shape:
        noisy [N, channels, H, W] -> clean, the same shape.

    Raises:
        ValueError: a size below these; an image of other channels.
    """

    PRESETS = {
        "grey": dict(depth=17, width=64, channels=1),  # section IV.B, one known noise level
        "colour": dict(depth=20, width=64, channels=3),  # CDnCNN-B, all noise levels
        "small": dict(depth=6, width=24, channels=3, norm=False),
    }

    def __init__(self, depth: int = 17, width: int = 64, channels: int = 1, norm: bool = True) -> None:
        super().__init__()
        if depth < 2 or width < 1 or channels < 1:
            allowed = "depth >= 2, width >= 1 and channels >= 1"
            raise ValueError(f"DnCNN: expected {allowed}: got depth {depth}, width {width}, channels {channels}")
        self.channels = channels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, activation="relu")]
        for _ in range(depth - 2):
            if norm:
                layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, activation="relu"))
        self.noise = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        if noisy.dim() != 4 or noisy.shape[1] != self.channels:
            raise ValueError(f"DnCNN: noisy must be [N, {self.channels}, H, W]: got {list(noisy.shape)}")
        return noisy - self.noise(noisy)
