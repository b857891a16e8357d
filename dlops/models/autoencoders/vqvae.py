"""The vector-quantised autoencoder: van den Oord, Vinyals, Kavukcuoglu 2017, "Neural discrete representation learning".

    image [N, C, S, S] -> encoder -> z [N, D, S/4, S/4] -> nearest of K code vectors -> q [N, D, S/4, S/4] -> decoder -> image

    k = argmin_j |z - e_j|              (equation 2, at every position)
    gradient of q with respect to z: the identity  (section 3.2, straight-through)
    loss = reconstruction + beta |z - sg[e]|^2     (equation 3; the codebook is learned by moving averages, appendix A.1)

What differs: a code vector that its moving average has all but forgotten restarts at a random output of the encoder (as in
Jukebox, Dhariwal et al. 2020, section 3), without which a part of the codebook is never used; the residual blocks are two at
the paper's size and may be none; `stride` 4 is reached by two convolutions of stride 2 as in the paper (section 4.1), 2 by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from dlops import nn
from dlops.models._preset import Presets


class Codebook(nn.Module):
    """K code vectors of D numbers, learned by exponential moving averages of the vectors that chose them.

    Args:
        codes: K. width: D.
        decay: of the moving averages (gamma of appendix A.1).
        restart: a code whose moving count falls below this restarts at a random input; 0: never.

    Shape:
        z [N, D, ...] -> (quantised like z, indices [N, ...]); in training mode the codebook is updated too.
    """

    def __init__(self, codes: int, width: int, decay: float = 0.99, restart: float = 0.05) -> None:
        super().__init__()
        if codes < 1 or width < 1:
            raise ValueError(f"Codebook: codes and width must be at least 1: got {codes} and {width}")
        if not 0 <= decay < 1:
            raise ValueError(f"Codebook: decay must be from 0 to below 1: got {decay}")
        self.decay, self.restart = decay, restart
        self.register_buffer("vectors", torch.randn(codes, width))
        self.register_buffer("counts", torch.ones(codes))  # N of appendix A.1
        self.register_buffer("sums", self.vectors.clone())  # m

    def nearest(self, rows: Tensor) -> Tensor:
        """Index of the nearest code of every row: [M, D] -> [M]. |z|^2 is the same for all codes and left out."""
        return torch.addmm(self.vectors.square().sum(1), rows, self.vectors.T, alpha=-2).argmin(1)

    def look_up(self, indices: Tensor) -> Tensor:
        """[N, ...] -> [N, D, ...]"""
        return embedding(indices, self.vectors).movedim(-1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.dim() < 2 or z.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"Codebook: z must be [N, {self.vectors.shape[1]}, ...]: got {list(z.shape)}")
        rows = z.detach().movedim(1, -1)  # [N, ..., D]
        indices = self.nearest(rows.reshape(-1, rows.shape[-1])).view(rows.shape[:-1])
        quantised = self.look_up(indices)
        if self.training:
            self._update(rows.reshape(-1, rows.shape[-1]), indices.flatten())
        return z + (quantised - z).detach(), indices  # the value of quantised, the gradient of z

    @torch.no_grad()
    def _update(self, rows: Tensor, indices: Tensor) -> None:
        """Equations 6 to 8, then the restarts."""
        chosen = one_hot(indices, len(self.vectors)).to(rows.dtype)  # [M, K]
        self.counts.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ rows, 1 - self.decay)
        dead = (self.counts < self.restart)[:, None]
        fresh = rows[torch.randint(len(rows), (len(self.vectors),), device=rows.device)]
        self.sums.copy_(torch.where(dead, fresh, self.sums))
        self.counts.copy_(torch.where(dead[:, 0], 1.0, self.counts))
        self.vectors.copy_(self.sums / self.counts[:, None])


def perplexity(indices: Tensor, codes: int) -> float:
    """exp of the entropy of the codes' shares: K where all are used equally, 1 where one is."""
    shares = torch.bincount(indices.flatten(), minlength=codes).double() / indices.numel()
    return torch.special.entr(shares).sum().exp().item()


class ResidualBlock(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, added to the input (section 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, 3, padding=1, activation="relu")
        self.narrow = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x.relu()), x)


class VQVAE(Presets, nn.Module):
    """Args:
        codes, code_width: K and D.
        width: channels of the hidden layers.
        blocks: residual blocks on either side.
        channels: of the image.
        stride: pixels of the image per position of the code, along each axis: 2 or 4.
        beta: weight of the commitment term.
        decay, restart: as in :class:`Codebook`.

    Shape:
        image [N, channels, H, W], H and W multiples of `stride`, -> (reconstruction, commitment term scalar, indices
        [N, H / stride, W / stride]).

    Raises:
        ValueError: another stride; an image of other channels or of a size that the stride does not divide.
    """

    PRESETS = {
        "original": dict(codes=512, code_width=256, width=256, blocks=2, channels=3, stride=4),  # CIFAR-10, section 4.1
        "digits": dict(codes=64, code_width=8, width=32, blocks=0, channels=1, stride=2),
    }

    def __init__(
        self, codes: int = 512, code_width: int = 256, width: int = 256, blocks: int = 2, channels: int = 3, stride: int = 4,
        beta: float = 0.25, decay: float = 0.99, restart: float = 0.05,
    ) -> None:  # fmt: skip
        super().__init__()
        if stride not in (2, 4):
            raise ValueError(f"VQVAE: stride must be 2 or 4: got {stride}")
        self.channels, self.stride, self.beta = channels, stride, beta
        inward = [(channels, width), (width, width)][: stride // 2]
        halving = dict(kernel_size=4, stride=2, padding=1)
        self.encoder = nn.Sequential(
            *[nn.Conv2d(a, b, **halving, activation="relu") for a, b in inward],
            nn.Conv2d(width, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(blocks)],
            nn.ReLU(),
            nn.Conv2d(width, code_width, 1),
        )
        self.codebook = Codebook(codes, code_width, decay, restart)
        outward = [nn.ConvTranspose2d(width, width, **halving, activation="relu")] * (stride // 2 - 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_width, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(blocks)],
            nn.ReLU(),
            *outward,
            nn.ConvTranspose2d(width, channels, **halving),
        )

    def encode(self, image: Tensor) -> Tensor:
        """image [N, C, H, W] -> indices [N, H / stride, W / stride]."""
        return self.codebook.nearest(self._features(image).movedim(1, -1).flatten(0, 2)).view(
            len(image), image.shape[2] // self.stride, image.shape[3] // self.stride
        )

    def decode(self, indices: Tensor) -> Tensor:
        """indices [N, h, w] -> image [N, C, h * stride, w * stride]."""
        return self.decoder(self.codebook.look_up(indices))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self._features(image)
        quantised, indices = self.codebook(z)
        commitment = (z - quantised.detach()).square().mean()
        return self.decoder(quantised), commitment, indices

    def objective(self, image: Tensor) -> Tensor:
        """Mean squared error and commitment, a scalar."""
        reconstruction, commitment, _ = self(image)
        return (reconstruction - image).square().mean() + self.beta * commitment

    def _features(self, image: Tensor) -> Tensor:
        expected = f"[N, {self.channels}, H, W], H and W multiples of {self.stride}"
        if (
            image.dim() != 4
            or image.shape[1] != self.channels
            or image.shape[2] % self.stride
            or image.shape[3] % self.stride
        ):
            raise ValueError(f"VQVAE: image must be {expected}: got {list(image.shape)}")
        return self.encoder(image)
