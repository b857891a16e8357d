"""dlops.nn's convolutions beside torch.nn's: whatever one can do with the one, one can do with the other."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops import nn
from tests.conv.calls import channels_last


@pytest.fixture(params=["auto", "dlops"], autouse=True)
def _ours(request):
    """`auto`, as in a user's model, and our kernels where torch is the faster one."""
    torch._dynamo.reset()
    with dlops.backend(request.param):
        yield request.param


MODULES = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
KWARGS = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "dilation": 3, "padding_mode": "circular"},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": 4, "padding_mode": "replicate"},
    {"dtype": torch.bfloat16},
    {"stride": 3, "output_padding": 2},
]


def fits(name, kwargs):
    transposed = "Transpose" in name
    if "output_padding" in kwargs:
        return transposed
    return not transposed or ("padding_mode" not in kwargs and not isinstance(kwargs.get("padding"), str))


def input_for(name, dtype=torch.float32, n=2):
    return torch.randn(n, 4, *[5, 6, 7][: int(name[-2])]).to(dtype)


CASES = [pytest.param(name, kwargs, id=f"{name}-{kwargs}") for name in MODULES for kwargs in KWARGS if fits(name, kwargs)]


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_drops_in(name, kwargs):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(4, 6, 3, **kwargs)
    torch.manual_seed(0)
    ours = getattr(nn, name)(4, 6, 3, **kwargs)
    assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours.parameters(), theirs.parameters()))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x = input_for(name, kwargs.get("dtype", torch.float32))
    tolerance = 1e-4 if x.dtype == torch.float32 else 0.15
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(ours)
        for value in (x, x[0], x[:0], channels_last(x)):
            torch.testing.assert_close(module(value), theirs(value), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODULES)
def test_trains(name):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(4, 6, 3)
    ours = getattr(nn, name)(4, 6, 3)
    ours.load_state_dict(theirs.state_dict())
    inputs = [input_for(name).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    optimisers = [torch.optim.SGD(module.parameters(), 0.01) for module in (ours, theirs)]
    for _ in range(3):
        for module, x, optimiser in zip((ours, theirs), inputs, optimisers):
            optimiser.zero_grad()
            x.grad = None
            module(x).square().mean().backward()
            optimiser.step()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose1d"])
def test_compiles(name):
    module, x = getattr(nn, name)(4, 6, 3, activation="silu"), input_for(name)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("name", MODULES)
def test_activation_and_residual(name, activation):
    ours = getattr(nn, name)(4, 6, 3, activation=activation)
    assert repr(ours).endswith(f"activation={activation!r})")
    theirs = getattr(torch.nn, name)(4, 6, 3)
    theirs.load_state_dict(ours.state_dict())
    x = input_for(name)
    act = getattr(torch if activation in ("tanh", "sigmoid") else F, activation)
    y = theirs(x)
    residual = torch.randn_like(y)
    torch.testing.assert_close(ours(x), act(y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x, residual=residual), act(y + residual), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x[0], residual=residual[0]), act(y + residual)[0], rtol=1e-4, atol=1e-5)


