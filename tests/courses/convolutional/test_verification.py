"""The protocol of verification against scikit-learn and counts by hand; the data of its recipe."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from dlops.courses.convolutional import _verification as protocol
from dlops.courses.convolutional.b7_verification import TURNS, turned, warped
from dlops.courses.measures import auroc
from dlops.models.vision.metric_losses import sup_con, triplet

metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(params=["distinct", "tied"])
def scored(request) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(300, generator=generator) < 0.3
    score = torch.randn(300, generator=generator) + positive
    return (score if request.param == "distinct" else score.round(decimals=0)), positive


def test_auroc_is_scikit_learns(scored):
    assert auroc(*scored) == pytest.approx(metrics.roc_auc_score(scored[1], scored[0]), abs=1e-12)


def test_rates_are_scikit_learns(scored):
    false, true = protocol.rates(*scored)
    theirs = metrics.roc_curve(scored[1], scored[0], drop_intermediate=False)
    assert torch.allclose(false, torch.from_numpy(theirs[0])) and torch.allclose(true, torch.from_numpy(theirs[1]))


def test_auroc_wants_both_kinds():
    with pytest.raises(ValueError, match="auroc: positive must hold both kinds: got 3 positive and 0 negative"):
        auroc(torch.rand(3), torch.ones(3, dtype=torch.bool))


def test_equal_error_rate_by_hand():
    score, positive = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2]), torch.tensor([1, 1, 0, 1, 0, 1, 0, 0])
    # accepting from 6 up: 1 of 4 wrong, 1 of 4 right ones rejected
    assert protocol.equal_error_rate(score, positive) == pytest.approx(0.25)
    assert protocol.equal_error_rate(torch.arange(4.0), torch.tensor([0, 0, 1, 1])) == 0
    assert protocol.equal_error_rate(torch.arange(4.0), torch.tensor([1, 1, 0, 0])) == 1
    assert protocol.equal_error_rate(torch.zeros(4), torch.tensor([1, 1, 0, 0])) == 0.5


def test_pairs():
    points = normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    cosine, same = protocol.pairs(points, torch.tensor([4, 5, 4]))
    torch.testing.assert_close(cosine, torch.tensor([0.5**0.5, 0.0, 0.5**0.5]))
    assert same.tolist() == [False, True, False]


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 0, 1], [0, 0, 0, 1, 2, 3, 3, 3]])
def test_losses_are_their_definitions(labels):
    points = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor(labels)
    assert sup_con(points, labels, 0.2).item() == pytest.approx(protocol.sup_con_by_loops(points, labels, 0.2).item(), abs=1e-12)
    points = normalize(points, dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(triplet(points, labels, 0.3), points)
    torch.testing.assert_close(gradient, protocol.triplet_gradient_by_hand(points.detach(), labels, 0.3), atol=1e-12, rtol=0)


def test_six_turns_without_the_half_turn():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    images, labels = turned(image, torch.tensor([2]))
    assert labels.tolist() == list(range(2 * TURNS, 3 * TURNS))
    assert len({tuple(turn.flatten().tolist()) for turn in images}) == TURNS
    half = image.rot90(2, (2, 3))
    assert not any(torch.equal(turn, other[0]) for turn in images for other in (half, half.flip(3)))


def test_warping_keeps_the_paper_and_repeats_with_the_seed():
    images = torch.zeros(4, 1, 32, 32)
    images[:, :, 12:20, 12:20] = 1
    torch.manual_seed(3)
    first = warped(images)
    torch.manual_seed(3)
    assert torch.equal(first, warped(images)) and not torch.equal(first, images)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1 + 1e-6
