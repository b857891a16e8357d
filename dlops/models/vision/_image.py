"""What the networks that classify images of any size share."""

from __future__ import annotations

from torch import Tensor

from dlops import nn


def check_image(network: nn.Module, image: Tensor, channels: int, smallest: int) -> None:
    """Raises ValueError unless `image` is [N, channels, H, W] with H and W at least `smallest`."""
    if image.dim() != 4 or image.shape[1] != channels or min(image.shape[2:]) < smallest:
        allowed = f"[N, {channels}, H, W] with H and W at least {smallest}"
        raise ValueError(f"{type(network).__name__}: image must be {allowed}: got {list(image.shape)}")


def numbered(modules: dict[int, nn.Module]) -> nn.Sequential:
    """A Sequential with gaps in its numbers, where torchvision's state_dict counts a ReLU that here is part of a layer."""
    sequence = nn.Sequential()
    for number, module in modules.items():
        sequence.add_module(str(number), module)
    return sequence
