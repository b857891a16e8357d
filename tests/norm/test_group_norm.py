"""GroupNorm + scale and shift + SiLU: outputs and gradients against float64, layouts, edges, invariances."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from dlops import _C
from dlops.functional import group_norm
from dlops.reference import norm as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VARIANTS = ["naive", "fused"]
# (shape, groups): one channel per group, one group, planes that are no whole vector, channels that are no whole vector,
# planes beyond a piece of 4096, groups beyond a piece, no spatial dimension, three of them.
SHAPES = [
    ((2, 6, 5, 7), 3),
    ((1, 8, 4, 4), 8),
    ((3, 20, 3), 1),
    ((2, 40, 9, 3), 5),
    ((1, 2, 65, 65), 2),
    ((1, 33, 16, 17), 3),
    ((2, 24), 4),
    ((1, 16, 3, 2, 5), 4),
]
FULL_SHAPES = [((2, 320, 32, 32), 32), ((1, 64, 129, 131), 4), ((5, 1280, 8, 8), 32), ((1, 17, 1, 1009), 17), ((4, 96, 1), 6)]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Any rank: memory order N, spatial, C."""
    order = (0, *range(2, x.dim()), 1)
    back = (0, x.dim() - 1, *range(1, x.dim() - 1))
    return x.permute(order).contiguous().permute(back)


def make(shape, dtype, on, extras=True, mean=0.5):
    """x, weight, bias, scale, shift."""
    n, c = shape[:2]
    sizes = [shape, (c,), (c,), (n, c), (n, c)] if extras else [shape, (c,), (c,)]
    made = [torch.randn(size) for size in sizes]
    made[0] = made[0] * 2 + mean
    return [t.to(device=on, dtype=dtype) for t in made] + [None] * (5 - len(made))


def torchs(x, groups, weight, bias, scale, shift, silu):
    """What a user of torch would write."""
    y = F.group_norm(x, groups, weight, bias, 1e-5)
    shape = (*x.shape[:2], *(1,) * (x.dim() - 2))
    if scale is not None:
        y = y * (1 + scale.view(shape)) + shift.view(shape)
    return F.silu(y) if silu else y


