"""Multi-column networks: the networks of the papers, the mean of the columns, the preprocessings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlops.bench.stock import stock
from dlops.models.vision.columns import Column, LocalContrast, MultiColumn, NormaliseWidth, StretchContrast


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("preset", "shape", "outputs", "parameters"),
    [
        ("mnist", (1, 29, 29), 10, 340 + 20_040 + 54_150 + 1_510),
        ("signs", (3, 48, 48), 43, 1_543_443),
        # 100C3, 200C2, 300C2, 400C2 on 48 pixels leave 400 maps of 2x2; 500N, 3755N
        ("characters", (1, 48, 48), 3755, 1_000 + 80_200 + 240_300 + 480_400 + 800_500 + 1_881_255),
    ],
)
def test_columns_of_the_papers(preset, shape, outputs, parameters):
    with torch.device("meta"):
        network = Column.from_preset(preset)
        assert network(torch.empty(2, *shape)).shape == (2, outputs)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_same_as_plain_torch():
    network = Column.from_preset("small signs").eval()
    plain, images = stock(network), torch.randn(3, 3, 32, 32)
    assert network.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain(images), rtol=1e-5, atol=1e-5)


def test_committee_is_the_mean_of_its_columns():
    columns = [Column().double() for _ in range(3)]
    committee = MultiColumn(columns, [nn.Identity(), NormaliseWidth(12), NormaliseWidth(20)])
    images = torch.rand(4, 1, 29, 29, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        prepared = [prepare(images) for prepare in committee.preprocessings]
        mean = sum(column(image).softmax(1) for column, image in zip(columns, prepared)) / 3
        torch.testing.assert_close(committee(images).exp(), mean, rtol=1e-13, atol=0)
        turned = MultiColumn(columns[::-1], [committee.preprocessings[k] for k in (2, 1, 0)])
        torch.testing.assert_close(turned(images), committee(images), rtol=0, atol=1e-13)


def test_normalised_width():
    images = torch.full((2, 1, 29, 29), -1.0)
    images[0, 0, 5:20, 3:10] = 1.0  # 7 wide, in the left half
    images[1, 0, 2:4, 6:26] = 0.5  # 20 wide
    for width in (8, 14, 20):
        drawn = (NormaliseWidth(width)(images) > -0.7).any(2)[:, 0]  # [2, 29]
        for line in drawn:
            first, last = line.nonzero()[0].item(), line.nonzero()[-1].item()
            assert abs(last - first + 1 - width) <= 2 and abs(first + last - 28) <= 1
            assert line[first : last + 1].all()
    assert NormaliseWidth(10)(torch.full((1, 1, 29, 29), -1.0)).eq(-1).all()  # nothing drawn


def test_normalised_width_that_it_already_has():
    images = torch.full((1, 1, 29, 29), -1.0, dtype=torch.float64)
    images[..., 4:20, 9:20] = torch.rand(16, 11, dtype=torch.float64) + 0.5
    torch.testing.assert_close(NormaliseWidth(11)(images), images, rtol=0, atol=1e-12)


def test_contrast_is_light_out_of_the_way():
    """What shows under any light and haze is the same after both."""
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    darker = 0.3 * images + 0.2
    for prepare in (StretchContrast(), LocalContrast().double()):
        torch.testing.assert_close(prepare(darker), prepare(images), rtol=0, atol=1e-5)
    stretched = StretchContrast(0.0)(images)
    assert stretched.amin((2, 3)).eq(-1).all() and stretched.amax((2, 3)).sub(1).abs().max() < 1e-12


def test_local_contrast_sees_no_even_light():
    """A constant, and inside a slope, are surrounded by their own value; what is left is the dot."""
    line = torch.linspace(0, 1, 40, dtype=torch.float64)
    images = (line + line[:, None])[None, None].clone()
    images[0, 0, 20, 20] += 1
    detail = LocalContrast(2.0).double()(images)[0, 0]
    assert detail.argmax() == 20 * 40 + 20
    assert detail[8:12, 8:12].abs().max() < 1e-6 * detail[20, 20]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: Column(activation="gelu"), "Column: activation must be 'tanh' or 'relu': got 'gelu'"),
        (lambda: Column(side=9), "convolutions leave nothing of an image of side 9"),
        (lambda: Column()(torch.zeros(2, 1, 28, 29)), "Column: image must be 1x29x29: got 1x28x29"),
        (lambda: MultiColumn([]), "columns is empty"),
        (lambda: MultiColumn([Column()], []), r"preprocessings must be one per column \(1\): got 0"),
        (lambda: Column.from_preset("gtsrb"), "Column: no preset 'gtsrb'"),
    ],
)
def test_rejects(run, message):
    with pytest.raises(ValueError, match=message):
        run()
