"""Every rung against float64, forward and backward, on every device; layouts, special values, determinism."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops.functional import conv1d, conv2d, conv3d, conv_transpose2d
from dlops.reference import conv as reference
from tests.conv.calls import (
    DTYPES,
    SHAPES,
    Shape,
    call,
    channels_last,
    check_rule,
    function,
    must_take,
    random_shape,
    torchs,
    variants,
)

SIMT_SIZE = 2500  # elements of the input: larger cases are left to the CPU levels and the GPU


def check_variants(device, made, which=None) -> None:
    """All rungs of the device: each computes the call or, where it may, refuses it in words."""
    failures = []
    for variant in which or (None, *variants(device)):
        try:
            made.check(device.torch_device, variant)
        except ValueError as error:
            if must_take(variant, made.shape, made.dtype, made.last) or variant not in str(error):
                failures.append(f"{variant}: {error}")
        except (AssertionError, RuntimeError) as error:
            failures.append(f"{variant}: {type(error).__name__}: {error}")
    assert not failures, "\n".join([str(made), *failures])


def skip_large(device, shape: Shape) -> None:
    if device.isa == "avx512bf16":
        pytest.skip("no convolution of its own: avx512's")
    if device.simt and math.prod(shape.size) > SIMT_SIZE:
        pytest.skip("large for the simt runner")


def in_short(name: str, dtype: torch.dtype, last: bool) -> bool:
    """Whether a combination is in the short grid: float32 in both layouts, one half type in one of them."""
    turn = list(SHAPES).index(name) % 4
    return dtype is torch.float32 or (dtype is DTYPES[1 + turn % 2] and last == (turn < 2))


GRID = [
    pytest.param(name, dtype, last, id=f"{name}-{dtype}-{'last' if last else 'first'}", marks=marks)
    for name, dtype, last in itertools.product(SHAPES, DTYPES, (False, True))
    for marks in [() if in_short(name, dtype, last) else pytest.mark.full]
]


@pytest.mark.parametrize(("name", "dtype", "last"), GRID)
def test_shapes(device, name, dtype, last):
    skip_large(device, SHAPES[name])
    if device.simt and dtype is torch.float32 and last == (len(name) % 2 == 0):
        pytest.skip("one layout for the simt runner")
    check_variants(device, call(SHAPES[name], dtype, last))


@pytest.mark.parametrize("seeds", [range(k, k + 8) for k in range(0, 32, 8)], ids=str)
def test_random_shapes(device, seeds):
    for seed in seeds:
        shape = random_shape(seed)
        if not device.simt or math.prod(shape.size) <= SIMT_SIZE:
            check_variants(device, call(shape, DTYPES[seed % 3], last=seed % 2 == 0))


@pytest.mark.full
@pytest.mark.parametrize("seeds", [range(k, k + 10) for k in range(100, 500, 10)], ids=str)
def test_more_random_shapes(device, seeds):
    for seed in seeds:
        shape = random_shape(seed)
        if not device.simt or math.prod(shape.size) <= SIMT_SIZE:
            check_variants(device, call(shape, DTYPES[seed // 2 % 3], last=seed % 2 == 0))


CHANNELS = (1, 3, 8, 15, 16, 17, 31, 32, 33, 47, 64, 65)


@pytest.mark.full
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("filters", CHANNELS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channel_counts(device, channels, filters, kernel):
    shape = Shape((1, channels, 5, 6), filters, (kernel, kernel), padding=kernel // 2)
    skip_large(device, shape)
    for last in (False, True):
        check_variants(device, call(shape, torch.float32, last))


@pytest.mark.full
@pytest.mark.parametrize("width", [*range(1, 20), 31, 32, 33, 63, 64, 65])
def test_widths(device, width):
    for height in (1, 4, 5, 14):
        for shape in (
            Shape((1, 3, height, width), 4, (3, 3), padding=1),
            Shape((1, 3, height, width), 3, (3, 3), padding=1, groups=3),
        ):
            if not device.simt or math.prod(shape.size) <= SIMT_SIZE:
                check_variants(device, call(shape, torch.float32, False))
                check_variants(device, call(shape, torch.float32, True))


# The rule's tiny term covers what small sums may err; here are sums long enough for the order of addition to show.
LONG = {
    "3x3": Shape((1, 300, 6, 7), 33, (3, 3), padding=1),
    "1x1": Shape((1, 1100, 5, 5), 19, (1, 1)),
    "5x5": Shape((1, 64, 8, 8), 16, (5, 5), padding=2),
    "weights of a large image": Shape((3, 4, 65, 70), 6, (3, 3), padding=1),
    "depthwise weights of a large image": Shape((2, 8, 65, 70), 8, (5, 5), padding=2, groups=8),
    "1-D weights of a long signal": Shape((2, 6, 5000), 6, (4,), padding=3, groups=6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LONG)
def test_long_sums(device, name, dtype):
    if device.simt:
        pytest.skip("large for the simt runner")
    for last in (False, True):
        check_variants(device, call(LONG[name], dtype, last))


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("name", ["3x3", "1x1", "depthwise", "grouped by 4", "transposed 4x4", "1-D", "reflect"])
def test_epilogues(device, name, activation, residual):
    if device.simt and (name not in ("3x3", "1x1", "depthwise") or activation in ("silu", "sigmoid")):
        pytest.skip("part of the grid for the simt runner")
    for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
        for bias in (True, False):
            if bias or not device.simt:
                check_variants(device, call(SHAPES[name], dtype, last, bias=bias, residual=residual, activation=activation))


# ---- layouts


def layouts_of(x):
    """The same values in other layouts."""
    n, c, *space = x.shape
    wide = torch.full((n, c + 2, *(s + 3 for s in space)), math.nan, device=x.device)
    sliced = wide[(slice(None), slice(1, -1), *(slice(1, s + 1) for s in space))]
    sliced.copy_(x)
    stepped = torch.full((2 * n, *x.shape[1:]), math.nan, device=x.device)[::2]
    stepped.copy_(x)
    return {
        "last": channels_last(x),
        "sliced": sliced,
        "stepped": stepped,
        "transposed": x.transpose(-1, -2).contiguous().transpose(-1, -2) if len(space) > 1 else x,
        "last, sliced": channels_last(wide)[(slice(None), slice(1, -1), *(slice(1, s + 1) for s in space))],
    }


@pytest.mark.parametrize("name", ["3x3", "1x1", "depthwise", "1-D", "1-D depthwise k4", "3-D", "transposed 4x4", "grouped by 4"])
def test_layouts(device, name):
    """Values do not depend on the layout by more than rounding, gradients neither, and no byte between elements is read."""
    made = call(SHAPES[name])
    fn, shape = made.torchs, made.shape
    x = made.tensors["x"].to(device.torch_device)
    weights = {name: t.to(device.torch_device) for name, t in made.tensors.items() if name != "x"}
    for layout, value in layouts_of(x).items():
        assert torch.equal(value, x), layout
        for weight in (weights["w"], channels_last(weights["w"]), weights["w"].transpose(0, 1).contiguous().transpose(0, 1)):
            leaf = value.detach().requires_grad_()
            y = function(shape)(leaf, weight, weights["bias"], **shape.options)
            (dx,) = torch.autograd.grad(y, leaf, made.dy.to(x.device))
            torch.testing.assert_close(y.detach().cpu(), fn()["y"], rtol=1e-4, atol=1e-4, msg=lambda m, k=layout: f"{k}: {m}")
            torch.testing.assert_close(dx.cpu(), fn()["dx"], rtol=1e-4, atol=1e-4, msg=lambda m, k=layout: f"{k}: {m}")


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_result_has_the_layout_of_the_input(device, dims):
    fn = (conv1d, conv2d, conv3d)[dims - 1]
    x, w = torch.randn(2, 5, *[4] * dims, device=device.torch_device), torch.randn(6, 5, *[3] * dims, device=device.torch_device)
    for value in (x, channels_last(x)):
        y = fn(value, w, padding=1)
        assert y.stride() == (channels_last(y) if value is not x else y.contiguous()).stride()


def test_expanded_inputs(device):
    """Stride 0, in the input, the weight, the gradient and the residual."""
    made = torch.randn(1, 1, 5, 6, device=device.torch_device)
    x = made.expand(2, 4, 5, 6).requires_grad_()
    w = torch.randn(3, 1, 3, 3, device=device.torch_device).expand(3, 4, 3, 3).requires_grad_()
    r = torch.randn(1, 3, 1, 1, device=device.torch_device).expand(2, 3, 5, 6)
    out = {}
    for name, fn in (("ours", lambda: conv2d(x, w, padding=1, residual=r)), ("torch", lambda: F.conv2d(x, w, padding=1) + r)):
        y = fn()
        out[name] = (y, *torch.autograd.grad(y.sum(), (x, w)))  # the gradient of a sum is expanded too
    for ours, theirs in zip(out["ours"], out["torch"]):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_unbatched(device):
    x, w, b = (torch.randn(s, device=device.torch_device) for s in ((3, 6, 5), (4, 3, 3, 3), (4,)))
    for ours, theirs, options in (
        (conv2d, F.conv2d, {"padding": 1}),
        (conv1d, F.conv1d, {}),
        (conv3d, F.conv3d, {}),
        (conv_transpose2d, F.conv_transpose2d, {"stride": 2}),
    ):
        dims = {conv1d: 1, conv3d: 3}.get(ours, 2)
        value, weight = {1: (x[0], w[:, :1, 0].repeat(1, 6, 1)), 2: (x, w), 3: (x[None], w[:, :1, None])}[dims]
        if ours is conv_transpose2d:
            weight = w.transpose(0, 1)
        y, want = ours(value, weight, b, **options), theirs(value, weight, b, **options)
        assert y.shape == want.shape
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(0, 3, 5, 5), (2, 0, 5, 5)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_nothing_in_it(device, size, activation):
    """No sample; no channel, which our kernels leave to torch."""
    if size[1] == 0:
        dlops.backend("auto")
    for transposed in (False, True):
        x = torch.randn(size, device=device.torch_device, requires_grad=True)
        weight_size = (size[1], 4, 3, 3) if transposed else (4, size[1], 3, 3)
        w = torch.randn(weight_size, device=device.torch_device, requires_grad=True)
        b = torch.randn(4, device=device.torch_device, requires_grad=True)
        theirs = F.conv_transpose2d if transposed else F.conv2d
        try:
            want = theirs(x, w, b, padding=1)
        except RuntimeError as error:
            with pytest.raises(type(error)):
                (conv_transpose2d if transposed else conv2d)(x, w, b, padding=1, activation=activation)
            continue
        want = want if activation is None else F.relu(want)
        y = (conv_transpose2d if transposed else conv2d)(x, w, b, padding=1, activation=activation)
        torch.testing.assert_close(y, want)
        grads = torch.autograd.grad(y.sum(), (x, w, b), allow_unused=True)
        for ours, theirs in zip(grads, torch.autograd.grad(want.sum(), (x, w, b), allow_unused=True)):
            if ours is not None and theirs is not None:
                torch.testing.assert_close(ours, theirs)


# ---- special values


@pytest.mark.parametrize("name", ["1x1", "5x5", "depthwise", "grouped by 4", "3x3 strided", "1-D", "transposed 4x4", "reflect"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_spread_as_in_torch(device, name, value):
    """Only to the results whose window holds them; the same in every rung but Winograd."""
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(shape.size, generator=generator), torch.rand(shape.weight_size, generator=generator) + 0.5
    x[(0, 0, *(s // 2 for s in shape.size[2:]))] = value
    want = torchs(shape, x, w)
    for variant in variants(device):
        if "winograd" in variant or not must_take(variant, shape, torch.float32, False):
            continue
        for layout in (lambda t: t, channels_last):
            y = function(shape)(layout(x).to(device.torch_device), w.to(device.torch_device), **shape.options, variant=variant)
            torch.testing.assert_close(y.cpu(), want, rtol=1e-4, atol=1e-4, equal_nan=True, msg=lambda m, v=variant: f"{v}: {m}")


def test_special_values_in_winograd_reach_their_tile_only(device):
    x, w = torch.randn(1, 3, 20, 20, device=device.torch_device), torch.randn(4, 3, 3, 3, device=device.torch_device)
    clean = conv2d(x, w, padding=1, variant="winograd")
    x[0, 0, 9, 9] = math.inf
    y = conv2d(x, w, padding=1, variant="winograd")
    assert not y[:, :, 8:11, 8:11].isfinite().any()
    far = torch.ones(20, 20, dtype=torch.bool, device=device.torch_device)
    far[4:15, 4:15] = False
    assert torch.equal(y[:, :, far], clean[:, :, far])


def test_relu_keeps_nan(device):
    x = torch.full((1, 2, 4, 4), math.nan, device=device.torch_device)
    w = torch.randn(3, 2, 3, 3, device=device.torch_device)
    for activation in ("relu", "silu", "gelu", "tanh", "sigmoid"):
        assert conv2d(x, w, padding=1, activation=activation).isnan().all(), activation


def test_infinite_sums_through_activations(device):
    x = torch.tensor([math.inf, -math.inf, 1e30, -1e30, 200.0, -200.0], device=device.torch_device).reshape(1, 1, 6)
    w = torch.ones(1, 1, 1, device=device.torch_device)
    for activation in ("relu", "gelu", "tanh", "sigmoid", "silu"):
        y, want = conv1d(x, w, activation=activation), reference.ACTIVATIONS[activation](x)
        if activation in ("gelu", "silu"):  # 0 times infinity: NaN as in torch, or the limit
            y, want = y[..., 2:], want[..., 2:]
            assert not (conv1d(x, w, activation=activation)[..., 1] < 0).any(), activation
        torch.testing.assert_close(y, want, msg=lambda m, name=activation: f"{name}: {m}")


# ---- determinism

SAME_BITS = ["3x3 many channels", "1x1", "5x5", "depthwise 7x7", "grouped by 8", "1-D depthwise k31", "3-D", "transposed 4x4"]


@pytest.mark.parametrize("name", SAME_BITS)
def test_thread_counts_change_no_bit(device, name):
    made = call(SHAPES[name])
    for variant in (None, *variants(device)):
        if not must_take(variant, made.shape, made.dtype, False):
            continue
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(made.ours(device.torch_device, variant))
        for other in results[1:]:
            assert all(torch.equal(other[key], value) for key, value in results[0].items()), variant


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", SAME_BITS)
def test_a_sample_does_not_depend_on_its_batch(device, name, last):
    shape = SHAPES[name]
    n = 3 if device.simt else 5
    layout = channels_last if last else lambda t: t
    x = torch.randn(n, *shape.size[1:], device=device.torch_device)
    w = torch.randn(shape.weight_size, device=device.torch_device)
    for variant in (None, *variants(device)):
        if not must_take(variant, shape, torch.float32, last):
            continue

        def both(part, variant=variant):
            leaf = layout(part.contiguous()).requires_grad_()
            y = function(shape)(leaf, w, **shape.options, variant=variant)
            return y.detach(), torch.autograd.grad((y * y).sum(), leaf)[0]

        y, dx = both(x)
        for k in (0, n - 1):
            one, d_one = both(x[k : k + 1])
            assert torch.equal(one[0], y[k]) and torch.equal(d_one[0], dx[k]), variant


def test_same_bits_on_every_run(device):
    made = call(SHAPES["3x3 many channels"])
    first = made.ours(device.torch_device)
    for _ in range(3):
        assert all(torch.equal(value, first[key]) for key, value in made.ours(device.torch_device).items())


# ---- out=


def test_out(device):
    x, w, b = (torch.randn(s, device=device.torch_device) for s in ((2, 3, 6, 5), (4, 3, 3, 3), (4,)))
    want = conv2d(x, w, b, padding=1)
    out = torch.full_like(want, math.nan)
    assert conv2d(x, w, b, padding=1, out=out) is out and torch.equal(out, want)
    last = channels_last(torch.full_like(want, math.nan))
    assert conv2d(channels_last(x), w, b, padding=1, out=last) is last
    torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-5)
    y = conv_transpose2d(x, w.transpose(0, 1).contiguous(), b, stride=2)
    assert torch.equal(conv_transpose2d(x, w.transpose(0, 1).contiguous(), b, stride=2, out=torch.empty_like(y)), y)


# ---- large strides


def test_offsets_beyond_32_bits():
    """Expanded and sliced views reach such strides without memory that is touched."""
    storage = torch.empty(2**31 + 4096, dtype=torch.bfloat16)  # pages that nobody writes cost nothing
    x = storage.as_strided((2, 3, 8, 8), (2**31, 64, 8, 1))
    x.copy_(torch.randn(2, 3, 8, 8))
    w = torch.randn(4, 3, 3, 3).bfloat16()
    check_rule(conv2d(x, w), F.conv2d(x.contiguous(), w), F.conv2d(x.double(), w.double()), "far apart")


# ---- which algorithm


def test_explain_says_which_algorithm():
    x, w = torch.randn(2, 64, 20, 20), torch.randn(64, 64, 3, 3)
    (plan,) = dlops.explain(conv2d, x, w, padding=1)
    assert (plan.uses, plan.variant, plan.device) == ("dlops", "winograd", "cpu") and "csrc/conv/" in plan.source
    assert plan.flops == 2 * 2 * 20 * 20 * 64 * 64 * 9 and plan.bytes > 0
    with dlops.winograd("f2"):
        assert dlops.explain(conv2d, x, w, padding=1)[0].variant == "winograd_f2"
    with dlops.winograd("off"):
        assert "winograd" not in dlops.explain(conv2d, x, w, padding=1)[0].variant
    depthwise = torch.randn(64, 1, 7, 7)
    assert dlops.explain(conv2d, x, depthwise, groups=64)[0].variant == "depthwise"
    with dlops.backend("torch"):
        assert dlops.explain(conv2d, x, w)[0].uses == "torch"


@pytest.mark.parametrize("channels", [32, 33, 96])
def test_the_algorithm_does_not_depend_on_the_batch(channels):
    w = torch.randn(channels, channels, 3, 3)
    chosen = {dlops.explain(conv2d, torch.randn(n, channels, 9, 9), w, padding=1)[0].variant for n in (1, 2, 7, 64)}
    assert len(chosen) == 1
