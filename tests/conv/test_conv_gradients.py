"""Derivatives: subsets of inputs, second derivatives of float32 kernels against float64, gradcheck in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

import dlops
from tests.conv.calls import SHAPES, Shape, channels_last, function, torchs

SMALL = {
    "3x3": Shape((2, 2, 4, 5), 3, (3, 3), padding=1),
    "every option": Shape((1, 4, 5, 6), 2, (2, 3), (2, 1), (1, 2), (1, 2), 2),
    "depthwise": Shape((1, 3, 4, 4), 3, (3, 3), padding=1, groups=3),
    "1-D same": Shape((2, 2, 5), 2, (4,), padding="same"),
    "3-D": Shape((1, 2, 3, 3, 2), 2, (2, 2, 2), padding=1),
    "reflect": Shape((1, 2, 4, 4), 2, (3, 3), padding=2, padding_mode="reflect"),
    "replicate": Shape((1, 2, 3, 4), 2, (3, 3), padding=1, stride=2, padding_mode="replicate"),
    "circular": Shape((1, 2, 5), 2, (3,), padding=2, padding_mode="circular"),
    "transposed": Shape((1, 2, 3, 3), 4, (3, 3), stride=2, padding=1, groups=2, transposed=True, output_padding=1),
    "transposed 1-D": Shape((1, 2, 4), 3, (4,), stride=2, padding=1, transposed=True),
}


def tensors_of(shape, dtype=torch.float32, residual=True, grad=True):
    generator = torch.Generator().manual_seed(3)
    make = lambda size: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    x, w = make(shape.size), make(shape.weight_size)
    tensors = [x, w, make((shape.filters,))]
    if residual:
        tensors.append(make(torchs(shape, x.double(), w.double()).shape))
    return [t.requires_grad_(grad) for t in tensors]


def call(shape, activation=None, variant=None):
    def fn(x, w, bias=None, residual=None):
        return function(shape)(x, w, bias, **shape.options, activation=activation, residual=residual, variant=variant)

    return fn


@pytest.fixture
def auto():
    with dlops.backend("auto"):
        yield


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("name", SMALL)
def test_float64_is_torchs(name, activation):
    tensors = tensors_of(SMALL[name], torch.float64)
    fn = call(SMALL[name], activation)
    assert torch.autograd.gradcheck(fn, tensors, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    if activation is None:
        assert torch.autograd.gradgradcheck(fn, tensors, fast_mode=True)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "sigmoid"])
@pytest.mark.usefixtures("auto")
def test_float64_activations(activation):
    tensors = tensors_of(SMALL["3x3"], torch.float64)
    assert torch.autograd.gradcheck(call(SMALL["3x3"], activation), tensors, fast_mode=True)
    if activation != "relu":
        assert torch.autograd.gradgradcheck(call(SMALL["3x3"], activation), tensors, fast_mode=True)


def second(fn, tensors):
    y = fn(*tensors)
    first = torch.autograd.grad((y * y * y).sum(), tensors, create_graph=True)
    return [*first, *torch.autograd.grad(sum((g * g).sum() for g in first), tensors)]


@pytest.mark.parametrize(
    ("name", "activation"),
    [(name, act) for name in SMALL for act in (None, "gelu")]
    + [("3x3", act) for act in ("relu", "silu", "tanh", "sigmoid")],
)
def test_second_derivatives(device, name, activation):
    """float32, the first derivatives from our kernels: they and their derivatives equal float64's."""
    if device.simt and (activation != "gelu" or SMALL[name].dims == 3):
        pytest.skip("part of the grid for the simt runner")
    shape = SMALL[name]
    ours = second(call(shape, activation), [t.detach().to(device.torch_device).requires_grad_() for t in tensors_of(shape)])
    with dlops.backend("torch"):
        exact = second(
            lambda *t: torchs(shape, *t, activation=activation),
            [t.detach().double().requires_grad_() for t in tensors_of(shape)],
        )
    for mine, e in zip(ours, exact):
        torch.testing.assert_close(mine.cpu().double(), e, rtol=1e-3, atol=1e-5 * float(e.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", ["3x3", "depthwise", "reflect", "transposed"])
def test_subsets_of_gradients(device, name):
    """Only what is asked for, the same as when all is asked for."""
    shape = SMALL[name]
    all_of_them = [t.detach().to(device.torch_device).requires_grad_() for t in tensors_of(shape)]
    fn = call(shape, "silu")
    whole = torch.autograd.grad(fn(*all_of_them).square().sum(), all_of_them)
    for needs in itertools.product((False, True), repeat=4):
        if not any(needs):
            continue
        tensors = [t.detach().requires_grad_(need) for t, need in zip(all_of_them, needs)]
        wanted = [t for t in tensors if t.requires_grad]
        got = iter(torch.autograd.grad(fn(*tensors).square().sum(), wanted))
        for full, need in zip(whole, needs):
            if need:
                torch.testing.assert_close(next(got), full)


def test_gradients_have_the_layout_and_type_of_what_they_belong_to(device):
    for dtype in (torch.float32, torch.bfloat16):
        x = channels_last(torch.randn(2, 8, 5, 6, device=device.torch_device, dtype=dtype)).requires_grad_()
        w = torch.randn(8, 8, 3, 3, device=device.torch_device, dtype=dtype).requires_grad_()
        b = torch.randn(8, device=device.torch_device, dtype=dtype).requires_grad_()
        function(SHAPES["3x3"])(x, w, b, padding=1).square().sum().backward()
        assert x.grad.stride() == x.stride() and x.grad.dtype is w.grad.dtype is b.grad.dtype is dtype


def test_a_graph_that_is_kept_gives_the_same_again(device):
    fn = call(SMALL["3x3"], "gelu")
    tensors = [t.detach().to(device.torch_device).requires_grad_() for t in tensors_of(SMALL["3x3"])]
    y = fn(*tensors)
    first = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(y.sum(), tensors)))


def test_changing_a_saved_tensor_is_noticed():
    x, w, *_ = tensors_of(SMALL["3x3"])
    y = call(SMALL["3x3"])(x, w)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivative_stops_at_inputs_that_depend_on_each_other(device):
    """The weight is computed from x: the derivative by x must not go through the weight twice."""
    start = torch.randn(1, 2, 4, 4)

    def penalty(dtype, fn, where):
        x = start.detach().to(where, dtype).requires_grad_()
        weight = x.sum((0, 2, 3)).tanh().reshape(1, 2, 1, 1).expand(3, 2, 3, 3)
        (g,) = torch.autograd.grad(fn(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0].cpu()

    shape = Shape((1, 2, 4, 4), 3, (3, 3), padding=1)
    exact = penalty(torch.float64, lambda x, w: torchs(shape, x, w), "cpu")
    ours = penalty(torch.float32, call(shape), device.torch_device)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
