"""E8. The types of autoencoder: what holds the code back, where not its size: sparse, k-sparse, contractive, vector-quantised,
masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dlops.courses import pictures
from dlops.courses.autoencoders._common import through, unit_digits
from dlops.courses.autoencoders._types import (
    active_units,
    contraction_gap,
    leak_gap,
    nearest_gap,
    sensitivity,
    straight_through_gap,
)
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.autoencoders.masked import MaskedAutoencoder
from dlops.models.autoencoders.regularised import RegularisedAutoencoder
from dlops.models.autoencoders.vqvae import VQVAE, perplexity

if TYPE_CHECKING:
    from dlops.courses.session import Session

PENALTY_PLAN = Plan(epochs=40, batch=128, lr=1e-2)
VQ_PLAN = Plan(epochs=40, batch=64, lr=3e-3)
MASKED_PLAN = Plan(epochs=60, batch=64, lr=3e-3)
PENALTIES = ("plain", "sparse", "l1", "k_sparse", "contractive")


def loss(network: nn.Module, images: Tensor) -> Tensor:
    """Every type has its own."""
    return network.objective(images)


class TypesOfAutoencoder(Recipe):
    row = "E8"
    title = "Sparse, contractive, VQ-VAE, masked"
    title_es = "Tipos: disperso, contractivo, VQ-VAE, enmascarado"
    syllabi = ("S4",)
    source = (
        "Ng 2011; Makhzani & Frey 2014; Rifai et al. 2011, equation 4; van den Oord et al. 2017, equations 1-3; He et al. 2022, "
        "section 3"
    )
    data = "1,797 handwritten digits of 8x8 pixels (scikit-learn); a fifth held out"
    absent = "the papers' CIFAR-10 and ImageNet are downloads: their results cannot be checked here"
    models = (
        "dlops.models.autoencoders.regularised",
        "dlops.models.autoencoders.vqvae",
        "dlops.models.autoencoders.masked",
    )
    kernels = ("conv", "attention", "norm")
    goals = (Goal("VQ perplexity over codes", ">=", 0.60, "held-out digits, 64 codes"),)

    def run(self, session: Session) -> Outcome:
        training, test = (part.images for part in unit_digits())
        scores: dict[str, float] = {}
        nets, rebuilt = {}, {}

        for name in PENALTIES:
            net = session.build(name, lambda name=name: RegularisedAutoencoder.from_preset(name))
            nets[name] = net = session.fit(name, net, loss, (training,), PENALTY_PLAN).network
            rebuilt[name] = through(session, net, test)
            scores[f"{name}: MSE"] = mse_loss(rebuilt[name], test).item()
            scores[f"{name}: active units"] = active_units(through(session, net.encode, test))
        for name in ("plain", "contractive"):
            scores[f"{name}: squared norm of the Jacobian"] = sensitivity(session, nets[name], test)
        scores["sparse: mean activity"] = through(session, nets["sparse"].encode, test).mean().item()

        net = session.build("vq", lambda: VQVAE.from_preset("digits"))
        nets["vq"] = net = session.fit("vq", net, loss, (training,), VQ_PLAN).network
        indices = through(session, net.encode, test)
        scores["VQ perplexity over codes"] = perplexity(indices, len(net.codebook.vectors)) / len(net.codebook.vectors)
        rebuilt["vq"] = through(session, net.decode, indices)
        scores["vq: MSE"] = mse_loss(rebuilt["vq"], test).item()

        net = session.build("masked", lambda: MaskedAutoencoder.from_preset("digits"))
        nets["masked"] = net = session.fit("masked", net, loss, (training,), MASKED_PLAN).network
        visible = net.draw_visible(len(test), torch.device("cpu"), session.generator("visible"))
        guessed, mask = through_masked(session, net, test, visible)
        scores["masked: MSE of masked patches"] = net.loss(test, guessed, mask).item()
        scores["masked: MSE of the mean digit there"] = net.loss(test, training.mean(0).expand_as(test), mask).item()
        shown = ~net.to_image(mask[..., None].expand(-1, -1, net.pixels.out_features))
        rebuilt["masked"] = torch.where(shown, test, guessed)

        few, device = test[:16].to(session.device), session.device
        rows = torch.randn(2000, 8, generator=session.generator("rows")).to(device)
        kept = (through(session, nets["k_sparse"].encode, test) > 0).sum(1).max().item()
        with session.kernels():
            checks = [
                Check(
                    "straight-through gradient, relative difference", straight_through_gap(nets["vq"], few), "<=", 1e-12
                ),
                Check("chosen code farther than the nearest by", nearest_gap(nets["vq"].codebook, rows), "<=", 1e-12),
                Check(
                    "contractive penalty and Jacobian, relative difference",
                    contraction_gap(nets["contractive"], few),
                    "<=",
                    1e-12,
                ),
                Check("k-sparse: active units, at most", kept, "<=", nets["k_sparse"].k),
                Check(
                    "masked: leak of masked or loss of visible pixels",
                    leak_gap(nets["masked"], few, visible[:16].to(device)),
                    "<=",
                    0,
                ),
            ]
        lines = [("held-out digits", test[:12])]
        lines += [
            (f"{name.replace('_', '-')}: reconstructions", rebuilt[name][:12])
            for name in ("k_sparse", "contractive", "vq")
        ]
        lines += [
            ("a quarter of the patches", torch.where(shown, test, 0)[:12]),
            ("masked: the rest guessed", rebuilt["masked"][:12]),
        ]
        return Outcome(scores, checks, lambda: pictures.tiles(lines, across=12, low=0, high=1))

    def step(self, session: Session) -> Step:
        training, _ = unit_digits()
        return Step(lambda: VQVAE.from_preset("digits"), loss, (training.images[: VQ_PLAN.batch],), VQ_PLAN)


def through_masked(
    session: Session, network: MaskedAutoencoder, images: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Reconstruction and mask of `images`, on the CPU."""
    images, visible = session.to_device(images, visible)
    with torch.no_grad(), session.kernels():
        reconstruction, mask = network(images, visible)
    return reconstruction.cpu(), mask.cpu()
