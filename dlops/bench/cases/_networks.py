"""The networks that are measured: every architecture of dlops.models, and two in as few lines as show their layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlops.models.autoencoders.autoencoder import Autoencoder, ConvAutoencoder
from dlops.models.autoencoders.denoising import DnCNN
from dlops.models.autoencoders.masked import MaskedAutoencoder
from dlops.models.autoencoders.regularised import RegularisedAutoencoder
from dlops.models.autoencoders.vae import VAE
from dlops.models.autoencoders.vqvae import VQVAE
from dlops.models.diffusion.unet import UNet
from dlops.models.foundations.mlp import MLP
from dlops.models.vision.alexnet import AlexNet
from dlops.models.vision.columns import Column
from dlops.models.vision.embedding import EmbeddingNet
from dlops.models.vision.filters import Separable, gaussian
from dlops.models.vision.googlenet import GoogLeNet
from dlops.models.vision.lenet import LeNet5
from dlops.models.vision.resnet import ResNet
from dlops.models.vision.segmentation import FCN, SegmentationUNet
from dlops.models.vision.spatial_transformer import SpatialTransformer
from dlops.models.vision.vgg import VGG


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


def dcgan() -> nn.Module:
    """The generator of Radford et al. 2016, figure 1: noise [N, 100, 1, 1] to images [N, 3, 64, 64]."""
    layers: list[nn.Module] = []
    for c, o, stride, padding in ((100, 512, 1, 0), (512, 256, 2, 1), (256, 128, 2, 1), (128, 64, 2, 1)):
        layers += [nn.ConvTranspose2d(c, o, 4, stride, padding, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh())


def _whole(network: nn.Module, input: Tensor) -> Any:
    return network(input)


def _noised(network: nn.Module, input: Tensor) -> Any:
    """With the same noise, or mask, at every call."""
    return network(input, generator=torch.Generator().manual_seed(0))


def _seeded(network: nn.Module, input: Tensor) -> Any:
    """For what draws from the global generator: the codebook of VQ-VAE when it restarts a code."""
    torch.manual_seed(0)
    return network(input)


def _denoised(network: nn.Module, input: Tensor) -> Any:
    """Every sample at a time of its own, with a class of its own."""
    steps = torch.arange(len(input), device=input.device)
    return network(input, steps, steps % 10)


@dataclass(frozen=True)
class Network:
    """`make()` called on a random input of `shape`, as `call` says: a tensor, or a tuple with some."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Any] = _whole
    layout: torch.memory_format = torch.contiguous_format
    trained: bool = True  # a training step is measured too


def _preset(kind: Any, preset: str, shape: tuple[int, ...], **settings: Any) -> Network:
    """`settings`: fields of Network, and arguments of the constructor."""
    fields = {name: settings.pop(name) for name in ("call", "layout", "trained") if name in settings}
    return Network(lambda: kind.from_preset(preset, **settings), shape, **fields)


#: Those of dlops.models. Dropout is off, so that both sides compute the same; AlexNet and VGG keep their convolutions, but
#: not their 4,096 hidden units, most of their parameters, which only measure how fast memory is read.
OURS: dict[str, Network] = {
    "mlp": _preset(MLP, "srivastava_3x1024", (64, 784), dropout=0.0),
    "mlp.digits": _preset(MLP, "digits", (64, 64)),
    "lenet": _preset(LeNet5, "original", (32, 1, 32, 32)),
    "alexnet": _preset(AlexNet, "original", (4, 3, 224, 224), hidden=512, dropout=0.0),
    "alexnet.one_tower": _preset(AlexNet, "one_tower", (4, 3, 224, 224), hidden=512, dropout=0.0),
    "vgg11": _preset(VGG, "vgg11", (1, 3, 224, 224), hidden=512, dropout=0.0),
    "vgg16": _preset(VGG, "vgg16", (1, 3, 224, 224), hidden=512, dropout=0.0, trained=False),
    "vgg.small": _preset(VGG, "small", (32, 1, 8, 8), channels=1, classes=10, dropout=0.0),
    "googlenet": _preset(GoogLeNet, "original", (1, 3, 224, 224), dropout=0.0, auxiliary_dropout=0.0),
    "googlenet.small": _preset(GoogLeNet, "small", (32, 1, 8, 8), channels=1, classes=10, dropout=0.0, auxiliary_dropout=0.0),
    "resnet18": _preset(ResNet, "resnet18", (1, 3, 224, 224)),
    "resnet18.last": _preset(ResNet, "resnet18", (1, 3, 224, 224), layout=torch.channels_last, trained=False),
    "resnet18.folded": Network(lambda: ResNet.from_preset("resnet18").folded(), (1, 3, 224, 224), trained=False),
    "resnet50": _preset(ResNet, "resnet50", (1, 3, 224, 224)),
    "resnet8": _preset(ResNet, "resnet8", (32, 1, 8, 8), channels=1),
    "fcn": _preset(FCN, "small", (4, 1, 64, 64)),
    "segmentation_unet": _preset(SegmentationUNet, "small", (8, 1, 64, 64)),
    "segmentation_unet.paper": _preset(SegmentationUNet, "paper", (1, 1, 188, 188), dropout=0.0),
    "column": _preset(Column, "signs", (8, 3, 48, 48)),
    "spatial_transformer": _preset(SpatialTransformer, "small", (32, 3, 32, 32)),
    "embedding": _preset(EmbeddingNet, "deepid2", (32, 3, 55, 47)),
    "gaussian_filter": Network(lambda: Separable(gaussian(2.0)), (2, 3, 427, 640), trained=False),
    "autoencoder": _preset(Autoencoder, "original", (64, 1, 28, 28)),
    "conv_autoencoder": _preset(ConvAutoencoder, "cifar", (32, 3, 32, 32)),
    "dncnn": _preset(DnCNN, "small", (8, 3, 48, 48)),
    "sparse_autoencoder": _preset(RegularisedAutoencoder, "sparse", (64, 1, 8, 8)),
    "vae": _preset(VAE, "original", (100, 1, 28, 28), call=_noised),
    "vae.conv": _preset(VAE, "digits_conv", (64, 1, 8, 8), call=_noised),
    "vqvae": _preset(VQVAE, "original", (4, 3, 32, 32), call=_seeded),
    "masked_autoencoder": _preset(MaskedAutoencoder, "digits", (64, 1, 8, 8), call=_noised),
    "diffusion_unet": Network(lambda: UNet(), (32, 1, 8, 8), _denoised),
    "diffusion_unet.large": Network(lambda: UNet(3, channels=64, multipliers=(1, 2, 2)), (4, 3, 32, 32), _denoised),
}  # fmt: skip

#: Those of plain torch.nn layers, for `dlops.accelerate`.
PLAIN: dict[str, Network] = {
    "convnext": Network(convnext, (2, 3, 224, 224), layout=torch.channels_last),
    "dcgan": Network(dcgan, (16, 100, 1, 1), trained=False),
}
