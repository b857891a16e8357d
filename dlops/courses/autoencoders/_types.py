"""What row E8 measures of each type of autoencoder, and the invariants of each, in float64."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlops.models.autoencoders.masked import MaskedAutoencoder
from dlops.models.autoencoders.regularised import RegularisedAutoencoder
from dlops.models.autoencoders.vqvae import VQVAE, Codebook

if TYPE_CHECKING:
    from dlops.courses.session import Session


def straight_through_gap(network: VQVAE, images: Tensor) -> float:
    """Largest difference between the gradients of the squared error at the codebook's input and at its output, which the
    straight-through rule makes equal, relative to the largest gradient."""
    network, images = copy.deepcopy(network).double().eval(), images.double()
    z = network.encoder(images).detach().requires_grad_()
    quantised, indices = network.codebook(z)
    (network.decoder(quantised) - images).square().sum().backward()
    leaf = network.codebook.look_up(indices).detach().requires_grad_()
    (network.decoder(leaf) - images).square().sum().backward()
    return ((z.grad - leaf.grad).abs().max() / leaf.grad.abs().max()).item()


def nearest_gap(codebook: Codebook, rows: Tensor) -> float:
    """How much farther than the nearest code (all distances, in float64) the chosen code is, at worst."""
    codebook, rows = copy.deepcopy(codebook).double(), rows.double()
    distances = (rows[:, None] - codebook.vectors).square().sum(2)  # [M, K]
    chosen = distances.gather(1, codebook.nearest(rows)[:, None])[:, 0]
    return (chosen - distances.min(1).values).max().item()


def contraction_gap(network: RegularisedAutoencoder, images: Tensor) -> float:
    """Largest relative difference between the penalty's closed form and the squared norm of autograd's Jacobian."""
    network, flat = copy.deepcopy(network).double(), images.double().flatten(1)
    closed = network.contraction(network.encode(flat))
    jacobians = [torch.autograd.functional.jacobian(lambda x: network.encode(x[None])[0], x) for x in flat]
    explicit = torch.stack([jacobian.square().sum() for jacobian in jacobians])
    return ((closed - explicit).abs() / explicit).max().item()


def leak_gap(network: MaskedAutoencoder, images: Tensor, visible: Tensor) -> float:
    """What must not be, largest of: a change of the reconstruction when masked pixels change; a change of the loss when
    visible pixels of the target change."""
    network, images = copy.deepcopy(network).double().eval(), images.double()
    with torch.no_grad():
        reconstruction, mask = network(images, visible)
        hidden = network.to_image(
            mask[..., None].expand(-1, -1, network.pixels.out_features).double()
        )  # 1 where masked
        other = network(images + hidden * torch.rand_like(images), visible)[0]
        loss = network.loss(images, reconstruction, mask)
        spoiled = network.loss(images + (1 - hidden) * torch.rand_like(images), reconstruction, mask)
    return max((other - reconstruction).abs().max().item(), (spoiled - loss).abs().item())


def active_units(h: Tensor) -> float:
    """Mean share of the units of an image that are above a tenth, h [N, H]."""
    return (h > 0.1).double().mean().item()


def sensitivity(session: Session, network: RegularisedAutoencoder, images: Tensor) -> float:
    """Mean over `images` of |dh/dx|_F^2, which a contractive autoencoder keeps small."""
    (images,) = session.to_device(images)
    with torch.no_grad(), session.kernels():
        return network.contraction(network.encode(images)).mean().item()
