"""LayerNorm and RMSNorm, with and without a residual: outputs and gradients against float64, edges, invariances."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from dlops.functional import layer_norm, rms_norm
from dlops.reference import norm as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VARIANTS = ["naive", "fused"]
EPS = 1e-5
# rows x d: shorter than a vector, whole vectors, a rest, beyond a piece of 4096, odd numbers of rows, several blocks of 32.
SHAPES = [(1, 2), (5, 3), (3, 64), (7, 33), (70, 17), (2, 4096), (3, 5000)]
FULL_SHAPES = [(1000, 768), (129, 1000), (4, 8192), (300, 31), (2, 20001)]


def ours(op, x, d, weight, bias, residual, variant=None):
    if op == "rms_norm":
        return rms_norm(x, d, weight, EPS, residual=residual, variant=variant)
    return layer_norm(x, d, weight, bias, EPS, residual=residual, variant=variant)


def compose(op, x, d, weight, bias, residual):
    """What a user of torch would write."""
    s = x if residual is None else x + residual
    y = F.rms_norm(s, d, weight, EPS) if op == "rms_norm" else F.layer_norm(s, d, weight, bias, EPS)
    return y if residual is None else (y, s)


def exactly(op, x, d, weight, bias, residual):
    if op == "rms_norm":
        return reference.rms_norm(x, d, weight, EPS, residual=residual)
    return reference.layer_norm(x, d, weight, bias, EPS, residual=residual)


def check(device, within_rule, op, shape, dtype, variant, with_residual, param_dtype=None, mean=0.5):
    d = shape[-1:]
    makers = [shape, d, d, shape]
    values = [torch.randn(size).to(device=device.torch_device, dtype=dtype) for size in makers]
    values[0] = values[0] * 2 + mean
    values[1:3] = [t.to(param_dtype or dtype) for t in values[1:3]]
    used = [True, True, op == "layer_norm", with_residual]
    dys = [torch.randn(shape).to(device=device.torch_device, dtype=dtype) for _ in range(2)]

    def run(fn, cast):
        x, w, b, r = [cast(t).detach().requires_grad_() if u else None for t, u in zip(values, used)]
        out = fn(op, x, d, w, b, r)
        out = out if isinstance(out, tuple) else (out,)
        given = [t for t in (x, w, b, r) if t is not None]
        return [*out, *torch.autograd.grad(out, given, [cast(dy).to(y.dtype) for y, dy in zip(out, dys)])]

    same = lambda t: t  # noqa: E731
    mine = run(lambda *a: ours(*a, variant=variant), same)
    yours = run(lambda op, x, d, w, b, r: compose(op, x, d, *[t if t is None else t.to(dtype) for t in (w, b)], r), same)
    # The sum is rounded before it is normalised, in torch too: the exact twin starts from there.
    if with_residual and dtype is not torch.float32:
        values[0], values[3] = values[0] + values[3], torch.zeros_like(values[3])
    exact = run(exactly, torch.Tensor.double)
    names = ["y", *(["sum"] if with_residual else []), "dx", "dweight", "dbias", "dresidual"]
    for name, a, b, e in zip(names, mine, yours, exact):
        within_rule(a.detach(), b.detach(), e.detach(), f"{name} {shape}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_against_float64(device, within_rule, op, dtype, variant, residual):
    for shape in SHAPES:
        check(device, within_rule, op, shape, dtype, variant, residual)


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_full_grid(device, within_rule, dtype, variant):
    for op, shape, residual in itertools.product(["layer_norm", "rms_norm"], FULL_SHAPES, [False, True]):
        check(device, within_rule, op, shape, dtype, variant, residual)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_float32_parameters(device, within_rule, op):
    check(device, within_rule, op, (9, 40), torch.bfloat16, "fused", True, param_dtype=torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_mean(device, variant):
    """mean 1e4, deviation 1; 100 and 9001 elements: one piece, and three that are merged."""
    for d in (100, 9001):
        x = (torch.randn(3, d, dtype=torch.float64) + 1e4).float()
        exact = reference.layer_norm(x.double(), (d,))
        y = layer_norm(x.to(device.torch_device), (d,), variant=variant).cpu()
        if device.isa:
            assert (y.double() - exact).abs().max() < 5e-6
        theirs = F.layer_norm(x, (d,))
        assert (y.double() - exact).abs().max() <= 2 * (theirs.double() - exact).abs().max() + 1e-6


def test_thread_count_changes_no_bit(device):
    if device.isa is None:
        pytest.skip("threads are a CPU matter")
    x, dy, weight = torch.randn(131, 90, requires_grad=True), torch.randn(131, 90), torch.randn(90, requires_grad=True)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = layer_norm(x, (90,), weight)
        found.append((y.detach(), *torch.autograd.grad(y, (x, weight), dy)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_batch_size_changes_no_bit(device, op):
    x, w = torch.randn(9, 77).to(device.torch_device), torch.randn(77).to(device.torch_device)
    whole = ours(op, x, (77,), w, None, None)
    for row in (0, 4, 8):
        assert torch.equal(ours(op, x[row : row + 1], (77,), w, None, None)[0], whole[row])


@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_nothing_outside(device, variant):
    for d in (3, 8, 33):
        whole = torch.full((4, d), float("nan"))
        whole[1:3] = torch.randn(2, d)
        x = whole.to(device.torch_device)[1:3].requires_grad_()
        y, s = layer_norm(x, (d,), residual=x.detach(), variant=variant)
        (dx,) = torch.autograd.grad((y.sum() + s.sum()), x)
        assert y.isfinite().all() and s.isfinite().all() and dx.isfinite().all()


def test_rows_of_one(device):
    """x - mean is 0 in LayerNorm, x / |x| is 1 in RMSNorm."""
    x = torch.tensor([[3.0], [-0.25]]).to(device.torch_device)
    bias = torch.tensor([0.5]).to(device.torch_device)
    assert torch.equal(layer_norm(x, (1,), None, bias).cpu(), torch.full((2, 1), 0.5))
    assert torch.allclose(rms_norm(x, (1,)).cpu(), torch.tensor([[1.0], [-1.0]]), atol=1e-6)


def test_shapes_and_layouts(device):
    x = torch.randn(3, 4, 5, 6).to(device.torch_device)
    for value in (x, x.transpose(0, 1), x[:, ::2], x[:1].expand(2, 4, 5, 6)):
        for dims in (1, 2, 4):
            shape = value.shape[-dims:]
            weight = torch.randn(shape).to(device.torch_device)
            y, exact = layer_norm(value, shape, weight), reference.layer_norm(value.double(), shape, weight.double())
            assert torch.allclose(y.double(), exact, atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 8)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device.torch_device, requires_grad=True)
    weight = torch.ones(shape[-1:], device=device.torch_device, requires_grad=True)
    for y in (layer_norm(x, shape[-1:], weight), rms_norm(x, shape[-1:], weight)):
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert y.shape == dx.shape == shape and torch.equal(dweight, torch.zeros_like(dweight))


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_gradients_of_any_subset(device, op):
    values = [torch.randn(size).to(device.torch_device) for size in ((37, 20), (20,), (20,), (37, 20))]
    usable = (0, 1, 3) if op == "rms_norm" else (0, 1, 2, 3)
    dys = [torch.randn(37, 20).to(device.torch_device) for _ in range(2)]

    def grads(wanted):
        x, w, b, r = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(values)]
        out = ours(op, x, (20,), w, b if op == "layer_norm" else None, r)
        out = [(y, dy) for y, dy in zip(out, dys) if y.requires_grad]
        return torch.autograd.grad([y for y, _ in out], [(x, w, b, r)[i] for i in wanted], [dy for _, dy in out])

    everything = dict(zip(usable, grads(usable)))
    for wanted in itertools.chain.from_iterable(itertools.combinations(usable, k) for k in (1, 2)):
        assert all(torch.equal(a, everything[i]) for a, i in zip(grads(wanted), wanted)), wanted


def test_only_one_output_used(device):
    x = torch.randn(5, 12).to(device.torch_device).requires_grad_()
    r = torch.randn(5, 12).to(device.torch_device).requires_grad_()
    y, s = layer_norm(x, (12,), residual=r)
    assert all(torch.equal(g, torch.ones_like(g)) for g in torch.autograd.grad(s.sum(), (x, r), retain_graph=True))
    dx, dr = torch.autograd.grad(y.square().sum(), (x, r))
    assert torch.equal(dx, dr) and dx.abs().max() > 0


def test_random_shapes(device):
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the shapes")
    from hypothesis import strategies as st

    @hypothesis.given(
        leading=st.lists(st.integers(1, 9), max_size=2), trailing=st.lists(st.integers(1, 40), min_size=1, max_size=2),
        rms=st.booleans(), residual=st.booleans(), transpose=st.booleans(), seed=st.integers(0, 1000),
    )  # fmt: skip
    def draw(leading, trailing, rms, residual, transpose, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((*leading, *trailing), generator=generator).to(device.torch_device)
        if transpose and len(leading) == 2:
            x = x.transpose(0, 1)
        op, r = "rms_norm" if rms else "layer_norm", x * 0.5 if residual else None
        hypothesis.assume(rms or torch.Size(trailing).numel() > 1)
        y = ours(op, x, trailing, None, None, r)
        exact = exactly(op, x.double(), trailing, None, None, None if r is None else r.double())
        for a, b in zip(*[v if isinstance(v, tuple) else (v,) for v in (y, exact)]):
            assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-4)

    draw()


BAD = [
    (dict(normalized_shape=(7,)), ValueError, r"input has shape \[2, 8\], which does not end in normalized_shape \[7\]"),
    (dict(normalized_shape=()), ValueError, "normalized_shape"),
    (dict(normalized_shape=(1, 2, 8)), ValueError, "normalized_shape"),
    (dict(weight=torch.ones(7)), ValueError, r"weight has shape \[7\], expected \[8\]"),
    (dict(residual=torch.ones(8)), ValueError, r"residual has shape \[8\], expected \[2, 8\]"),
    (dict(residual=torch.ones(2, 8).half()), RuntimeError, "float16"),
    (dict(variant="best"), ValueError, "unknown variant 'best': this device has naive, fused"),
    (dict(weight="w"), TypeError, "weight must be a tensor: got str"),
    (dict(input=torch.ones(2, 8).double()), RuntimeError, "torch.float64 has no kernel"),
]


@pytest.mark.parametrize("arguments, error, message", BAD)
@pytest.mark.parametrize("op", [layer_norm, rms_norm])
def test_bad_input(op, arguments, error, message):
    given = {"input": torch.randn(2, 8), "normalized_shape": (8,), **arguments}
    with pytest.raises(error, match=f"{op.__name__}: .*" + message):
        op(**given)
