"""The data that ships inside scikit-learn, and the pictures."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'dlops[courses]'")

from dlops.courses import pictures
from dlops.courses.data.digits import load_digits
from dlops.courses.data.photographs import load_photographs
from dlops.courses.data.tables import NAMES, load_table


def test_digits_in_both_ranges():
    (a, _), (b, _) = load_digits(), load_digits(low=0.0)
    assert b.images.min() == 0 and b.images.max() == 1
    assert torch.equal(a.images, 2 * b.images - 1) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("name", NAMES)
def test_tables(name):
    training, test = load_table(name)
    sizes = {"iris": (150, 4, 3), "wine": (178, 13, 3), "breast_cancer": (569, 30, 2)}[name]
    assert (len(training) + len(test), len(training.columns), len(training.classes)) == sizes
    assert training.features.mean(0).abs().max() < 1e-5 and (training.features.std(0) - 1).abs().max() < 1e-5
    shares = [table.labels.bincount() / len(table) for table in (training, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.02
    assert torch.equal(load_table(name)[1].features, test.features)


def test_an_unknown_table():
    with pytest.raises(ValueError, match="load_table: name must be one of iris, wine, breast_cancer: got 'titanic'"):
        load_table("titanic")


def test_photographs():
    images = load_photographs()
    assert images.shape == (2, 3, 427, 640) and images.min() >= 0 and images.max() <= 1
    assert (images * 255).round().div(255).sub(images).abs().max() < 1e-6


def test_equal_pictures_give_equal_files():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'dlops[courses]'")
    generator = torch.Generator().manual_seed(0)
    grey, colour = torch.rand(7, 1, 8, 8, generator=generator), torch.rand(3, 3, 16, 16, generator=generator)
    for draw in (
        lambda: pictures.tiles([("grey", grey), ("colour", colour)], across=5),
        lambda: pictures.curves({"a": [3.0, 2.0, 1.0], "b": [1.0, 2.0]}, "x", "y", log="y", smooth=2),
        lambda: pictures.scatter(torch.rand(9, 2, generator=generator), torch.arange(9) % 3),
        lambda: pictures.bars({"a": 1.0, "b": 2.0}, "y"),
    ):
        state = generator.get_state()
        first = pictures.png(draw())
        generator.set_state(state)
        assert first == pictures.png(draw()) and first.startswith(b"\x89PNG")
