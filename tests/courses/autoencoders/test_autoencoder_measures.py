"""What rows E1 to E4 measure with: PCA, principal angles, sampling, the lattice, the entropy."""

import math

import pytest
import torch

pytest.importorskip("sklearn")
from dlops.courses.autoencoders import _common, e1_autoencoder, e2_dimensionality, e3_downstream, e4_generation
from dlops.courses.session import Session
from dlops.models.autoencoders.autoencoder import Autoencoder, ConvAutoencoder


@pytest.fixture(scope="module")
def images():
    return _common.unit_digits()[0].images[:200].double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pca_is_sklearns(images):
    from sklearn.decomposition import PCA

    theirs = PCA(5, svd_solver="full").fit(images.flatten(1).numpy())
    ours = _common.PCA.fit(images, 5)
    signs = (ours.components * torch.from_numpy(theirs.components_).T).sum(0)
    torch.testing.assert_close(signs.abs(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-10)
    rebuilt = torch.from_numpy(theirs.inverse_transform(theirs.transform(images.flatten(1).numpy())))
    torch.testing.assert_close(ours.decode(ours.encode(images)), rebuilt, rtol=0, atol=1e-10)
    assert ours.error(images) == pytest.approx((rebuilt - images.flatten(1)).square().mean().item(), abs=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.5, 1.5])
def test_principal_angles_of_planes_turned_by_hand(angle):
    a = torch.eye(5, 2, dtype=torch.float64)
    b = a.clone()
    b[1, 1], b[3, 1] = math.cos(angle), math.sin(angle)
    found = _common.principal_angles(a @ normal(2, 2), b @ normal(2, 2, seed=1))  # the space, whatever its basis
    assert found[0].item() == pytest.approx(0, abs=1e-14)
    assert found[1].item() == pytest.approx(angle, rel=1e-6, abs=1e-14)


def test_the_linear_autoencoder_set_to_pca_rests(images):
    """Its loss is PCA's and its gradient vanishes (Baldi & Hornik 1989); moved a little, neither holds."""
    session = Session("E2")
    network = session.build("linear", e2_dimensionality.linear_autoencoder)
    pca = _common.PCA.fit(images, 8)
    e2_dimensionality.set_to(network, pca)
    loss, slope = e2_dimensionality.loss_and_slope(session, network, images)
    assert loss == pytest.approx(pca.error(images), abs=1e-12) and slope < 1e-12
    with torch.no_grad():
        network.decoder[-1].weight[30, 3] += 0.1
    moved, slope = e2_dimensionality.loss_and_slope(session, network, images)
    assert moved > loss + 1e-6 and slope > 1e-4


@pytest.mark.parametrize("kind", [Autoencoder, ConvAutoencoder])
def test_leak_sees_a_way_around_the_code(kind, images):
    session = Session("E1")
    network = session.build("any", lambda: kind.from_preset("digits", code=8))
    image = images[:1].float()
    assert e1_autoencoder.leak(session, network, image) < 1e-12

    class Shortcut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            return self.inner(x) + 1e-3 * x

    assert e1_autoencoder.leak(session, Shortcut(), image) > 1e-6


def test_adjoint_gap_sees_a_wrong_padding():
    session = Session("E1")
    network = session.build("conv", lambda: ConvAutoencoder.from_preset("digits"))
    assert e1_autoencoder.adjoint_gap(session, network) < 1e-14

    class Shifted(torch.nn.ConvTranspose2d):
        def forward(self, x):
            return super().forward(x).roll(1, -1)

    network.decoder[2] = Shifted(64, 32, 4, stride=2, padding=1)
    assert e1_autoencoder.adjoint_gap(session, network) > 1e-6


def test_company_gap_sees_statistics_of_the_batch(images):
    session = Session("E3")
    network = session.build("any", lambda: Autoencoder.from_preset("digits"))
    assert e3_downstream.company_gap(session, network, images[:5].float()) < 1e-12
    network.encoder.insert(0, torch.nn.BatchNorm1d(64))
    assert e3_downstream.company_gap(session, network.eval(), images[:5].float()) < 1e-12
    network.encoder[0].track_running_stats, network.encoder[0].running_mean, network.encoder[0].running_var = False, None, None
    with pytest.raises(ValueError):  # one sample has no statistics of its own
        e3_downstream.company_gap(session, network, images[:5].float())


def test_few_per_class_takes_so_many_of_each():
    labels = torch.arange(100) % 10
    chosen = e3_downstream.few_per_class(labels, 3, torch.Generator().manual_seed(0))
    assert labels[chosen].bincount().tolist() == [3] * 10 and chosen.unique().numel() == 30


def test_draws_have_the_mean_and_covariance_of_the_codes():
    codes = normal(500, 4) @ normal(4, 4, seed=1) + 3
    noise = normal(50, 4, seed=2)
    noise = noise - noise.mean(0)
    noise = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T  # moments of exactly 0 and 1
    drawn = e4_generation.like_codes(noise, codes)
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(codes.T), rtol=0, atol=1e-10)


def test_cells_of_the_lattice_have_equal_shares_of_the_prior():
    points = e4_generation.lattice(10).unflatten(0, (10, 10))
    assert (points[:, 1:, 0] > points[:, :-1, 0]).all() and (points[1:, :, 1] < points[:-1, :, 1]).all()
    shares = torch.special.ndtr(points[0, :, 0])
    torch.testing.assert_close(shares.diff(), torch.full((9,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(points.flatten(0, 1).mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_entropy():
    even = torch.full((3, 10), 0.1, dtype=torch.float64)
    assert e4_generation.entropy(even).tolist() == pytest.approx([math.log(10)] * 3)
    assert e4_generation.entropy(torch.eye(10)).abs().max() == 0


def test_the_critic_tells_copies_and_repeats_apart():
    training, test = _common.unit_digits()
    session = Session("E4")
    critic = e4_generation.Critic(session, session.build("judge", e4_generation.make_judge), training, test)
    real, copies, repeats = critic(test.images), critic(training.images[:500]), critic(test.images[:1].expand(500, 1, 8, 8))
    assert real["distance"] == pytest.approx(1) and copies["distance"] == pytest.approx(0, abs=1e-3)
    assert copies["spread"] == pytest.approx(1) and repeats["spread"] == 0
