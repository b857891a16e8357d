"""The embedding network, and the losses of metric learning against their definitions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from dlops.bench.stock import stock
from dlops.models.vision.embedding import EmbeddingNet
from dlops.models.vision.metric_losses import ArcFace, contrastive, semi_hard, sup_con, triplet

LOSSES = {"contrastive": contrastive, "triplet": triplet, "sup_con": sup_con}


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3])  # 3 has no partner


# ---- the network

def test_shapes_and_unit_length():
    for name, size in (("deepid2", (3, 55, 47)), ("digits", (1, 32, 32))):
        embedding = EmbeddingNet.from_preset(name)(torch.randn(5, *size))
        assert embedding.shape == (5, {"deepid2": 160, "digits": 32}[name])
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))


def test_parameters_of_deepid2():
    """Convolutions 4x4x3x20, 3x3x20x40, 3x3x40x60, 2x2x60x80 and (60 * 5 * 4 + 80 * 4 * 3) x 160, with biases."""
    counted = (48 * 20 + 20) + (180 * 40 + 40) + (360 * 60 + 60) + (240 * 80 + 80) + (2160 * 160 + 160)
    assert sum(p.numel() for p in EmbeddingNet.from_preset("deepid2").parameters()) == counted


def test_same_as_stock_torch():
    network = EmbeddingNet.from_preset("digits")
    plain = stock(network)
    assert list(plain.state_dict()) == list(network.state_dict())
    images = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(network(images), plain(images), atol=1e-5, rtol=0)


def test_float32_near_float64():
    network = EmbeddingNet.from_preset("digits")
    images = torch.randn(3, 1, 32, 32)
    exact = network(images).double()
    torch.testing.assert_close(exact, network.double()(images.double()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(size=(21, 32)), r"EmbeddingNet: size must be two numbers from 31 up: got \(21, 32\)"),
        (dict(size=(32,)), r"EmbeddingNet: size must be two numbers from 31 up: got \(32,\)"),
        (dict(widths=(8, 8)), r"EmbeddingNet: widths must be 4 numbers: got \(8, 8\)"),
    ],
)
def test_bad_sizes(arguments, said):
    with pytest.raises(ValueError, match=said):
        EmbeddingNet(**arguments)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 32, 32), (2, 3, 32, 32)])
def test_bad_image(shape):
    with pytest.raises(ValueError, match=r"EmbeddingNet: image must be \[N, 1, 32, 32\]: got"):
        EmbeddingNet()(torch.zeros(shape))


def test_smallest_image_works_and_one_less_does_not():
    assert EmbeddingNet(size=(31, 31))(torch.zeros(1, 1, 31, 31)).shape == (1, 32)
    with pytest.raises(ValueError, match="size must be"):
        EmbeddingNet(size=(30, 31))


# ---- the losses

def test_contrastive_is_its_definition(points, labels):
    total = 0.0
    for i in range(len(points)):
        for j in range(len(points)):
            d = math.dist(points[i].tolist(), points[j].tolist())
            if i != j:
                total += 0.5 * d**2 if labels[i] == labels[j] else 0.5 * max(0.0, 2.5 - d) ** 2
    assert contrastive(points, labels, margin=2.5).item() == pytest.approx(total / (12 * 11), abs=1e-12)


def test_semi_hard_negatives():
    """On a line: the nearest negative beyond the positive, or the farthest where none is beyond."""
    places = torch.tensor([0.0, 1.0, 0.5, 1.2, 5.0, -0.8])
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    chosen = semi_hard((places[:, None] - places).abs(), labels)
    assert chosen[0, 1] == 3  # of 0.5, 1.2, 5.0, 0.8 the first beyond 1.0
    far = torch.tensor([0.0, 9.0, 0.5, 1.2])
    assert semi_hard((far[:, None] - far).abs(), torch.tensor([0, 0, 1, 1]))[0, 1] == 3


def test_triplet_at_one_triplet():
    """Anchor 0, positive 1, negative 2 at squared distances 1 and 1.44, and the same from the positive: 1 and 0.04."""
    points = torch.tensor([[0.0], [1.0], [1.2]], dtype=torch.float64, requires_grad=True)
    loss = triplet(points, torch.tensor([0, 0, 1]), margin=0.5)
    assert loss.item() == pytest.approx((0.06 + 1.46) / 2)  # no negative beyond the anchor for the positive: the farthest
    loss.backward()
    # 2 (n - p), 2 (p - a), 2 (a - n) for (a, p, n) = (0, 1, 1.2) and for (1, 0, 1.2), halved
    expected = [(0.4 + 2 * (0 - 1)) / 2, (2.0 + 2 * (1.2 - 0)) / 2, (-2.4 + 2 * (1 - 1.2)) / 2]
    torch.testing.assert_close(points.grad[:, 0], torch.tensor(expected, dtype=torch.float64))


def test_arc_face_without_margin_is_softmax_of_scaled_cosines(points, labels):
    head = ArcFace(4, 4, scale=8.0, margin=0.0).double()
    cosine = normalize(points, dim=1) @ normalize(head.weight, dim=1).T
    assert head(points, labels).item() == pytest.approx(cross_entropy(8 * cosine, labels).item(), abs=1e-12)


def test_arc_face_adds_its_margin_to_the_angle(points, labels):
    head = ArcFace(4, 4, scale=8.0, margin=0.3).double()
    cosine = normalize(points, dim=1) @ normalize(head.weight, dim=1).T
    logits = head.logits(points, labels)
    for i, label in enumerate(labels.tolist()):
        for k in range(4):
            angle = math.acos(cosine[i, k].item()) + (0.3 if k == label else 0.0)
            expected = math.cos(angle) if angle <= math.pi else cosine[i, k].item() - 0.3 * math.sin(0.3)
            assert logits[i, k].item() == pytest.approx(8 * expected, abs=1e-7)


def test_arc_face_falls_with_the_angle_all_the_way_round():
    head = ArcFace(2, 1, scale=1.0, margin=0.5).double()
    head.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    angle = torch.linspace(0.01, math.pi - 0.01, 200, dtype=torch.float64)
    logits = head.logits(torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(200, dtype=torch.int64))[:, 0]
    assert (logits.diff() < 0).all()


def test_sup_con_is_the_same_at_any_length_and_least_for_points_that_coincide(points, labels):
    assert sup_con(3 * points, labels).item() == pytest.approx(sup_con(points, labels).item())
    centres = torch.eye(4, dtype=torch.float64)[labels]
    assert sup_con(centres, labels) < sup_con(points, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, points, labels):
    assert torch.autograd.gradcheck(lambda e: LOSSES[name](e, labels), points.requires_grad_())


def test_gradient_of_arc_face(points, labels):
    head = ArcFace(4, 4, scale=8.0).double()
    assert torch.autograd.gradcheck(lambda e: head(e, labels), points.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_compare_is_zero_and_points_that_coincide_have_a_gradient(name):
    alone = torch.randn(3, 2, requires_grad=True)
    assert torch.isfinite(LOSSES[name](alone, torch.arange(3)))
    assert LOSSES[name](torch.randn(1, 2), torch.zeros(1)) == 0
    together = torch.ones(4, 2, requires_grad=True)
    LOSSES[name](together, torch.tensor([0, 0, 1, 1])).backward()
    assert together.grad.isfinite().all()


@pytest.mark.parametrize("name", [*LOSSES, "ArcFace"])
def test_bad_labels(name):
    loss = LOSSES.get(name) or ArcFace(4, 3)
    with pytest.raises(ValueError, match=rf"{name}: embedding must be \[N, F\] and label \[N\]: got \[5, 4\] and \[6\]"):
        loss(torch.zeros(5, 4), torch.zeros(6, dtype=torch.int64))


def test_bad_arc_face():
    with pytest.raises(ValueError, match="ArcFace: margin must be from 0 to below pi: got -0.1"):
        ArcFace(4, 3, margin=-0.1)
    with pytest.raises(ValueError, match="ArcFace: scale must be positive: got 0"):
        ArcFace(4, 3, scale=0)
