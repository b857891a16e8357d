"""What torch does to a convolution besides calling it: forward mode, vmap, compile, export, fake tensors, autocast,
checkpointing, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import dlops
from dlops.functional import conv1d, conv2d, conv3d, conv_transpose2d
from tests.conv.calls import SHAPES, Shape, channels_last, function, torchs

ops = torch.ops.dlops


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.fixture
def auto():
    """Where a transform must find its way to torch's operations."""
    with dlops.backend("auto"):
        yield


CASES = {
    "plain": (Shape((2, 3, 6, 5), 4, (3, 3), padding=1), {}),
    "fused": (Shape((2, 3, 6, 5), 4, (3, 3), padding=1), {"activation": "silu", "residual": True}),
    "relu": (Shape((2, 3, 6, 5), 4, (3, 3), padding=1), {"activation": "relu"}),
    "wide": (Shape((1, 32, 8, 8), 32, (3, 3), padding=1), {"activation": "gelu"}),
    "depthwise": (Shape((2, 6, 6, 5), 6, (5, 5), padding=2, groups=6), {}),
    "pointwise": (Shape((2, 7, 6, 5), 9, (1, 1)), {"residual": True}),
    "reflect": (Shape((2, 3, 6, 5), 4, (3, 3), stride=2, padding=2, padding_mode="reflect"), {"activation": "tanh"}),
    "same": (Shape((1, 3, 6, 5), 4, (4, 2), padding="same"), {}),
    "transposed": (Shape((2, 4, 5, 3), 6, (4, 4), stride=2, padding=1, transposed=True), {"activation": "relu"}),
    "1-D": (Shape((2, 4, 11), 6, (3,), padding=1), {"activation": "sigmoid"}),
    "3-D": (Shape((1, 2, 4, 3, 5), 3, (3, 3, 3), padding=1), {}),
}


def inputs_of(case, dtype=torch.float32, last=False, grad=True):
    shape, extras = CASES[case]
    torch.manual_seed(0)
    tensors = [torch.randn(shape.size), torch.randn(shape.weight_size) / 3, torch.randn(shape.filters)]
    if extras.get("residual"):
        tensors.append(torch.randn_like(torchs(shape, *tensors)))
    if last:
        tensors = [channels_last(t) for t in tensors]
    return [t.to(dtype).requires_grad_(grad) for t in tensors]


def ours_of(case):
    shape, extras = CASES[case]

    def fn(x, w, bias, residual=None):
        return function(shape)(x, w, bias, **shape.options, activation=extras.get("activation"), residual=residual)

    return fn


def torchs_of(case):
    shape, extras = CASES[case]
    return lambda x, w, bias, residual=None: torchs(shape, x, w, bias, residual, extras.get("activation"))


def close(ours, theirs, **tolerances):
    torch.testing.assert_close(ours, theirs, **({"rtol": 1e-4, "atol": 1e-4} | tolerances))


# ---- compile, export, fake tensors


@pytest.mark.parametrize(("case", "last"), [*((case, False) for case in CASES), ("fused", True), ("1-D", True)])
def test_compiles_into_one_graph(case, last):
    fn, tensors = ours_of(case), inputs_of(case, last=last)
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager", dynamic=False)
    eager, traced = fn(*tensors), compiled(*tensors)
    assert eager.stride() == traced.stride()
    close(traced, eager)
    dy = torch.randn_like(eager)
    for a, b in zip(torch.autograd.grad(traced, tensors, dy), torch.autograd.grad(eager, tensors, dy)):
        close(a, b)
    with torch.no_grad():
        close(compiled(*tensors), eager)


@pytest.mark.parametrize("case", ["plain", "fused", "transposed"])
def test_compiles_with_dynamic_shapes(case):
    """The batch stays a symbol; other sizes choose the kernel."""
    fn, reference = ours_of(case), torchs_of(case)
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3, 5):
        tensors = [t.detach() for t in inputs_of(case)]
        tensors[0] = torch.randn(n, *tensors[0].shape[1:])
        if len(tensors) > 3:
            tensors[3] = torch.randn(n, *tensors[3].shape[1:])
        tensors = [t.requires_grad_() for t in tensors]
        want, got = reference(*tensors), compiled(*tensors)
        close(got, want)
        for a, b in zip(torch.autograd.grad(got.square().sum(), tensors), torch.autograd.grad(want.square().sum(), tensors)):
            close(a, b, rtol=1e-3, atol=1e-3)


