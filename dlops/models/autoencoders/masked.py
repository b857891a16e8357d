"""The masked autoencoder: He, Chen, Xie, Li, Dollar & Girshick 2022, "Masked autoencoders are scalable vision learners",
section 3.

    image -> patches [N, L, C * P * P] -> a random quarter of them -> linear + position -> encoder [N, L / 4, width]
    -> linear, mask tokens at the other places, + position -> decoder [N, L, decoder_width] -> linear -> patches
    loss: squared error over the masked patches only

The encoder never sees a mask token nor a masked patch, so its cost is that of the visible quarter.

What differs: no class token (features are the mean over patches, the paper's appendix A.1 finds no difference), pixels are
the target as they are (the paper's better variant normalises each patch).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the row in one half of the channels, of the column in the other: [side * side, width] (Vaswani et
    al. 2017, section 3.5, for two axes)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates  # [side, width / 4]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class MaskedAutoencoder(Presets, nn.Module):
    """Args:
        side, channels: of the image. patch: side of a patch.
        width, depth, heads: of the encoder. decoder_width, decoder_depth, decoder_heads: of the decoder.
        masked: share of the patches that the encoder does not see.

    Shape:
        image [N, channels, side, side] -> (reconstruction like it, mask [N, L] bool, True where masked).

    Raises:
        ValueError: a patch that does not divide the side, a width that is no multiple of 4, a share that masks all patches
            or none; an image of another size.
    """

    PRESETS = {
        # ViT-Large, tables 1 and 8
        "original": dict(side=224, channels=3, patch=16, width=1024, depth=24, heads=16,
                         decoder_width=512, decoder_depth=8, decoder_heads=16),
        "digits": dict(side=8, channels=1, patch=2, width=48, depth=2, heads=4,
                       decoder_width=32, decoder_depth=1, decoder_heads=4),
    }  # fmt: skip

    def __init__(
        self, side: int = 224, channels: int = 3, patch: int = 16, width: int = 1024, depth: int = 24, heads: int = 16,
        decoder_width: int = 512, decoder_depth: int = 8, decoder_heads: int = 16, masked: float = 0.75,
    ) -> None:  # fmt: skip
        super().__init__()
        if patch < 1 or side % patch:
            raise ValueError(f"MaskedAutoencoder: side must be a multiple of patch: got side {side}, patch {patch}")
        if width % 4 or decoder_width % 4:
            raise ValueError(f"MaskedAutoencoder: widths must be multiples of 4: got {width} and {decoder_width}")
        self.shape, self.patch, self.across = (channels, side, side), patch, side // patch
        self.visible = round(self.across**2 * (1 - masked))
        if not 0 < self.visible < self.across**2:
            raise ValueError(
                f"MaskedAutoencoder: masked leaves {self.visible} of {self.across**2} patches: got {masked}"
            )
        self.embed = nn.Linear(channels * patch**2, width)
        self.encoder = _layers(width, depth, heads)
        self.bridge = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder_width))
        self.decoder = _layers(decoder_width, decoder_depth, decoder_heads)
        self.pixels = nn.Linear(decoder_width, channels * patch**2)
        self.register_buffer("places", positions(self.across, width), persistent=False)
        self.register_buffer("decoder_places", positions(self.across, decoder_width), persistent=False)

    def to_patches(self, image: Tensor) -> Tensor:
        """[N, C, S, S] -> [N, L, C * P * P], rows of patches from the top left."""
        cut = image.unflatten(3, (self.across, self.patch)).unflatten(
            2, (self.across, self.patch)
        )  # [N, C, h, P, w, P]
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def to_image(self, patches: Tensor) -> Tensor:
        """The inverse of `to_patches`."""
        grid = patches.view(-1, self.across, self.across, self.shape[0], self.patch, self.patch)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, *self.shape)

    def draw_visible(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Indices of the patches that the encoder sees, a random subset per image, [N, visible]."""
        source = device if generator is None else generator.device
        order = torch.rand(n, self.across**2, generator=generator, device=source).argsort(1)
        return order[:, : self.visible].to(device)

    def encode(self, image: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features [N, visible or L, width] of the patches `visible` [N, visible] (None: of all)."""
        if image.dim() != 4 or image.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"MaskedAutoencoder: image must be [N, {expected}]: got {list(image.shape)}")
        tokens = self.embed(self.to_patches(image)) + self.places
        if visible is not None:
            tokens = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))
        return self.encoder(tokens)

    def decode(self, features: Tensor, visible: Tensor) -> Tensor:
        """Features of the patches `visible` -> all patches, [N, L, C * P * P]."""
        seen = self.bridge(features)
        tokens = self.mask_token.to(seen.dtype).expand(len(seen), self.across**2, -1)
        tokens = tokens.scatter(1, visible[..., None].expand_as(seen), seen)
        return self.pixels(self.decoder(tokens + self.decoder_places))

    def forward(
        self, image: Tensor, visible: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        if visible is None:
            visible = self.draw_visible(len(image), image.device, generator)
        patches = self.decode(self.encode(image, visible), visible)
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=image.device).scatter(1, visible, False)
        return self.to_image(patches), mask

    def loss(self, image: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
        """Squared error per pixel over the masked patches, a scalar."""
        error = self.to_patches(reconstruction - image).square().mean(2)  # [N, L]
        return (error * mask).sum() / mask.sum()

    def objective(self, image: Tensor) -> Tensor:
        return self.loss(image, *self(image))


def _layers(width: int, depth: int, heads: int) -> nn.TransformerEncoder:
    """Pre-norm blocks of ratio 4 with GELU (Dosovitskiy et al. 2021) and a last norm."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