def check(device, within_rule, shape, groups, dtype, variant, silu, extras, last, param_dtype=None, mean=0.5):
    inputs = make(shape, dtype, device.torch_device, extras, mean)
    if last:
        inputs[0] = channels_last(inputs[0])
    inputs[1:] = [None if t is None else t.to(param_dtype or dtype) for t in inputs[1:]]
    present = [t is not None for t in inputs]
    dy = torch.randn(shape, device=device.torch_device).to(dtype)

    def run(fn, cast=lambda t: t):
        tensors = [None if t is None else cast(t).detach().requires_grad_() for t in inputs]
        y = fn(*tensors)
        given = [t for t, p in zip(tensors, present) if p]
        return [y.detach(), *torch.autograd.grad(y, given, cast(dy).to(y.dtype))]

    def ours(x, w, b, s, t):
        return group_norm(x, groups, w, b, activation="silu" if silu else None, scale=s, shift=t, variant=variant)

    mine = run(ours)
    yours = run(lambda x, *p: torchs(x, groups, *[None if t is None else t.to(x.dtype) for t in p], silu))
    kwargs = {"activation": "silu" if silu else None}
    exact = run(lambda x, w, b, s, t: reference.group_norm(x, groups, w, b, scale=s, shift=t, **kwargs), torch.Tensor.double)
    assert mine[0].stride() == inputs[0].stride()
    for name, a, b, e in zip(["y", "dx", "dweight", "dbias", "dscale", "dshift"], mine, yours, exact):
        within_rule(a, b, e, f"{name} {shape} {groups}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("silu, extras", [(True, True), (False, False)])
@pytest.mark.parametrize("last", [False, True])
def test_against_float64(device, within_rule, dtype, variant, silu, extras, last):
    for shape, groups in SHAPES:
        check(device, within_rule, shape, groups, dtype, variant, silu, extras, last)


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_full_grid(device, within_rule, dtype, variant):
    for (shape, groups), silu, extras, last in itertools.product(SHAPES + FULL_SHAPES, *[(False, True)] * 3):
        check(device, within_rule, shape, groups, dtype, variant, silu, extras, last)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_parameters(device, within_rule, dtype, variant):
    for last in (False, True):
        check(device, within_rule, (2, 40, 5, 5), 4, dtype, variant, True, True, last, param_dtype=torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("last", [False, True])
def test_large_mean(device, last, variant):
    """mean 1e4, deviation 1: the float32 mean alone is off by up to 5e-4 of a deviation. Ours keeps what it lost."""
    x = (torch.randn(2, 32, 33, 31, dtype=torch.float64) + 1e4).float()  # what float32 can say of it
    x = channels_last(x) if last else x
    exact = reference.group_norm(x.double(), 4, activation="silu")
    y = group_norm(x.to(device.torch_device), 4, activation="silu", variant=variant).cpu()
    if device.isa:
        assert (y.double() - exact).abs().max() < 5e-6
    theirs = F.silu(F.group_norm(x, 4))
    assert (y.double() - exact).abs().max() <= 2 * (theirs.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("last", [False, True])
def test_thread_count_changes_no_bit(device, last):
    if device.isa is None:
        pytest.skip("threads are a CPU matter")
    for shape, groups in [((1, 20, 65, 70), 2), ((5, 32, 9, 9), 8)]:  # fewer and more groups than threads
        x, w, b, s, t = make(shape, torch.float32, "cpu")
        x = (channels_last(x) if last else x).requires_grad_()
        dy = torch.randn(shape)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = group_norm(x, groups, w.requires_grad_(), b, activation="silu", scale=s.requires_grad_(), shift=t)
            found.append((y.detach(), *torch.autograd.grad(y, (x, w, s), dy)))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("last", [False, True])
def test_batch_size_changes_no_bit(device, last):
    x, w, b, s, t = make((6, 20, 33, 31), torch.float32, device.torch_device)
    x = channels_last(x) if last else x
    whole = group_norm(x, 5, w, b, activation="silu", scale=s, shift=t)
    for i in (0, 5):
        one = group_norm(x[i : i + 1], 5, w, b, activation="silu", scale=s[i : i + 1], shift=t[i : i + 1])
        assert torch.equal(one[0], whole[i])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("last", [False, True])
def test_reads_nothing_outside(device, last, variant):
    """Every other sample of a buffer whose rest is NaN; results and gradients must not see it."""
    for c, spatial in [(20, (3, 7)), (33, (5,)), (3, (2, 2))]:
        whole = torch.full((4, c, *spatial), float("nan"))
        whole = channels_last(whole) if last else whole
        whole[1], whole[2] = torch.randn(c, *spatial), torch.randn(c, *spatial)
        x = whole.to(device.torch_device)[1:3].requires_grad_()
        y = group_norm(x, 1, activation="silu", variant=variant)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.isfinite().all() and dx.isfinite().all()


def test_nan_stays_in_its_group(device):
    x = torch.randn(2, 8, 5, 5)
    x[1, 3, 2, 2] = float("nan")
    y = group_norm(x.to(device.torch_device), 4, activation="silu")
    assert y[1, 2:4].isnan().all() and y[0].isfinite().all() and y[1, :2].isfinite().all() and y[1, 4:].isfinite().all()


def test_extreme_outputs(device):
    """SiLU far from 0, where exp over- and underflows."""
    weight = torch.tensor([1e4, -1e4, 90.0, 1e-30]).to(device.torch_device)
    x = torch.randn(2, 4, 6, 6).to(device.torch_device)
    y = group_norm(x, 4, weight, activation="silu").cpu()
    exact = reference.group_norm(x.double().cpu(), 4, weight.double().cpu(), activation="silu")
    error = (y.double() - exact).abs().amax((0, 2, 3))
    assert y.isfinite().all() and (error <= 2e-6 * exact.abs().amax((0, 2, 3))).all()
    assert torch.equal(group_norm(torch.zeros(1, 4, 3).to(device.torch_device), 2).cpu(), torch.zeros(1, 4, 3))


LAYOUTS = {
    "expanded": lambda x: x[:1].expand_as(x),
    "transposed": lambda x: x.transpose(2, 3),
    "sliced": lambda x: x[:, :, ::2],
    "channels": lambda x: x[:, ::2],
    "batch": lambda x: channels_last(x)[::2],
    "flipped": lambda x: x.flip(3).transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout):
    x = LAYOUTS[layout](torch.randn(4, 16, 6, 5).to(device.torch_device)).detach().requires_grad_()
    y = group_norm(x, 4, activation="silu")
    dy = torch.randn_like(y)[..., :1].expand_as(y)  # a gradient with a stride of 0
    (dx,) = torch.autograd.grad(y, x, dy)
    exact = x.detach().double().requires_grad_()
    reference_y = reference.group_norm(exact, 4, activation="silu")
    (reference_dx,) = torch.autograd.grad(reference_y, exact, dy.double())
    assert torch.allclose(y.double(), reference_y, atol=2e-6) and torch.allclose(dx.double(), reference_dx, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0), (0, 8), (3, 8, 4, 0)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device.torch_device, requires_grad=True)
    weight = torch.ones(8, device=device.torch_device, requires_grad=True)
    y = group_norm(x, 4, weight, activation="silu")
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert y.shape == shape and dx.shape == shape and torch.equal(dweight, torch.zeros_like(dweight))


def test_gradients_of_any_subset(device):
    inputs = make((2, 12, 5, 3), torch.float32, device.torch_device)
    dy = torch.randn(2, 12, 5, 3, device=device.torch_device)

    def grads(wanted):
        tensors = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        y = group_norm(tensors[0], 3, *tensors[1:3], activation="silu", scale=tensors[3], shift=tensors[4])
        return torch.autograd.grad(y, [tensors[i] for i in wanted], dy)

    everything = grads((0, 1, 2, 3, 4))
    for wanted in itertools.chain.from_iterable(itertools.combinations(range(5), k) for k in (1, 2)):
        assert all(torch.equal(a, everything[i]) for a, i in zip(grads(wanted), wanted)), wanted


def test_out_may_be_the_input(device):
    for x in (torch.randn(2, 12, 5, 3), channels_last(torch.randn(2, 20, 5, 3))):
        x = x.to(device.torch_device)
        expected = group_norm(x, 4, activation="silu")
        out = torch.empty_like(x)
        assert group_norm(x, 4, activation="silu", out=out) is out and torch.equal(out, expected)
        group_norm(x, 4, activation="silu", out=x)
        assert torch.equal(x, expected)


def test_random_shapes(device):
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the shapes")
    from hypothesis import strategies as st

    @hypothesis.given(
        n=st.integers(1, 3), groups=st.integers(1, 5), per=st.integers(1, 9), spatial=st.lists(st.integers(1, 20), max_size=3),
        last=st.booleans(), silu=st.booleans(), affine=st.booleans(), step=st.integers(1, 2), seed=st.integers(0, 1000),
    )  # fmt: skip
    def draw(n, groups, per, spatial, last, silu, affine, step, seed):
        generator = torch.Generator().manual_seed(seed)
        shape = (n * step, groups * per, *spatial)
        hypothesis.assume(n * per * torch.Size(spatial).numel() > 1)
        x = torch.randn(shape, generator=generator)
        x = (channels_last(x) if last else x)[::step].to(device.torch_device)
        weight = torch.randn(groups * per, generator=generator).to(device.torch_device) if affine else None
        kwargs = {"activation": "silu" if silu else None}
        y = group_norm(x, groups, weight, **kwargs)
        exact = reference.group_norm(x.double(), groups, None if weight is None else weight.double(), **kwargs)
        assert torch.allclose(y.double(), exact, rtol=1e-5, atol=2e-5)

    draw()


BAD = [
    (dict(input=torch.randn(8)), ValueError, r"input must be \[N, C, \.\.\.\]: got shape \[8\]"),
    (dict(num_groups=3), ValueError, "num_groups must divide the 8 channels of input: got 3"),
    (dict(num_groups=0), ValueError, "num_groups must divide"),
    (dict(weight=torch.ones(7)), ValueError, r"weight has shape \[7\], expected \[8\]"),
    (dict(bias=torch.ones(1, 8)), ValueError, r"bias has shape \[1, 8\], expected \[8\]"),
    (dict(scale=torch.ones(8)), ValueError, r"scale has shape \[8\], expected \[2, 8\]"),
    (dict(shift=torch.ones(2, 4)), ValueError, r"shift has shape \[2, 4\], expected \[2, 8\]"),
    (dict(activation="relu"), ValueError, "activation must be None or \"silu\": got 'relu'"),
    (dict(variant="best"), ValueError, "unknown variant 'best': this device has naive, fused"),
    (dict(weight=[1.0]), TypeError, "weight must be a tensor: got list"),
    (dict(input=3), TypeError, "input must be a tensor: got int"),
    (dict(out=torch.empty(2, 8, 3)), ValueError, r"out has shape \[2, 8, 3\], expected \[2, 8, 4\]"),
    (dict(out=torch.empty(2, 4, 8).mT), ValueError, "out must have the memory layout of input"),
    (dict(out=torch.empty(2, 8, 4), weight=torch.ones(8, requires_grad=True)), RuntimeError, "out= is not differentiable"),
    (dict(input=torch.randn(2, 8, 4).double()), RuntimeError, "torch.float64 has no kernel"),
    (dict(input=torch.ones(2, 8, 4, dtype=torch.int32)), RuntimeError, "torch.int32 has no kernel"),
    (dict(weight=torch.ones(8).half()), RuntimeError, "a parameter of torch.float16 with an input of torch.float32"),
    (dict(input=torch.ones(1, 2), num_groups=2), ValueError, "one value per group"),
]


@pytest.mark.parametrize("arguments, error, message", BAD)
def test_bad_input(arguments, error, message):
    given = {"input": torch.randn(2, 8, 4), "num_groups": 2, **arguments}
    with pytest.raises(error, match="group_norm: .*" + message):
        group_norm(**given)


def test_every_level_is_in_the_catalogue():
    rows = {(row["op"], row["variant"], row["architectures"]) for row in _C.kernels() if row["family"] == "norm"}
    for level in ("generic", *(["avx2", "avx512"] if "avx2" in _C.cpu_isas() else [])):
        for op, variant in itertools.product(("group_norm", "group_norm_backward", "row_norm", "row_norm_backward"), VARIANTS):
            assert (op, variant, level) in rows
