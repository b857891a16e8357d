"""The digit collages, and the measures of segmentation: pixels, boxes and labels tell one story."""

from __future__ import annotations

import pytest
import torch

from dlops.courses.data.collages import ATTEMPTS, BACKGROUND, INK, draw_collages, render
from dlops.courses.data.digits import Digits

pytest.importorskip("lightning")
from dlops.courses.convolutional.b4_segmentation import disagreeing_pixels, intersections_over_unions, loss, shift_gap


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def some_digits() -> Digits:
    """Made up: ten patterns with ink in every corner, so that their boxes are known."""
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    images[:, :, 0, 0] = images[:, :, 7, 7] = images[:, :, 0, 7] = images[:, :, 7, 0] = 1.0
    return Digits(images, torch.arange(10))


def drawn(count: int = 40, **settings):
    return draw_collages(some_digits(), count, torch.Generator().manual_seed(1), **settings)


def test_a_digit_stretched_three_times_keeps_its_pixels():
    """Bilinear interpolation by an odd factor meets every original pixel in the middle of its block."""
    digits = some_digits().images[:2, 0]
    page = render(digits, torch.tensor([[5, 9, 24], [40, 2, 24]]), 64)
    assert torch.equal(page[0, 10:33:3, 6:29:3], digits[0])
    assert torch.equal(page[1, 3:26:3, 41:64:3], digits[1])
    torch.testing.assert_close(page[0, 10, 7], digits[0, 0, 0] * 2 / 3 + digits[0, 0, 1] / 3)


def test_pixels_boxes_and_labels_agree():
    collages = drawn()
    assert disagreeing_pixels(collages) == 0
    for image, classes, labels, boxes in zip(
        collages.images[:, 0], collages.classes, collages.labels, collages.boxes.long()
    ):
        assert torch.equal(image >= INK, classes != BACKGROUND)
        outside = torch.ones_like(classes, dtype=torch.bool)
        for label, (left, top, right, bottom) in zip(labels.tolist(), boxes.tolist()):
            if label < 0:
                assert (left, top, right, bottom) == (0, 0, 0, 0)
                continue
            here = classes[top:bottom, left:right] == label
            assert here[0].any() and here[-1].any() and here[:, 0].any() and here[:, -1].any()  # as tight as can be
            outside[top:bottom, left:right] = False
        assert (classes[outside] == BACKGROUND).all()


def test_disagreements_are_counted():
    collages = drawn()
    collages.classes[0, 0, 0] = 3 if collages.classes[0, 0, 0] == BACKGROUND else BACKGROUND
    assert disagreeing_pixels(collages) >= 1
    collages = drawn()
    collages.labels[0, 0] = (collages.labels[0, 0] + 1) % 10
    assert disagreeing_pixels(collages) >= 1


def test_one_to_most_digits_apart():
    collages = drawn(200)
    present = (collages.labels >= 0).sum(1)
    assert present.min() >= 1 and present.max() == 4
    for boxes in collages.boxes:
        held = [box.tolist() for box in boxes if box.any()]
        for k, (left, top, right, bottom) in enumerate(held):
            for other in held[k + 1 :]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_same_generator_same_collages():
    first, second = drawn(5), drawn(5)
    assert torch.equal(first.images, second.images) and torch.equal(first.boxes, second.boxes)


def test_a_full_page_takes_what_fits():
    collages = drawn(10, side=24, sizes=(24, 24))
    assert (collages.labels >= 0).sum(1).eq(1).all() and ATTEMPTS > 1


@pytest.mark.parametrize("sizes", [(4, 10), (20, 10), (10, 65)])
def test_rejects_sizes(sizes):
    with pytest.raises(ValueError, match="sizes must be from 8 to side"):
        drawn(sizes=sizes)


def test_intersection_over_union():
    """Of the pixels of class 0, two of three are found and one is found in excess: 2 / 4."""
    classes, found = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 0, 1, 1]])
    ious = intersections_over_unions(found, classes)
    assert ious[:2].tolist() == [0.5, 0.5] and ious[2:].isnan().all()
    assert intersections_over_unions(classes, classes)[:2].tolist() == [1, 1]


def test_loss_is_zero_where_all_is_right_only():
    classes = torch.randint(0, BACKGROUND + 1, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    right = 50 * torch.nn.functional.one_hot(classes, BACKGROUND + 1).movedim(-1, 1).float()
    assert loss(lambda _: right, None, classes).item() == pytest.approx(0, abs=1e-5)
    assert loss(lambda _: right.roll(1, 1), None, classes).item() > 1
    assert loss(lambda _: 0 * right, None, classes).item() > 1


def test_shift_gap_tells_a_grid():
    """A convolution moves with its image by any step; a pooling only by its stride."""
    image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    blur = torch.nn.Conv2d(1, 2, 3, padding=1).double()
    grid = torch.nn.Sequential(torch.nn.MaxPool2d(4), torch.nn.Upsample(scale_factor=4.0))
    assert shift_gap(blur, image, 3, 2) < 1e-12 and shift_gap(grid, image, 4, 4) < 1e-12
    assert shift_gap(blur, image, 3, 0) > 1e-3 and shift_gap(grid, image[..., :31, :31], 3, 4) > 1e-3
