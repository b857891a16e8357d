"""dlops.models.autoencoders.autoencoder."""

import pytest
import torch
from torch import nn

from dlops.bench.stock import stock
from dlops.models.autoencoders.autoencoder import Autoencoder, ConvAutoencoder

PRESETS = [(kind, name) for kind in (Autoencoder, ConvAutoencoder) for name in kind.PRESETS]


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("kind", "preset"), PRESETS)
def test_shapes_there_and_back(kind, preset):
    network = kind.from_preset(preset)
    x = torch.rand(3, *network.shape)
    code = network.encode(x)
    assert code.shape == (3, network.code)
    assert network.decode(code).shape == network(x).shape == x.shape
    torch.testing.assert_close(network.decode(code), network(x), rtol=0, atol=0)


def test_the_original_has_the_papers_layers():
    """784-1000-500-250-30 and back, logistic units, a linear code."""
    network = Autoencoder.from_preset("original")
    widths = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    layers = [*network.encoder, *network.decoder]
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(zip(widths, widths[1:]))
    assert [layer.activation for layer in layers] == ["sigmoid"] * 3 + [None] + ["sigmoid"] * 4
    assert count(network) == sum(a * b + b for a, b in zip(widths, widths[1:]))


def test_parameters_of_the_convolutional_one_counted_by_hand():
    encoder = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 4 + 1) * 8
    decoder = (8 + 1) * 256 + (16 * 64 * 32 + 32) + (16 * 32 * 32 + 32) + (9 * 32 + 1) * 1
    assert count(ConvAutoencoder.from_preset("digits")) == encoder + decoder


def test_the_linear_one_is_affine():
    network = Autoencoder.from_preset("linear").double()
    a, b = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(0.3 * a + 0.7 * b), 0.3 * network(a) + 0.7 * network(b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Autoencoder, ConvAutoencoder])
def test_nothing_passes_by_the_code(kind):
    """The Jacobian of the reconstruction has at most the code's rank."""
    network = kind.from_preset("digits", code=3).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64).repeat(64, 1, 1, 1).requires_grad_()
    (jacobian,) = torch.autograd.grad(network(x).flatten(1).diagonal().sum(), x)  # row k: the gradient of pixel k
    sizes = torch.linalg.svdvals(jacobian.flatten(1))
    assert sizes[2] > 1e-8 * sizes[0] and sizes[3] < 1e-12 * sizes[0]


@pytest.mark.parametrize("kind", [Autoencoder, ConvAutoencoder])
def test_the_sigmoid_keeps_pixels_in_range_and_its_absence_does_not(kind):
    x = torch.rand(4, 1, 8, 8)
    codes = 100 * torch.randn(50, 8)
    inside = kind.from_preset("digits").decode(codes)
    assert inside.min() >= 0 and inside.max() <= 1
    assert kind.from_preset("digits", output=None).decode(codes).abs().max() > 1
    assert kind.from_preset("digits", output=None)(x).shape == x.shape


@pytest.mark.parametrize("kind", [Autoencoder, ConvAutoencoder])
def test_stock_torch_has_the_same_weights_and_results(kind):
    network = kind.from_preset("digits")
    plain = stock(network)
    assert not any(type(module).__module__.startswith("dlops.nn") for module in plain.modules())
    assert list(plain.state_dict()) == list(network.state_dict())
    x = torch.rand(7, 1, 8, 8)
    results = []
    for model in (network, plain):
        y = model(x)
        (y - x).square().mean().backward()
        results.append((y, *(parameter.grad for parameter in model.parameters())))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_stride_two_covers_every_pixel_equally():
    """A transposed convolution of ones: no checkerboard inside the border (Odena et al. 2016)."""
    layer = ConvAutoencoder.from_preset("digits").decoder[2]
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.zero_()
        y = layer(torch.ones(1, 64, 6, 6))[..., 1:-1, 1:-1]
    assert isinstance(layer, nn.ConvTranspose2d) and (y == y[0, 0, 0, 0]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Autoencoder()(torch.rand(2, 1, 9, 8)), r"Autoencoder: x must be \[N, 1, 8, 8\]: got \[2, 1, 9, 8\]"),
        (lambda: Autoencoder()(torch.rand(1, 8, 8)), r"Autoencoder: x must be \[N, 1, 8, 8\]: got \[1, 8, 8\]"),
        (lambda: Autoencoder().decode(torch.rand(2, 9)), r"Autoencoder: z must be \[N, 8\]: got \[2, 9\]"),
        (lambda: Autoencoder(code=0), "Autoencoder: code must be at least 1: got 0"),
        (lambda: Autoencoder(hidden=(16, 0)), r"Autoencoder: hidden must be at least 1: got \(16, 0\)"),
        (lambda: ConvAutoencoder(side=10), "ConvAutoencoder: side must be a multiple of 2.*got side 10"),
        (lambda: ConvAutoencoder(widths=()), "ConvAutoencoder: side must be a multiple of .* at least one width"),
        (lambda: ConvAutoencoder()(torch.rand(2, 3, 8, 8)), r"image must be \[N, 1, 8, 8\]: got \[2, 3, 8, 8\]"),
        (lambda: ConvAutoencoder.from_preset("mnist"), "ConvAutoencoder: no preset 'mnist', expected one of 'digits', 'cifar'"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