def test_conv_bias_act():
    fused = nn.ConvBiasAct(3, 8, 3, padding=1)
    assert isinstance(fused, torch.nn.Conv2d) and list(fused.state_dict()) == ["weight", "bias"]
    x, residual = torch.randn(2, 3, 6, 5), torch.randn(2, 8, 6, 5)
    y = F.conv2d(x, fused.weight, fused.bias, padding=1)
    torch.testing.assert_close(fused(x), F.relu(y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused(x, residual), F.relu(y + residual), rtol=1e-4, atol=1e-5)
    gelu = nn.ConvBiasAct(3, 8, 3, 2, 1, 1, 1, False, "reflect", activation="gelu")
    assert gelu.bias is None and "activation='gelu'" in repr(gelu)
    want = F.gelu(F.conv2d(F.pad(x, [1] * 4, "reflect"), gelu.weight, stride=2))
    torch.testing.assert_close(gelu(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_lazy(name):
    lazy = getattr(nn, f"Lazy{name}")(6, 3, activation="relu")
    assert isinstance(lazy, getattr(torch.nn, f"Lazy{name}")) and lazy.has_uninitialized_params()
    x = input_for(name)
    residual = torch.randn_like(getattr(torch.nn, name)(4, 6, 3)(x))
    y = lazy(x, residual=residual)  # already the first forward is ours
    assert type(lazy) is getattr(nn, name) and lazy.weight.shape[:2] in ((6, 4), (4, 6)) and lazy.activation == "relu"
    torch.testing.assert_close(lazy(x, residual=residual), y)
    assert (y >= 0).all()
    torch.manual_seed(0)
    ours = getattr(nn, f"Lazy{name}")(6, 3)
    ours(x)
    torch.manual_seed(0)
    theirs = getattr(torch.nn, f"Lazy{name}")(6, 3)
    theirs(x)
    assert repr(ours) == repr(theirs) and all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_lazy_loads_a_state():
    full = nn.Conv2d(4, 6, 3)
    lazy = nn.LazyConv2d(6, 3)
    lazy.load_state_dict(full.state_dict())
    x = input_for("Conv2d")
    torch.testing.assert_close(lazy(x), full(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_size(dims):
    name = f"ConvTranspose{dims}d"
    ours, theirs = (getattr(package, name)(4, 6, 3, stride=2, padding=1) for package in (nn, torch.nn))
    ours.load_state_dict(theirs.state_dict())
    x = input_for(name)
    for extra in (0, 1):
        size = [2 * s - 1 + extra for s in x.shape[2:]]
        y = ours(x, output_size=size)
        assert list(y.shape[2:]) == size
        torch.testing.assert_close(y, theirs(x, output_size=size), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x, [2, 6, *size]), y)
    with pytest.raises(ValueError, match="output size"):
        ours(x, output_size=[50] * dims)


@pytest.mark.parametrize("name", MODULES)
def test_float64(name):
    ours, theirs = (getattr(package, name)(4, 6, 3, dtype=torch.float64) for package in (nn, torch.nn))
    ours.load_state_dict(theirs.state_dict())
    x = input_for(name, torch.float64)
    with dlops.backend("auto"):
        assert torch.equal(ours(x), theirs(x))


def test_bad_arguments():
    message = (
        'Conv2d: activation must be None, "relu", "silu", "gelu", "tanh" or "sigmoid": got \'swish\''
    )
    with pytest.raises(ValueError, match=message):
        nn.Conv2d(3, 4, 3, activation="swish")
    with pytest.raises(ValueError, match="LazyConv1d: activation must be"):
        nn.LazyConv1d(4, 3, activation="swish")
    for name in MODULES:
        bad = [{"groups": 3}, {"groups": 0}, {"padding_mode": "mirror"}]
        for kwargs in bad if "Transpose" in name else [*bad, {"padding": "half"}]:
            with pytest.raises(ValueError) as theirs:
                getattr(torch.nn, name)(4, 6, 3, **kwargs)
            with pytest.raises(ValueError) as ours:
                getattr(nn, name)(4, 6, 3, **kwargs)
            assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="same"):
        nn.Conv2d(3, 4, 3, stride=2, padding="same")


def test_moves():
    module = nn.Conv2d(4, 6, 3).to(torch.bfloat16)
    assert module(input_for("Conv2d", torch.bfloat16)).dtype is torch.bfloat16
    last = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    assert last(channels_last(input_for("Conv2d"))).is_contiguous(memory_format=torch.channels_last)
    with dlops.backend("auto"):
        meta = nn.Conv2d(4, 6, 3, device="meta")
        assert meta(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 6, 3, 4)


@pytest.mark.parametrize("name", [*MODULES, *(f"Lazy{name}" for name in MODULES), "Linear", "LazyLinear"])
def test_signature(name):
    """The constructor is torch's, with one more keyword."""
    ours, theirs = (inspect.signature(getattr(package, name)).parameters for package in (nn, torch.nn))
    assert [*ours] == [*theirs, "activation"] and ours["activation"].kind is inspect.Parameter.KEYWORD_ONLY

    class Own(getattr(nn, name)):
        def __init__(self, width):
            super().__init__(width)

    assert [*inspect.signature(Own).parameters] == ["width"]


def test_skip_init():
    for kind in (nn.Conv2d, nn.ConvBiasAct, nn.ConvTranspose2d):
        assert type(torch.nn.utils.skip_init(kind, 4, 6, 3)) is kind


def test_stock_tools_work_on_ours():
    """Reparametrisation, fusion with BatchNorm, functional calls."""
    x = input_for("Conv2d")
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    torch.testing.assert_close(normed(x), F.conv2d(x, normed.weight, normed.bias), rtol=1e-4, atol=1e-5)
    conv, norm = nn.Conv2d(4, 6, 3).eval(), torch.nn.BatchNorm2d(6).eval()
    norm.running_mean.normal_()
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
    assert type(fused) is nn.Conv2d
    torch.testing.assert_close(fused(x), norm(conv(x)), rtol=1e-4, atol=1e-5)
    other = {"weight": torch.randn(6, 4, 3, 3), "bias": torch.randn(6)}
    y = torch.func.functional_call(conv, other, (x,))
    torch.testing.assert_close(y, F.conv2d(x, other["weight"], other["bias"]), rtol=1e-4, atol=1e-5)


class Net(torch.nn.Module):
    def __init__(self, package):
        super().__init__()
        self.stem = package.Conv2d(3, 16, 3, padding=1, padding_mode="reflect")
        self.wide = package.Conv2d(16, 40, 3, padding=1, bias=False)
        self.deep = package.Conv2d(40, 40, 5, padding="same", groups=40)
        self.point = package.Conv2d(40, 8, 1)
        self.up = package.ConvTranspose2d(8, 6, 4, 2, 1)
        self.signal = package.Conv1d(6, 6, 3, padding=1)
        self.volume = package.Conv3d(1, 2, 3, padding=1)
        self.head = package.Linear(2, 3)

    def forward(self, x):
        x = F.relu(self.wide(F.silu(self.stem(x))))
        x = self.up(self.point(self.deep(x)))
        x = self.signal(x.flatten(2)).unflatten(2, x.shape[2:])
        return self.head(self.volume(x[:, None]).movedim(1, -1))


def test_a_model_of_ours_is_a_model_of_torchs():
    torch.manual_seed(0)
    theirs = Net(torch.nn)
    torch.manual_seed(0)
    ours = Net(nn)
    x = torch.randn(2, 3, 8, 9)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-4, atol=1e-5)
    swapped = copy.deepcopy(theirs)
    report = dlops.accelerate(swapped)
    assert len(report.swapped) == 8 and not report.kept
    assert [type(module) for module in swapped.children()] == [type(module) for module in ours.children()]
    for module in (swapped, copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-5)
    swapped(x).square().mean().backward()
    want.square().mean().backward()
    for a, b in zip(swapped.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    dlops.restore(swapped)
    assert [type(module) for module in swapped.children()] == [type(module) for module in theirs.children()]
    assert torch.equal(swapped(x), want)


def test_a_model_compiles_into_one_graph():
    torch.manual_seed(0)
    model = Net(nn)
    x = torch.randn(2, 3, 8, 9)
    want = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().mean(), list(model.parameters()))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
