"""Autoencoders, dense and convolutional: Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural
networks", Science 313; the convolutional form after Masci, Meier, Ciresan & Schmidhuber 2011, "Stacked convolutional
auto-encoders for hierarchical feature extraction".

    x -> encoder f -> code z = f(x) [N, code] -> decoder g -> reconstruction g(z), of the shape of x

Trained to give x back through a code smaller than x: minimise |x - g(f(x))|^2. With linear f and g the best code is PCA's
(Baldi & Hornik 1989), up to a linear change of coordinates; what the non-linear ones gain over it is the subject of rows E1-E3.

What differs: trained at once from random weights (both papers pre-train layer by layer, with restricted Boltzmann machines
and with single convolutional autoencoders); ReLU or GELU instead of logistic units in the small ones; the convolutional form
shrinks with strides instead of max pooling, and its code is a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from dlops import nn
from dlops.models._preset import Presets


class Autoencoder(Presets, nn.Module):
    """Dense encoder and decoder, mirror images of each other.

    Args:
        shape: of one sample, without the batch.
        code: numbers in the code.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse; (): a linear map each way.
        activation: of the hidden layers: "relu", "gelu", "silu", "tanh", "sigmoid". The code itself has none.
        output: activation of the reconstruction; "sigmoid" for samples in [0, 1], None for any.

    Shape:
        x [N, *shape] -> reconstruction [N, *shape]; encode gives [N, code], decode takes it.

    Raises:
        ValueError: a size below 1; samples or codes of another shape.
    """

    PRESETS = {
        "original": {"shape": (1, 28, 28), "code": 30, "hidden": (1000, 500, 250), "activation": "sigmoid"},
        "digits": {"shape": (1, 8, 8), "code": 8, "hidden": (256, 128), "activation": "gelu"},
        "linear": {"shape": (1, 8, 8), "code": 8, "hidden": (), "output": None},
    }

    def __init__(
        self,
        shape: Sequence[int] = (1, 8, 8),
        code: int = 8,
        hidden: Sequence[int] = (256, 128),
        activation: str = "relu",
        output: str | None = "sigmoid",
    ) -> None:
        super().__init__()
        _check_sizes("Autoencoder", shape=tuple(shape), code=(code,), hidden=tuple(hidden))
        self.shape, self.code = tuple(shape), code
        widths = [prod(self.shape), *hidden]
        down = [nn.Linear(a, b, activation=activation) for a, b in zip(widths, widths[1:])]
        up = [nn.Linear(b, a, activation=activation) for a, b in zip(widths[1:], [*widths[2:], code])][::-1]
        self.encoder = nn.Sequential(*down, nn.Linear(widths[-1], code))
        self.decoder = nn.Sequential(*up, nn.Linear(widths[1] if hidden else code, widths[0], activation=output))

    def encode(self, x: Tensor) -> Tensor:
        _check_shape("Autoencoder", "x", x, self.shape)
        return self.encoder(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        _check_shape("Autoencoder", "z", z, (self.code,))
        return self.decoder(z).unflatten(1, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class ConvAutoencoder(Presets, nn.Module):
    """Convolutions of stride 2 down to the code, transposed convolutions of stride 2 back up.

        image [N, channels, side, side] -> 3x3 [widths[0], side, side] -> 3x3 stride 2 [widths[0], side/2, side/2]
              -> 3x3 stride 2 [widths[1], side/4, side/4] ... -> linear [code]
        code -> linear -> 4x4 transposed, stride 2 ... [widths[0], side, side] -> 3x3 [channels, side, side]

    A kernel of 4 with stride 2 covers every output pixel equally often: one of 3 leaves a checkerboard (Odena et al. 2016).

    Args:
        side: of the square image; a multiple of 2 ** len(widths).
        channels: of the image.
        widths: channels after each halving.
        code: numbers in the code.
        activation: of every layer but the code and the last one.
        output: activation of the reconstruction; "sigmoid" for images in [0, 1], None for any.

    Shape:
        image [N, channels, side, side] -> reconstruction of the same shape; encode gives [N, code], decode takes it.

    Raises:
        ValueError: a size below 1, a side that cannot be halved so often; images or codes of another shape.
    """

    PRESETS = {
        "digits": {"side": 8, "widths": (32, 64), "code": 8, "activation": "gelu"},
        "cifar": {"side": 32, "channels": 3, "widths": (32, 64, 128), "code": 128, "activation": "gelu"},
    }

    def __init__(
        self,
        side: int = 8,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        code: int = 8,
        activation: str = "relu",
        output: str | None = "sigmoid",
    ) -> None:
        super().__init__()
        _check_sizes("ConvAutoencoder", side=(side,), channels=(channels,), widths=tuple(widths), code=(code,))
        if not widths or side % 2 ** len(widths):
            halvings = f"2 ** len(widths) = {2 ** len(widths)} with at least one width"
            raise ValueError(
                f"ConvAutoencoder: side must be a multiple of {halvings}: got side {side}, widths {tuple(widths)}"
            )
        self.shape, self.code = (channels, side, side), code
        small = side // 2 ** len(widths)
        halves = list(zip([widths[0], *widths], widths))
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, activation=activation),
            *[nn.Conv2d(a, b, 3, stride=2, padding=1, activation=activation) for a, b in halves],
            nn.Flatten(),
            nn.Linear(widths[-1] * small**2, code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, widths[-1] * small**2, activation=activation),
            nn.Unflatten(1, (widths[-1], small, small)),
            *[nn.ConvTranspose2d(b, a, 4, stride=2, padding=1, activation=activation) for a, b in reversed(halves)],
            nn.Conv2d(widths[0], channels, 3, padding=1, activation=output),
        )

    def encode(self, image: Tensor) -> Tensor:
        _check_shape("ConvAutoencoder", "image", image, self.shape)
        return self.encoder(image)

    def decode(self, z: Tensor) -> Tensor:
        _check_shape("ConvAutoencoder", "z", z, (self.code,))
        return self.decoder(z)

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image))


def _check_sizes(name: str, **sizes: tuple[int, ...]) -> None:
    for argument, values in sizes.items():
        if any(value < 1 for value in values):
            raise ValueError(f"{name}: {argument} must be at least 1: got {values[0] if len(values) == 1 else values}")


def _check_shape(name: str, argument: str, given: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(given.shape[1:]) != shape or given.dim() != len(shape) + 1:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name}: {argument} must be [N, {expected}]: got {list(given.shape)}")
