"""The maths of rows A1, A3, A4, A6 and A9: every invariant at its limit, and that it notices what it is there to notice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dlops.courses.data.digits import load_digits
from dlops.courses.diagnostics import grad_flow, table
from dlops.courses.foundations import a1_mlp as a1
from dlops.courses.foundations import a3_gradient_descent as a3
from dlops.courses.foundations import a4_gradients as a4
from dlops.courses.foundations import a6_regularisation as a6
from dlops.courses.foundations import a9_random_labels as a9
from dlops.courses.foundations import losses, optimisers
from dlops.courses.session import Session
from dlops.models.foundations.mlp import MLP
from dlops.models.vision.lenet import LeNet5


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    training, _ = load_digits()
    return training.images[:64], training.labels[:64]


# A1
@pytest.mark.parametrize("seed", range(5))
def test_the_perceptron_keeps_to_novikoffs_bound(seed):
    share, wrong = a1.novikoff(generator(seed))
    assert 0 < share <= 1 and wrong == 0


def test_two_units_compute_xor():
    assert a1.xor_by_hand() == 0


# A3
@pytest.mark.parametrize("seed", range(3))
def test_losses_and_optimisers_are_torchs(seed):
    assert a3.loss_gap(generator(seed)) <= 1e-12
    assert a3.optimiser_gap(generator(seed)) <= 1e-10


def test_every_loss_is_in_the_catalogue():
    written = {f for f in vars(losses).values() if getattr(f, "__module__", "") == losses.__name__}
    assert {ours for ours, *_ in a3.catalogue(generator()).values()} == written


@pytest.mark.parametrize("kappa", a3.KAPPAS[:3])
def test_gradient_descent_contracts_at_its_rate_and_no_other_step_is_better(kappa):
    matrix, start = a3.quadratic(kappa, generator())
    rates = {}
    for factor in (0.98, 1.0, 1.01):
        lr = factor * 2 / (1 + kappa)
        path = a3.distances(matrix, start, lambda p, lr=lr: torch.optim.SGD(p, lr), int(5 * kappa) + 30)
        rates[factor] = a3.per_step(path, 10)
    assert rates[1.0] == pytest.approx(optimisers.contraction(kappa), rel=1e-3)
    assert rates[1.0] < min(rates[0.98], rates[1.01])


# A4
def test_the_theory_keeps_the_variance_where_the_papers_say():
    squares, factors = a4.theory("relu", "he", 100, 5)
    assert squares == pytest.approx([1] * 5, abs=1e-9) and factors == pytest.approx([1] * 4, abs=1e-9)
    _, factors = a4.theory("relu", "torch", 10**9, 5)
    assert factors == pytest.approx([1 / 6] * 4, abs=1e-9)  # variance 1 / (3 I), half of the units on
    _, factors = a4.theory("sigmoid", "xavier", 100, 5)
    assert max(factors) < 1 / 16  # the slope is at most 1 / 4


def test_networks_flow_as_the_theory_says():
    forward, backward = a4.theory_gaps(Session("A4"), networks=1)
    assert forward <= 0.15 and backward <= 0.15


def test_equal_units_stay_equal(digits):
    assert a4.twins_apart(*digits) <= 1e-12


def test_grad_flow_is_autograd(digits):
    torch.manual_seed(0)
    network = MLP(64, 10, hidden=(16, 16)).double()
    batch = digits[0].double(), digits[1]
    flows = grad_flow(network, a4.loss, batch)
    assert [flow.name for flow in flows] == ["hidden.0", "hidden.1", "output"]
    assert all(parameter.grad is None for parameter in network.parameters())
    a4.loss(network, *batch).backward()
    for flow, layer in zip(flows, (*network.hidden, network.output)):
        norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item()
        assert flow.parameter_gradient == pytest.approx(norm, rel=1e-12)
    h = torch.relu(batch[0].flatten(1) @ network.hidden[0].weight.T + network.hidden[0].bias).detach()
    assert flows[0].std == pytest.approx(h.std(0).mean().item(), rel=1e-12)
    assert flows[0].rms == pytest.approx(h.square().mean().sqrt().item(), rel=1e-12)
    assert len(table(flows).splitlines()) == 4


def test_grad_flow_counts_dead_units_and_leaves_the_network_alone(digits):
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 10))
    with torch.no_grad():
        network[1].bias[:3] = -100.0  # three maps that ReLU never lets through
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flows = {flow.name: flow for flow in grad_flow(network, a4.loss, digits)}
    assert flows["2"].dead == 3 / 8 and flows["2"].parameters is None
    assert flows["0"].dead == 0 and flows["4"].gradient > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0]._forward_hooks


@pytest.mark.parametrize("backend", ["dlops", "torch"])
def test_grad_flow_reads_our_fused_layers_and_recurrent_ones(backend, digits):
    session = Session("A4", backend=backend)
    images = nn.functional.interpolate(digits[0], scale_factor=4)
    lenet = session.build("lenet", lambda: LeNet5.from_preset("relu"))
    with session.kernels():
        flows = {flow.name: flow for flow in grad_flow(lenet, a4.loss, (images, digits[1]))}
    assert flows["c1"].mean > 0 and all(flow.gradient > 0 for flow in flows.values())
    lstm = nn.LSTM(8, 4, batch_first=True)
    (flow,) = grad_flow(lstm, lambda net, x: net(x[:, 0])[0].sum(), digits[:1])
    assert flow.kind == "LSTM" and flow.parameter_gradient > 0


def test_grad_flow_rejects(digits):
    network = MLP(64, 10)
    with pytest.raises(ValueError, match="two samples"):
        grad_flow(network, a4.loss, (digits[0][:1], digits[1][:1]))
    with pytest.raises(ValueError, match=r"loss must be a scalar.*: got shape \[64, 10\]"):
        grad_flow(network, lambda net, x, _: net(x), digits)


# A6
@pytest.mark.parametrize("seed", range(5))
def test_dropout_is_a_ridge_penalty(seed):
    assert a6.dropout_as_ridge(generator(seed), masks=20_000) <= 5


def test_dropout_masks_repeat(digits):
    assert a6.mask_gap(Session("A6"), digits[0][:8]) == 0


def test_adamw_decays_apart_from_the_gradient(digits):
    assert a6.decay_gap(*digits) <= 1e-15


def test_batch_norm_folds(digits):
    torch.manual_seed(0)
    assert a6.fold_gap(digits[0]) <= 1e-12


# A9
@pytest.mark.parametrize("seed", range(5))
def test_a_network_of_two_weights_per_sample_has_any_labels(seed):
    assert a9.expressive_gap(generator(seed)) <= 1e-8


def test_folding_layers_double_the_pieces_and_a_shallow_network_adds_one_per_unit():
    assert [a9.pieces(a9.sawtooth(depth)) for depth in range(1, 9)] == [2**depth for depth in range(1, 9)]
    torch.manual_seed(0)
    shallow = MLP(1, 1, hidden=(16,)).double()
    with torch.no_grad():
        shallow.hidden[0].weight.fill_(1.0)
        shallow.hidden[0].bias.copy_(-torch.arange(1, 17) / 32)  # every kink on the grid
    assert a9.pieces(shallow) == 17


def test_the_shapes_of_depth_against_width_have_as_many_weights():
    counts = [sum(p.numel() for p in MLP(64, 10, (w,) * d).parameters()) for d, w in a9.SHAPES.items()]
    assert max(counts) / min(counts) < 1.01


def test_units_in_another_order_are_the_same_function(digits):
    torch.manual_seed(0)
    network = MLP(64, 10, hidden=a9.HIDDEN)
    gap, halfway = a9.permutation_gap(network, digits[0], generator())
    assert gap <= 1e-10
    assert math.isfinite(gap) and not torch.equal(halfway.hidden[0].weight, network.hidden[0].weight)


def test_shifted_digits_move_right_on_paper():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    moved = a9._shifted(image, 1)
    assert (moved[..., 0] == -1).all() and torch.equal(moved[..., 1:], image[..., :3])
