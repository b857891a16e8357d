"""The drawn signs, and what holds for every committee of columns."""

from __future__ import annotations

import math

import pytest
import torch

from dlops.courses.data import signs
from dlops.courses.data.signs import CLASSES, END, GLYPHS, SHAPES, draw_signs, glyph_distance, plate_distance

pytest.importorskip("lightning")
from dlops.courses.convolutional.b5_columns import committee_gaps, distort, enlarge
from dlops.courses.convolutional.b6_signs import transformer_gaps


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def points(*pairs: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y, [1, 1, N] each."""
    return tuple(torch.tensor(pairs).T[:, None, None].unbind(0))


@pytest.mark.parametrize(
    ("shape", "corners", "first"),
    [("triangle", 3, -90), ("triangle down", 3, 90), ("square", 4, 45), ("diamond", 4, 0), ("octagon", 8, 22.5)],
)
def test_plates_are_regular_polygons(shape, corners, first):
    """Their corners lie on the edge, at a distance 1 from their middle; their edges' middles do, at cos(pi / corners)."""
    middle = {"triangle": 0.25, "triangle down": -0.25}.get(shape, 0.0)
    label = torch.tensor([SHAPES.index(shape)])
    for offset, distance in ((0, 1), (180 / corners, math.cos(math.pi / corners))):
        angles = [math.radians(first + offset + 360 * k / corners) for k in range(corners)]
        found = plate_distance(
            *points(*((distance * math.cos(a), middle + distance * math.sin(a)) for a in angles)), label
        )
        assert found.abs().max() < 1e-5
    assert plate_distance(*points((0, middle)), label).item() == pytest.approx(-math.cos(math.pi / corners), abs=1e-6)


def test_disc_and_strokes():
    disc = torch.tensor([SHAPES.index("disc")])
    torch.testing.assert_close(
        plate_distance(*points((0, 0), (0.6, 0.8), (3, 4)), disc), torch.tensor([[[-1.0, 0, 4]]])
    )
    bar = torch.tensor([GLYPHS.index("bar")])  # from -0.8 to 0.8, half as wide as 0.16
    expected = torch.tensor([[[-0.16, 0.14, 0.34]]])
    torch.testing.assert_close(glyph_distance(*points((0.5, 0), (0, 0.3), (1.1, 0.4)), bar), expected)


def test_classes_are_balanced_and_apart():
    drawn = draw_signs(3 * CLASSES, torch.Generator().manual_seed(0), hard=0.0)
    assert drawn.images.shape == (3 * CLASSES, 3, 32, 32) and drawn.images.min() >= -1 and drawn.images.max() <= 1
    assert drawn.labels.bincount().tolist() == [3] * CLASSES
    # in good conditions all signs of a class are the same in the middle, and those of different classes are not
    middle = drawn.images[..., 13:19, 13:19].flatten(1)
    same = drawn.labels[:, None] == drawn.labels
    gaps = torch.cdist(middle, middle, p=math.inf)
    assert gaps[same].max() < 1e-5 and gaps[~same].min() > 0.2


def test_left_and_right_are_mirrored():
    drawn = draw_signs(CLASSES, torch.Generator().manual_seed(0), hard=0.0)
    images = {signs.name(label): image[:, 8:24, 8:24] for label, image in zip(drawn.labels.tolist(), drawn.images)}
    assert images.keys() >= {"end", "octagon, bend"} and len(images) == CLASSES and signs.name(END) == "end"
    torch.testing.assert_close(images["disc, left"].flip(2), images["disc, right"], rtol=0, atol=1e-5)
    torch.testing.assert_close(images["square, bend"].flip(1, 2), images["square, bend"], rtol=0, atol=1e-5)


def test_same_generator_same_signs():
    first, second = (draw_signs(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def test_transformer_gaps():
    same, turned = transformer_gaps(draw_signs(4, torch.Generator().manual_seed(0)).images)
    assert same < 1e-12 and turned < 1e-12


def random_columns() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 40, 10, dtype=torch.float64, generator=generator)
    return logits.log_softmax(2), torch.randint(0, 10, (40,), generator=generator)


def test_committee_gaps():
    each, labels = random_columns()
    mean, identity, excess = committee_gaps(each, each.exp().mean(0).log(), labels)
    assert mean < 1e-14 and identity < 1e-14 and excess < 0
    # the mean of the logits, and one column alone, are no committee
    for wrong in (each.mean(0).log_softmax(1), each[0]):
        mean, identity, _ = committee_gaps(each, wrong, labels)
        assert mean > 1e-3 and identity > 1e-3
    assert committee_gaps(each, each[0], labels)[2] > 0


def test_distortion_keeps_the_digit_in_the_image():
    digits = torch.full((50, 1, 8, 8), -1.0)
    digits[:, :, 2:6, 2:6] = 1.0
    images = enlarge(digits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moved = distort(images)
    ink, before = (moved + 1).sum((1, 2, 3)), (images + 1).sum((1, 2, 3))
    assert (ink / before).min() > 0.75 and (ink / before).max() < 1.3 and not torch.allclose(moved, images)