def test_only_the_batch_makes_no_new_graph():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, w: conv2d(x, w, padding=1, activation="relu"), fullgraph=True, backend=counter)
    w = torch.randn(4, 3, 3, 3)
    for n in (2, 3, 4, 5, 6):
        compiled(torch.randn(n, 3, 6, 6), w)
    assert counter.frame_count <= 2


def test_winograd_and_backend_are_part_of_what_is_compiled():
    x, w = torch.randn(1, 32, 12, 12), torch.randn(32, 32, 3, 3)
    compiled = torch.compile(lambda x, w: conv2d(x, w, padding=1), fullgraph=True, backend="aot_eager")
    for mode in ("auto", "off", "f2", "off", "auto"):
        with dlops.winograd(mode):
            assert torch.equal(compiled(x, w), conv2d(x, w, padding=1))


@pytest.mark.parametrize("case", ["plain", "fused", "transposed"])
def test_exports(case):
    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return ours_of(case)(*tensors)

    tensors = tuple(inputs_of(case, grad=False))
    with dlops.backend("dlops"), torch.no_grad():
        program = torch.export.export(Model(), tensors)
    close(program.module()(*tensors), torchs_of(case)(*tensors))
    assert any("dlops" in str(node.target) for node in program.graph.nodes)


def test_exports_with_a_symbolic_batch():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = dlops.nn.Conv2d(3, 8, 3, padding=1, activation="relu")

        def forward(self, x):
            return self.conv(x)

    model = Model().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(4, 3, 8, 8),), dynamic_shapes=({0: batch},))
    for n in (2, 7):
        x = torch.randn(n, 3, 8, 8)
        close(program.module()(x), model(x))


@pytest.mark.parametrize("case", CASES)
def test_fake_and_meta_tensors(case):
    fn, tensors = ours_of(case), inputs_of(case)
    y = fn(*tensors)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t) for t in tensors]
        fake = fn(*fakes)
        assert fake.shape == y.shape and fake.stride() == y.stride() and fake.requires_grad
        for grad, t in zip(torch.autograd.grad(fake.sum(), fakes), tensors):
            assert grad.shape == t.shape
    with dlops.backend("auto"):
        meta = fn(*(t.detach().to("meta") for t in tensors))
    assert meta.shape == y.shape and meta.device.type == "meta"


def test_opcheck():
    x, w, b = torch.randn(2, 4, 6, 5), torch.randn(6, 4, 3, 3), torch.randn(6)
    one, pads = [1, 1], [1, 1, 1, 1]
    y = F.conv2d(x, w, padding=1)
    r = torch.randn_like(y)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")

    def check(op, *arguments):
        torch.library.opcheck(op, arguments, test_utils=tests)

    check(ops.conv.default, x, w, None, b, r, one, pads, one, 1, "zeros", "silu", False, "naive")
    options = [2, 1], [2, 1, 0, 1], [1, 2], 1, "reflect", "none", True, "naive"
    check(ops.conv.default, channels_last(x), w, None, None, None, *options)
    check(ops.conv_data.default, channels_last(y), w, None, b[:4], None, [6, 5], one, pads, one, 1, "relu", True, "naive")
    check(ops.conv_weight.default, x, channels_last(y), [3, 3], one, pads, one, 1, False, "naive")
    check(ops.conv_out.default, x, w, None, b, None, one, pads, one, 1, "zeros", "relu", "naive", torch.empty_like(y))
    signal, taps = channels_last(torch.randn(2, 4, 7)), torch.randn(6, 4, 3)
    check(ops.conv.default, signal, taps, None, b, None, [1], [0, 0], [1], 1, "zeros", "none", True, "naive")


