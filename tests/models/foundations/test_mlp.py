"""Perceptron and MLP: published sizes, the equations in float64, the same network from plain torch, bad input."""

from __future__ import annotations

import pytest
import torch

from dlops.bench.stock import stock
from dlops.models.foundations.mlp import ACTIVATIONS, MLP, SCHEMES, Perceptron


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("zhang_1x512", 1_209_866),  # Zhang et al. 2017, table 1
        ("zhang_3x512", 1_735_178),
        ("srivastava_3x1024", 785 * 1024 + 2 * 1025 * 1024 + 1025 * 10),
        ("digits", 65 * 128 + 129 * 128 + 129 * 10),
    ],
)
def test_presets_have_the_published_sizes(preset, parameters):
    assert count(MLP.from_preset(preset)) == parameters


@pytest.mark.parametrize("preset", list(MLP.PRESETS))
def test_every_preset_runs_on_images_and_rows(preset):
    torch.manual_seed(0)
    network = MLP.from_preset(preset).eval()
    inputs = MLP.PRESETS[preset]["inputs"]
    rows = torch.randn(3, inputs)
    assert network(rows).shape == (3, MLP.PRESETS[preset]["outputs"])
    torch.testing.assert_close(network(rows.reshape(3, 1, inputs)), network(rows), rtol=0, atol=0)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("residual", [False, True])
def test_mlp_is_its_equations(activation, norm, residual):
    torch.manual_seed(0)
    network = MLP(6, 3, hidden=(5,) * 4, activation=activation, norm=norm, residual=residual).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    f = ACTIVATIONS[activation]
    h, entered = x, []
    for k, layer in enumerate(network.hidden):
        entered.append(h)
        h = h @ layer.weight.T + layer.bias
        if norm == "batch":
            h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        elif norm == "layer":
            h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        if residual and k == 2:  # the one block of four layers is 1 and 2
            h = h + entered[1]
        h = f(h)
    expected = h @ network.output.weight.T + network.output.bias
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"residual": True, "norm": "batch"}, {"activation": "gelu", "norm": "layer"}])
def test_stock_twin_has_the_same_parameters_and_outputs(settings):
    torch.manual_seed(0)
    network = MLP(6, 3, hidden=(8, 8, 8), **settings).eval()
    plain = stock(network)
    assert list(plain.state_dict()) == list(network.state_dict())
    assert type(plain.hidden[0]).__module__ != type(network.hidden[0]).__module__
    x = torch.randn(5, 6)
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_initial_weights_have_the_deviation_of_the_scheme(scheme):
    torch.manual_seed(0)
    layer = MLP(300, 2, hidden=(500,), init=scheme).hidden[0]
    expected = {"torch": (1 / 900) ** 0.5, "xavier": (2 / 800) ** 0.5, "he": (2 / 300) ** 0.5}[scheme]
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.01)  # 150,000 draws
    assert (layer.bias == 0).all() == (scheme != "torch")


def test_dropout_leaves_out_a_share_of_the_hidden_units_and_only_in_training():
    torch.manual_seed(0)
    network = MLP(4, 2, hidden=(10_000,), dropout=0.3)
    seen = {}
    network.output.register_forward_pre_hook(lambda _, args: seen.update(h=args[0]))
    with torch.no_grad():
        network.hidden[0].weight.zero_()
        network.hidden[0].bias.fill_(7.0)
        network(torch.randn(1, 4))
        assert seen["h"].unique().tolist() == pytest.approx([0, 10])
        assert (seen["h"] == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
        network.eval()(torch.randn(1, 4))
    assert (seen["h"] == 7).all()


def test_perceptron_learns_and_and_or_but_not_xor():
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])  # AND, OR
    neurons = Perceptron(2, 2)
    mistakes = neurons.learn(corners, targets)
    assert torch.equal(neurons.fire(corners), targets)
    assert 0 < mistakes < 50
    assert neurons.learn(corners, targets, passes=1) > 0  # starts from zero every time
    xor = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    neuron = Perceptron(2)
    assert neuron.learn(corners, xor, passes=50) >= 50  # a mistake in every pass
    assert (neuron.fire(corners) == xor).sum() <= 3


def test_perceptron_is_a_smooth_neuron_for_gradient_descent():
    torch.manual_seed(0)
    neuron = Perceptron(3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.sigmoid(x @ neuron.neurons.weight.T + neuron.neurons.bias)
    torch.testing.assert_close(neuron(x), expected, rtol=0, atol=1e-14)
    assert torch.equal(neuron.fire(x), (expected > 0.5).double())
    torch.testing.assert_close(stock(neuron)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP(0, 2), "MLP: inputs must be a positive integer: got 0"),
        (lambda: MLP(2, 2, hidden=(4, -1)), r"MLP: hidden\[1\] must be a positive integer: got -1"),
        (lambda: MLP(2, 2, activation="step"), "MLP: activation must be one of 'relu', .*: got 'step'"),
        (lambda: MLP(2, 2, init="zeros"), "MLP: init must be one of 'torch', 'xavier', 'he': got 'zeros'"),
        (lambda: MLP(2, 2, norm="group"), "MLP: norm must be one of None, 'batch', 'layer': got 'group'"),
        (lambda: MLP(2, 2, hidden=(4, 5), residual=True), r"MLP: hidden must be layers of one size.*: got \(4, 5\)"),
        (lambda: MLP(2, 2, dropout=1.0), "MLP: dropout must be from 0 to below 1: got 1.0"),
        (lambda: MLP(64, 2)(torch.randn(3, 1, 8, 9)), r"MLP: input must have 64 values per sample.*: got \[3, 1, 8, 9\]"),
        (lambda: MLP(64, 2)(torch.randn(64)), r"MLP: input must have 64 values per sample.*: got \[64\]"),
        (lambda: MLP.from_preset("mnist"), "MLP: no preset 'mnist'"),
        (lambda: Perceptron(2, 0), "Perceptron: outputs must be a positive integer: got 0"),
        (lambda: Perceptron(2)(torch.randn(3, 3)), r"Perceptron: input must have 2 values per sample.*: got \[3, 3\]"),
        (lambda: Perceptron(2).learn(torch.randn(3, 2), torch.ones(3)), r"Perceptron: target must be 0 or 1, \[3, 1\]"),
        (lambda: Perceptron(2).learn(torch.randn(3, 2), -torch.ones(3, 1)), "Perceptron: target must be 0 or 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_linear_model_is_an_mlp_without_hidden_layers():
    torch.manual_seed(0)
    network = MLP(4, 3, hidden=())
    x = torch.randn(2, 4)
    torch.testing.assert_close(network(x), torch.nn.functional.linear(x, network.output.weight, network.output.bias))
    assert count(network) == 15
