"""What torch does to an op besides calling it: second derivatives, forward mode, vmap, compile, fake tensors, autocast."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import dlops
from dlops.functional import group_norm, layer_norm, rms_norm
from dlops.reference import norm as reference

ops = torch.ops.dlops


@pytest.fixture(autouse=True)
def _ours():
    """`auto`, but with no size at which torch is the faster one: a transform must find its way to torch's ops."""
    from dlops.functional import norm

    before = dict(norm.SMALL)
    norm.SMALL.update(dict.fromkeys(before, 0))
    yield
    norm.SMALL.update(before)


def group(x, weight, bias, scale, shift):
    return group_norm(x, 2, weight, bias, activation="silu", scale=scale, shift=shift)


def layer(x, residual, weight, bias):
    return layer_norm(x, x.shape[-1:], weight, bias, residual=residual)


def rms(x, residual, weight):
    return rms_norm(x, x.shape[-1:], weight, 1e-5, residual=residual)


CASES = {
    "group_norm": (group, [(2, 4, 3), (4,), (4,), (2, 4), (2, 4)]),
    "layer_norm": (layer, [(3, 5), (3, 5), (5,), (5,)]),
    "rms_norm": (rms, [(3, 5), (3, 5), (5,)]),
}


def inputs_of(case, dtype=torch.float32):
    fn, sizes = CASES[case]
    return fn, [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("case", CASES)
def test_float64_is_torchs(case):
    fn, inputs = inputs_of(case, torch.float64)
    assert torch.autograd.gradcheck(fn, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(fn, inputs)


@pytest.mark.parametrize("case", CASES)
def test_double_backward(case):
    """float32, the first derivative from our kernel's graph: its derivative equals float64's."""

    def second(fn, inputs):
        out = fn(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        first = torch.autograd.grad(sum((y * y).sum() for y in out), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    fn, inputs = inputs_of(case)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for mine, e in zip(second(fn, inputs), second(fn, exact)):
        assert torch.allclose(mine.double(), e, rtol=1e-3, atol=1e-4 * float(e.abs().max()) + 1e-6)


def test_double_backward_stops_at_inputs_that_depend_on_each_other():
    """The weight is computed from x: the derivative by x must not go through the weight twice."""

    start = torch.randn(2, 4, 3)

    def penalty(dtype, fn):
        x = start.detach().to(dtype).requires_grad_()
        weight = x.sum((0, 2)).tanh()
        y = fn(x, 2, weight)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    expected = penalty(torch.float64, F.group_norm)
    assert torch.allclose(penalty(torch.float32, group_norm).double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_transforms(case):
    fn, inputs = inputs_of(case)
    inputs = tuple(t.detach() for t in inputs)
    first = lambda *a: fn(*a)[0] if isinstance(fn(*a), tuple) else fn(*a)  # noqa: E731
    wide = tuple(t.double() for t in inputs)

    _, tangent = torch.func.jvp(first, inputs, inputs)
    _, exact = torch.func.jvp(first, wide, wide)
    assert torch.allclose(tangent.double(), exact, atol=1e-5)

    grad = torch.func.grad(lambda x: first(x, *inputs[1:]).square().sum())(inputs[0])
    exact = torch.func.grad(lambda x: first(x, *wide[1:]).square().sum())(wide[0])
    assert torch.allclose(grad.double(), exact, atol=1e-4)

    stack = torch.stack([inputs[0], inputs[0] * 2 + 1])
    mapped = torch.vmap(lambda x: first(x, *inputs[1:]))(stack)
    assert torch.allclose(mapped, torch.stack([first(x, *inputs[1:]) for x in stack]), atol=1e-5)

    jacobian = torch.autograd.functional.jacobian(lambda x: first(x, *inputs[1:]), inputs[0], vectorize=True)
    exact = torch.func.jacrev(lambda x: first(x, *wide[1:]))(wide[0])
    assert torch.allclose(jacobian.double(), exact, atol=1e-5)


def test_opcheck():
    x, w = torch.randn(2, 4, 3, 5), torch.randn(4)
    last = x.to(memory_format=torch.channels_last)
    scale = torch.randn(2, 4)
    for value in (x, last, x.transpose(2, 3)):
        y, stats = ops.group_norm(value, w, w, scale, None, 2, 1e-5, True, "")
        assert torch.library.opcheck(ops.group_norm.default, (value, w, w, scale, None, 2, 1e-5, True, ""))
        backward = (y, value, w, w, scale, None, stats, 2, True, [1, 1, 0, 1, 1], "")
        assert torch.library.opcheck(ops.group_norm_backward.default, backward)
    out = torch.empty_like(x)
    assert torch.library.opcheck(ops.group_norm_out.default, (x, w, w, None, None, 2, 1e-5, True, "", out))
    for is_rms in (False, True):
        row_weight, bias = torch.randn(5), None if is_rms else torch.randn(5)
        y, stats = ops.row_norm(x, row_weight, bias, 1, 1e-5, is_rms, "")
        assert torch.library.opcheck(ops.row_norm.default, (x, row_weight, bias, 1, 1e-5, is_rms, ""))
        assert torch.library.opcheck(ops.add_row_norm.default, (x, x, row_weight, bias, 1, 1e-5, is_rms, ""))
        backward = (y, y, x, row_weight, stats, 1, is_rms, [1, 1, 0 if is_rms else 1], "")
        assert torch.library.opcheck(ops.row_norm_backward.default, backward)


@pytest.mark.parametrize("case", CASES)
def test_compiles_into_one_graph(case):
    fn, inputs = inputs_of(case)
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    as_tuple = lambda out: out if isinstance(out, tuple) else (out,)  # noqa: E731
    eager, traced = as_tuple(fn(*inputs)), as_tuple(compiled(*inputs))
    dys = [torch.randn_like(y) for y in eager]
    assert all(torch.equal(a, b) for a, b in zip(eager, traced))
    for a, b in zip(torch.autograd.grad(eager, inputs, dys), torch.autograd.grad(traced, inputs, dys)):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(as_tuple(fn(*inputs)), as_tuple(compiled(*inputs))))


def test_compiles_with_dynamic_shapes():
    silu = lambda x, w: group_norm(x, 2, w, activation="silu")  # noqa: E731
    compiled = torch.compile(silu, fullgraph=True, backend="aot_eager", dynamic=True)
    w = torch.randn(4)
    for n in (2, 3, 5):
        x = torch.randn(n, 4, 3 + n)
        assert torch.equal(compiled(x, w), group_norm(x, 2, w, activation="silu"))


def test_fake_and_meta_tensors():
    with FakeTensorMode():
        x, w = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(8)
        y = group_norm(x, 2, w, activation="silu")
        assert y.shape == x.shape and y.requires_grad
        y.sum().backward()
        assert x.grad.shape == x.shape
        y, s = rms_norm(torch.randn(3, 8), (8,), residual=torch.randn(3, 8))
        assert y.shape == s.shape == (3, 8)
    meta = torch.randn(2, 8, 4, device="meta")
    assert group_norm(meta, 2, activation="silu").device.type == "meta"
    assert layer_norm(meta, (4,)).shape == meta.shape


def test_cpu_autocast_is_torchs():
    """torch's CPU autocast leaves the norms alone: they run in the input's dtype."""
    x, w = torch.randn(2, 8, 4), torch.randn(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert group_norm(x, 2, w).dtype == F.group_norm(x, 2, w).dtype == torch.float32
        half = x.bfloat16()
        assert layer_norm(half, (4,)).dtype == F.layer_norm(half, (4,)).dtype == torch.bfloat16


def test_cuda_autocast_is_torchs():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x = torch.randn(2, 8, 4, device="cuda", dtype=torch.float16)
    with torch.autocast("cuda"):
        for ours, theirs in ((group_norm(x, 2), F.group_norm(x, 2)), (layer_norm(x, (4,)), F.layer_norm(x, (4,)))):
            assert ours.dtype == theirs.dtype == torch.float32
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_tensor_subclasses_go_to_torch():
    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            called.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    called = []
    y = group_norm(torch.randn(2, 8, 4).as_subclass(Named), 2)
    assert isinstance(y, Named) and "group_norm" in called


def test_backends_and_their_reasons():
    x = torch.randn(2, 32, 64, 64)
    (plan,) = dlops.explain(group_norm, x, 8, activation="silu")
    assert (plan.uses, plan.variant, plan.device) == ("dlops", "fused", "cpu") and "csrc/norm/cpu.cpp:" in plan.source
    assert plan.bytes == 2 * x.numel() * 4
    (plan,) = dlops.explain(group_norm, x.double(), 8)
    assert plan.uses == "torch" and "float64" in plan.reason
    (plan,) = dlops.explain(layer_norm, x, (64,), variant="naive")
    assert plan.variant == "naive" and plan.kernel == "rows_forward_naive"
    with dlops.backend("torch"):
        assert torch.equal(layer_norm(x, (64,)), F.layer_norm(x, (64,)))
        assert dlops.explain(layer_norm, x, (64,))[0].uses == "torch"
    y, s = layer_norm(x.double(), (64,), residual=x.double())
    assert torch.allclose(y, reference.layer_norm(s, (64,)))


def test_small_inputs_are_torchs():
    from dlops.functional import norm

    norm.SMALL["layer_norm"] = 100
    (plan,) = dlops.explain(layer_norm, torch.randn(4, 16), (16,))
    assert plan.uses == "torch" and "64 elements" in plan.reason
    x = torch.randn(4, 16)
    assert dlops.explain(rms_norm, x, (16,), residual=x)[0].uses == "dlops"
    assert "a second output" in dlops.explain(layer_norm, x, (16,), residual=x)[0].reason


def test_threads_at_once():
    """Calls from several Python threads share the scratch pool and nothing else."""
    xs = [torch.randn(2, 24, 33, 31 + i) for i in range(4)]
    expected = [group_norm(x, 4, activation="silu") for x in xs]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(group_norm(xs[i], 4, activation="silu"), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
