"""A class-conditional U-Net for small images, the denoiser of a diffusion model.

The network of Ho et al. 2020 ("Denoising diffusion probabilistic models", appendix B) with the adaptive group norm of
Dhariwal & Nichol 2021 ("Diffusion models beat GANs on image synthesis", section 3) and a null class for classifier-free
guidance (Ho & Salimans 2022). Every layer is a `dlops.nn` name: a layer that dlops has runs on its kernels, any other
is torch's.

    sample [N, C, H, W] -> conv_in -> level 0 -> level 1 -> ... -> middle -> ... -> level 1 -> level 0 -> conv_out
                                         |          |__________ skips _________|          |
                                         |________________________________________________|
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dlops import nn


def timestep_embedding(timesteps: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Sines and cosines of `timesteps` at geometrically spaced frequencies.

    Source: Vaswani et al. 2017, section 3.5, with the timestep of the diffusion in the place of the position.

    Args:
        timesteps: [N], any real dtype; may be fractional.
        channels: even, the length of one embedding: channels/2 cosines, then channels/2 sines.
        max_period: the longest wavelength is 2*pi*max_period, the shortest 2*pi.

    Returns:
        float32 [N, channels].

    Raises:
        ValueError: `channels` is odd or not positive.
    """
    if channels <= 0 or channels % 2:
        raise ValueError(f"timestep_embedding: channels must be even and positive: got {channels}")
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    frequencies = torch.exp(-math.log(max_period) * exponents)  # [half]
    angles = timesteps.float()[:, None] * frequencies  # [N, half]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a scale and shift that the embedding decides.

    x + conv(silu((1 + scale) * norm(conv(silu(norm(x)))) + shift)), with (scale, shift) = linear(embedding). The last
    convolution starts at zero, so that a fresh block is the identity (up to the 1x1 convolution of a change of width).
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, activation="silu")
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = nn.GroupNorm(groups, channels_out, activation="silu")
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1))
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [N, channels_in, H, W], embedding [N, embedding] -> [N, channels_out, H, W]."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)  # [N, channels_out] each
        hidden = self.conv1(self.norm1(x))
        hidden = self.norm2(hidden, scale=scale, shift=shift)
        return self.skip(x) + self.conv2(self.dropout(hidden))


class AttentionBlock(nn.Module):
    """Self-attention among all pixels, added to its input; the output projection starts at zero."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        _zero(self.attention.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [N, H*W, C]
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """The denoiser: what a noisy image, its noise level and its class say about the clean image.

    Level i works at H / 2**i and W / 2**i with `channels * multipliers[i]` channels. Going down, a level is `blocks`
    residual blocks and a strided convolution; going up, it is `blocks` residual blocks, each of which also reads the
    output of its mirror image on the way down, and an upsampling. Attention stands where the image is smallest.

    Args:
        in_channels: channels of the image and of the prediction.
        classes: number of classes; one more, `null_class`, stands for "no class given".
        channels: width of level 0; a multiple of `groups`.
        multipliers: width of every level, as a multiple of `channels`.
        blocks: residual blocks per level.
        heads: attention heads.
        groups: groups of the group norms.
        dropout: probability of a zero before the second convolution of a residual block, in training.

    Raises:
        ValueError: `channels` is not a multiple of `groups`.

    Attributes:
        null_class: the label that asks for the unconditional prediction, equal to `classes`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        heads: int = 4,
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"UNet: channels must be a multiple of groups ({groups}): got {channels}")
        self.null_class = classes
        self.channels = channels
        self.factor = 2 ** (len(multipliers) - 1)
        width = 4 * channels  # of the embedding, as in Ho et al. 2020

        def residual(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, width, groups, dropout)

        self.time = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.conv_in = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)

        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        current, skips = channels, []
        for level, multiplier in enumerate(multipliers):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(residual(current, channels * multiplier))
                current = channels * multiplier
                skips.append(current)
            self.down.append(stage)
            last = level == len(multipliers) - 1
            self.downsample.append(nn.Identity() if last else nn.Conv2d(current, current, 3, stride=2, padding=1))

        self.middle1 = residual(current, current)
        self.attention = AttentionBlock(current, heads, groups)
        self.middle2 = residual(current, current)

        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(residual(current + skips.pop(), channels * multiplier))
                current = channels * multiplier
            self.up.append(stage)
            self.upsample.append(nn.Upsample(scale_factor=2.0) if level else nn.Identity())

        self.norm_out = nn.GroupNorm(groups, current, activation="silu")
        self.conv_out = _zero(nn.Conv2d(current, in_channels, kernel_size=3, padding=1))

    def forward(self, sample: Tensor, timestep: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The prediction (noise, velocity or clean image: what the network was trained for).

        Args:
            sample: [N, in_channels, H, W]; H and W multiples of 2**(levels - 1).
            timestep: [N], or one number for all.
            labels: int64 [N] from 0 to `null_class`; None is `null_class` for all.

        Returns:
            [N, in_channels, H, W].

        Raises:
            ValueError: the size of the image cannot be halved as often as the network does.
        """
        n, _, height, width = sample.shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"UNet: sample must have sides that are multiples of {self.factor}: got {height}x{width}")
        times = torch.as_tensor(timestep, device=sample.device).expand(n)
        if labels is None:
            labels = torch.full((n,), self.null_class, device=sample.device)
        embedding = self.time(timestep_embedding(times, self.channels).to(sample.dtype)) + self.label(labels)
        embedding = nn.functional.silu(embedding)  # [N, 4 * channels]; every block reads it through a linear layer

        hidden = self.conv_in(sample)
        skips = []
        for stage, downsample in zip(self.down, self.downsample, strict=True):
            for block in stage.children():
                hidden = block(hidden, embedding)
                skips.append(hidden)
            hidden = downsample(hidden)

        hidden = self.middle1(hidden, embedding)
        hidden = self.middle2(self.attention(hidden), embedding)

        for stage, upsample in zip(self.up, self.upsample, strict=True):
            for block in stage.children():
                hidden = block(torch.cat([hidden, skips.pop()], dim=1), embedding)
            hidden = upsample(hidden)
        return self.conv_out(self.norm_out(hidden))


def _zero(layer: nn.Module) -> nn.Module:
    """The same layer with all parameters at zero, so that the branch it ends starts out silent."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
