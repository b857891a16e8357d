"""dlops.functional.linear and dlops.nn.Linear."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops import nn
from dlops.functional import linear
from dlops.reference import conv as reference
from tests.conv.calls import DTYPES, check_rule, variants

ACTIVATIONS = [None, "relu", "silu", "gelu", "tanh", "sigmoid"]
SIZES = [(7, 5, 3), (1, 1, 1), (33, 17, 65), (64, 64, 64), (5, 300, 20), (2, 31, 33)]  # rows, inputs, outputs


def torchs(x, w, bias=None, residual=None, activation=None):
    y = F.linear(x, w, bias)
    y = y if residual is None else y + residual
    return y if activation is None else getattr(torch if activation in ("tanh", "sigmoid") else F, activation)(y)


def ours(x, w, bias=None, residual=None, activation=None, variant=None):
    return linear(x, w, bias, activation=activation, residual=residual, variant=variant)


def specification(x, w, bias=None, residual=None, activation=None):
    return reference.linear(x, w, bias, activation, residual)


def run(fn, tensors, dy, cast):
    leaves = {name: cast(t).detach().requires_grad_() for name, t in tensors.items()}
    y = fn(**leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), cast(dy))
    return [t.detach().cpu() for t in (y, *grads)]


def compare(device, tensors, activation=None, variant=None):
    with dlops.backend("torch"):
        y = torchs(*tensors.values())
        dy = torch.randn(y.shape).to(y.dtype)
        yours = run(lambda **t: torchs(**t, activation=activation), tensors, dy, lambda t: t)
        exact = run(lambda **t: specification(**t, activation=activation), tensors, dy, torch.Tensor.double)
    mine = run(
        lambda **t: ours(**t, activation=activation, variant=variant), tensors, dy, lambda t: t.to(device.torch_device)
    )
    for name, *values in zip(("y", *tensors), mine, yours, exact):
        check_rule(*values, f"{name} {[tuple(t.shape) for t in tensors.values()]} {activation} {variant} {y.dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(device, size, dtype):
    if device.simt and math.prod(size) > 5000:
        pytest.skip("large for the simt runner")
    rows, inputs, outputs = size
    tensors = {"x": torch.randn(rows, inputs), "w": torch.randn(outputs, inputs) / inputs**0.5, "bias": torch.randn(outputs)}
    compare(device, {name: t.to(dtype) for name, t in tensors.items()})


def test_rungs(device):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = {"x": torch.randn(9, 21), "w": torch.randn(18, 21) / 4, "bias": torch.randn(18)}
        tensors = {name: t.to(dtype) for name, t in tensors.items()}
        taken = 0
        for variant in variants(device):
            try:
                compare(device, tensors, "gelu", variant)
                taken += 1
            except ValueError as error:
                assert variant not in ("naive", "gemm", "shared") and variant in str(error)
        assert taken > 1


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues(device, activation, residual):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = {"x": torch.randn(6, 11), "w": torch.randn(9, 11) / 3, "bias": torch.randn(9)}
        if residual:
            tensors["residual"] = torch.randn(6, 9)
        compare(device, {name: t.to(dtype) for name, t in tensors.items()}, activation)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5), (2, 0, 3, 5), (1, 2, 3, 4, 5)])
def test_numbers_of_dimensions(device, shape):
    x, w, b = (torch.randn(s, device=device.torch_device) for s in (shape, (6, 5), (6,)))
    for bias in (None, b):
        for activation in (None, "relu"):
            y, want = linear(x, w, bias, activation=activation), torchs(x, w, bias, None, activation)
            assert y.shape == want.shape
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
    residual = torch.randn_like(want)
    torch.testing.assert_close(linear(x, w, b, residual=residual), F.linear(x, w, b) + residual, rtol=1e-4, atol=1e-5)


def test_nothing_in_it(device):
    for inputs, outputs in ((0, 4), (4, 0), (0, 0)):
        x, w = torch.randn(3, inputs, device=device.torch_device), torch.randn(outputs, inputs, device=device.torch_device)
        b = torch.randn(outputs, device=device.torch_device)
        with dlops.backend("auto"):
            assert torch.equal(linear(x, w, b), F.linear(x, w, b))
            assert torch.equal(linear(x, w, b, activation="relu"), F.relu(F.linear(x, w, b)))


def test_layouts(device):
    x, w = torch.randn(6, 10, device=device.torch_device), torch.randn(7, 10, device=device.torch_device)
    want = F.linear(x, w)
    wide = torch.full((12, 20), math.nan, device=device.torch_device)
    wide[::2, ::2] = x
    for value in (x.t().contiguous().t(), wide[::2, ::2], x.reshape(2, 3, 10).transpose(0, 1).transpose(0, 1)):
        for weight in (w, w.t().contiguous().t()):
            torch.testing.assert_close(linear(value, weight).reshape(6, 7), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(linear(x[:1].expand(4, 10), w), want[:1].expand(4, 7), rtol=1e-4, atol=1e-5)


def test_determinism(device):
    """Neither thread count nor batch changes a bit."""
    x, w, b = torch.randn(37, 50, device=device.torch_device), torch.randn(40, 50, device=device.torch_device), torch.randn(40)
    b = b.to(x.device)
    want = linear(x, w, b, activation="gelu")
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(linear(x, w, b, activation="gelu"), want)
    torch.set_num_threads(2)
    assert all(torch.equal(linear(x[k : k + 1], w, b, activation="gelu")[0], want[k]) for k in (0, 5, 36))


@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "dlops"])
def test_drops_in(kwargs, backend):
    torch.manual_seed(0)
    theirs = torch.nn.Linear(5, 4, **kwargs)
    torch.manual_seed(0)
    module = nn.Linear(5, 4, **kwargs)
    assert isinstance(module, torch.nn.Linear) and repr(module) == repr(theirs)
    assert list(module.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) and a.dtype is b.dtype for a, b in zip(module.parameters(), theirs.parameters()))
    x = torch.randn(2, 3, 5).to(kwargs.get("dtype", torch.float32))
    tolerance = 1e-5 if x.dtype is torch.float32 else 4e-2
    with dlops.backend(backend):
        for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(other(x), theirs(x), rtol=tolerance, atol=tolerance)


def test_module_extras():
    module = nn.Linear(5, 4, activation="silu")
    assert "activation='silu'" in repr(module) and "activation" not in repr(nn.Linear(5, 4))
    x, residual = torch.randn(3, 5), torch.randn(3, 4)
    torch.testing.assert_close(module(x, residual), F.silu(F.linear(x, module.weight, module.bias) + residual))
    lazy = nn.LazyLinear(4, activation="relu")
    assert (lazy(x) >= 0).all() and type(lazy) is nn.Linear and lazy.weight.shape == (4, 5)
    with pytest.raises(ValueError, match="Linear: activation must be None"):
        nn.Linear(5, 4, activation="swish")


@pytest.mark.parametrize(
    ("fn", "error", "words"),
    [
        (lambda f: f(torch.randn(2, 3), torch.randn(4, 5)), RuntimeError, "3.*5|5.*3"),
        (lambda f: f(torch.randn(2, 3), torch.randn(4, 3), torch.randn(3)), RuntimeError, "4|bias"),
        (lambda f: f(torch.randn(2, 3), torch.randn(4, 3).double()), RuntimeError, "dtype|double|float64"),
        (lambda f: f(torch.randn(2, 3), torch.randn(4, 3, 1)), RuntimeError, "dimension|weight"),
        (lambda f: f(torch.randn(2, 3), None), TypeError, "weight"),
        (lambda f: f([1.0], torch.randn(4, 3)), TypeError, "input"),
    ],
    ids=["sizes", "bias", "dtype", "weight of 3 dimensions", "no weight", "no tensor"],
)
@pytest.mark.parametrize("backend", ["auto", "dlops"])
def test_bad_input(fn, error, words, backend):
    with pytest.raises(error):
        fn(F.linear)
    with dlops.backend(backend), pytest.raises(error, match=words):
        fn(linear)


def test_bad_extras():
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="linear: activation must be None.*'swish'"):
        linear(x, w, activation="swish")
    with pytest.raises(ValueError, match=r"linear: residual .*\[2, 3\].*\[2, 4\]"):
        linear(x, w, residual=x)
    with pytest.raises(TypeError, match="linear: residual must be a tensor"):
        linear(x, w, residual=3.0)
    with pytest.raises(ValueError, match="'warp'"):
        linear(x, w, variant="warp")


def test_second_derivative(device):
    for activation in (None, "silu"):
        results = []
        for dtype, where in ((torch.float32, device.torch_device), (torch.float64, "cpu")):
            torch.manual_seed(0)
            tensors = [torch.randn(s).to(where, dtype).requires_grad_() for s in ((4, 5), (3, 5), (3,))]
            first = torch.autograd.grad(
                linear(*tensors, activation=activation).pow(3).sum() if dtype is torch.float32
                else torchs(*tensors, activation=activation).pow(3).sum(), tensors, create_graph=True,
            )  # fmt: skip
            results.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
        for mine, exact in zip(*results):
            torch.testing.assert_close(mine.cpu().double(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


def test_gradcheck():
    with dlops.backend("auto"):
        tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 4), (5, 4), (5,), (2, 3, 5))]
        fn = lambda x, w, b, r: linear(x, w, b, activation="tanh", residual=r)  # noqa: E731
        assert torch.autograd.gradcheck(fn, tensors, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(fn, tensors)


def test_transforms():
    with dlops.backend("auto"):
        x, w, b = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
        fn = lambda x: linear(x, w, b, activation="gelu")  # noqa: E731
        torch.testing.assert_close(torch.vmap(fn)(x), F.gelu(F.linear(x, w, b)))
        _, tangent = torch.func.jvp(fn, (x,), (x,))
        torch.testing.assert_close(tangent, torch.func.jvp(lambda x: F.gelu(F.linear(x, w, b)), (x,), (x,))[1])
        per_sample = torch.vmap(torch.func.grad(lambda w, x: linear(x, w, b, activation="gelu").sum()), (None, 0))(w, x)
        assert per_sample.shape == (3, 5, 4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles(dynamic):
    w, b = torch.randn(6, 5, requires_grad=True), torch.randn(6, requires_grad=True)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (3, 4):
        x = torch.randn(n, 5)
        got, want = compiled(x, w, b, activation="relu"), linear(x, w, b, activation="relu")
        torch.testing.assert_close(got, want)
        for a, e in zip(torch.autograd.grad(got.sum(), (w, b)), torch.autograd.grad(want.sum(), (w, b))):
            torch.testing.assert_close(a, e)


def test_autocast():
    x, w, b = (torch.randn(s, requires_grad=True) for s in ((3, 5), (4, 5), (4,)))
    for backend in ("auto", "dlops"):
        with torch.autocast("cpu", torch.bfloat16), dlops.backend(backend):
            y, want = linear(x, w, b), F.linear(x, w, b)
            fused = linear(x, w, b, activation="relu")
        assert y.dtype is want.dtype is fused.dtype is torch.bfloat16
        torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)
        assert all(g.dtype is torch.float32 for g in torch.autograd.grad(y.float().sum(), (x, w, b)))


def test_explain():
    x, w = torch.randn(64, 256), torch.randn(512, 256)
    (plan,) = dlops.explain(linear, x, w, activation="gelu")
    assert plan.uses == "dlops" and plan.variant == "gemm" and plan.flops == 2 * 64 * 256 * 512
    with dlops.backend("auto"):
        (plan,) = dlops.explain(linear, x, w)
        assert plan.reason