# ---- functional transforms


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("case", CASES)
def test_functional_transforms(case):
    fn, reference = ours_of(case), torchs_of(case)
    tensors = tuple(inputs_of(case, grad=False))
    tangents = tuple(torch.randn_like(t) for t in tensors)

    y, tangent = torch.func.jvp(fn, tensors, tangents)
    want_y, want = torch.func.jvp(reference, tensors, tangents)
    close(y, want_y)
    close(tangent, want)

    def loss(fn):
        return lambda w: fn(tensors[0], w, *tensors[2:]).square().sum()

    close(torch.func.grad(loss(fn))(tensors[1]), torch.func.grad(loss(reference))(tensors[1]), rtol=1e-3, atol=1e-3)

    stack = torch.stack([tensors[0], 2 * tensors[0]])
    close(torch.vmap(lambda x: fn(x, *tensors[1:]))(stack), torch.stack([reference(x, *tensors[1:]) for x in stack]))
    weights = torch.stack([tensors[1], 2 * tensors[1]])  # an ensemble
    mapped = torch.vmap(lambda w: fn(tensors[0], w, *tensors[2:]))(weights)
    close(mapped, torch.stack([reference(tensors[0], w, *tensors[2:]) for w in weights]))


@pytest.mark.usefixtures("auto")
def test_per_sample_gradients():
    x, w = torch.randn(3, 2, 6, 6), torch.randn(4, 2, 3, 3)
    loss = lambda w, x: conv2d(x[None], w, activation="relu").square().sum()  # noqa: E731
    per_sample = torch.vmap(torch.func.grad(loss), (None, 0))(w, x)
    for got, one in zip(per_sample, x):
        leaf = w.clone().requires_grad_()
        close(got, torch.autograd.grad(F.relu(F.conv2d(one[None], leaf)).square().sum(), leaf)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", ["plain", "fused", "transposed", "depthwise"])
def test_forward_mode(case):
    """torch.autograd.forward_ad, and over the reverse mode."""
    with dlops.backend("auto"):
        fn, reference, tensors = ours_of(case), torchs_of(case), inputs_of(case, grad=False)
        tangent = torch.randn_like(tensors[0])
        for function_, out in ((fn, []), (reference, [])):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(tensors[0], tangent)
                out.append(torch.autograd.forward_ad.unpack_dual(function_(dual, *tensors[1:])).tangent)
            if function_ is fn:
                got = out[0]
        close(got, out[0])
        hvp = lambda f: torch.func.jvp(torch.func.grad(lambda x: f(x, *tensors[1:]).pow(3).sum()), (tensors[0],), (tangent,))[1]  # noqa: E731
        close(hvp(fn), hvp(reference), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("case", ["plain", "fused", "reflect", "transposed", "1-D"])
def test_batched_gradients(case):
    """torch.autograd.grad(is_grads_batched=True), as torch.autograd.functional.jacobian(vectorize=True) uses it."""
    fn, tensors = ours_of(case), inputs_of(case)
    y = fn(*tensors)
    vectors = torch.randn(3, *y.shape)
    rows = torch.autograd.grad(y, tensors, vectors, retain_graph=True, is_grads_batched=True)
    for k, vector in enumerate(vectors):
        for row, want in zip(rows, torch.autograd.grad(y, tensors, vector, retain_graph=True)):
            close(row[k], want)


# ---- autocast, checkpointing, subclasses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["plain", "fused", "depthwise", "transposed", "reflect"])
def test_autocast(case, dtype):
    fn, reference, tensors = ours_of(case), torchs_of(case), inputs_of(case)
    with torch.autocast("cpu", dtype):
        y, want = fn(*tensors), reference(*tensors)
    assert y.dtype is dtype
    close(y.float(), want.float(), rtol=5e-2, atol=5e-2)
    grads = torch.autograd.grad(y.float().sum(), tensors)
    assert all(g.dtype is torch.float32 for g in grads)
    for a, b in zip(grads, torch.autograd.grad(want.float().sum(), tensors)):
        close(a, b, rtol=5e-2, atol=0.05 * float(b.abs().max()))
    with torch.autocast("cpu", dtype), torch.autocast("cpu", enabled=False):
        assert fn(*tensors).dtype is torch.float32


def test_autocast_leaves_float64_alone():
    with dlops.backend("auto"), torch.autocast("cpu", torch.bfloat16):
        x, w = torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
        want = F.conv2d(x, w)
        assert conv2d(x, w).dtype is want.dtype and torch.equal(conv2d(x, w), want)


def test_autocast_compiles():
    fn, tensors = ours_of("fused"), inputs_of("fused")

    def cast(*t):
        with torch.autocast("cpu", torch.bfloat16):
            return fn(*t)

    compiled = torch.compile(cast, fullgraph=True, backend="aot_eager")
    y = compiled(*tensors)
    assert y.dtype is torch.bfloat16
    close(y, cast(*tensors), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    fn, tensors = ours_of("fused"), inputs_of("fused")
    want = torch.autograd.grad(fn(*tensors).square().sum(), tensors)
    y = checkpoint(fn, *tensors, use_reentrant=reentrant)
    y.square().sum().backward()
    for t, g in zip(tensors, want):
        close(t.grad, g)


def test_saved_tensor_hooks():
    fn, tensors = ours_of("fused"), inputs_of("fused")
    want = torch.autograd.grad(fn(*tensors).sum(), tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.double(), lambda t: t.float()):
        y = fn(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(y.sum(), tensors), want))


def test_tensor_subclasses_go_to_torch():
    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            called.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    called = []
    with dlops.backend("auto"):
        y = conv2d(torch.randn(1, 2, 5, 5).as_subclass(Named), torch.randn(3, 2, 3, 3))
        assert isinstance(y, Named) and "conv2d" in called
        y = conv2d(torch.randn(1, 2, 5, 5).as_subclass(Named), torch.randn(3, 2, 3, 3), activation="relu")
        assert isinstance(y, Named)


def test_sparse_and_mkldnn_layouts_go_to_torch():
    with dlops.backend("auto"):
        x, w = torch.randn(1, 2, 5, 5).to_mkldnn(), torch.randn(3, 2, 3, 3)
        close(conv2d(x, w).to_dense(), F.conv2d(x.to_dense(), w))


# ---- processes and threads


def test_threads_at_once():
    """Calls from several Python threads share the scratch pool and the cache, and nothing else."""
    calls = []
    for k, name in enumerate(("3x3", "1x1", "depthwise 7x7", "transposed 4x4", "grouped by 8", "5x5")):
        shape = SHAPES[name]
        torch.manual_seed(k)
        x, w = torch.randn(shape.size), torch.randn(shape.weight_size)
        calls.append(lambda shape=shape, x=x, w=w: function(shape)(x, w, **shape.options))
    expected = [call() for call in calls]
    wrong = []

    def work(k):
        for _ in range(30):
            if not torch.equal(calls[k](), expected[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_after_a_fork():
    """A forked child has none of its parent's worker threads and must not wait for them."""
    x, w = torch.randn(2, 16, 12, 12), torch.randn(16, 16, 3, 3)
    want = conv2d(x, w, padding=1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.write(write, b"1" if torch.equal(conv2d(x, w, padding=1), want) else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"


def test_environment_variable():
    code = "import dlops; print(dlops.winograd.current())"
    environment = os.environ | {"DLOPS_WINOGRAD": "f2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "f2", done.stderr


def test_float64_and_other_calls_go_to_torch():
    with dlops.backend("auto"):
        x, w = torch.randn(1, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
        (plan,) = dlops.explain(conv2d, x, w)
        assert plan.uses == "torch" and "float64 has no kernel" in plan.reason
        assert torch.equal(conv2d(x, w), F.conv2d(x, w))
        assert torch.equal(conv_transpose2d(x, w.transpose(0, 1)), F.conv_transpose2d(x, w.transpose(0, 1)))
        assert torch.equal(conv1d(x[0], w[:, :, 0].repeat(1, 2, 1)), F.conv1d(x[0], w[:, :, 0].repeat(1, 2, 1)))
        assert torch.equal(conv3d(x[:, None], w[:, :1, None]), F.conv3d(x[:, None], w[:, :1, None]))
