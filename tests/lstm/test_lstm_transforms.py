"""What torch does to a recurrent network besides calling it: forward mode, vmap, autocast, checkpointing, threads."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import dlops
from dlops import functional, nn
from tests.lstm.calls import CELLS, Shape, ours, specification


@pytest.fixture
def auto():
    """Where a transform must find its way to torch's operations."""
    with dlops.backend("auto"):
        yield


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


MODULES = {
    "lstm": lambda: nn.LSTM(4, 6, 2, bidirectional=True),
    "layer norm": lambda: nn.LSTM(4, 6, layer_norm=True, zoneout=(0.1, 0.2), return_all_states=True),
}


def flat(results):
    return [t for r in results for t in (r if isinstance(r, tuple) else (r,))]


def loss(results):
    return sum(t.square().sum() for t in flat(results))


# ---- functional transforms


TRANSFORMED = {
    "lstm": Shape("lstm", bidirectional=True),
    "gru": Shape("gru", layers=2),
    "rnn": Shape("rnn_tanh"),
    "lengths": Shape("lstm", lengths=(6, 0, 3), reset=True),
    "layer norm": Shape("lstm", layer_norm=True, zoneout=(0.1, 0.2)),
    "projection": Shape("lstm", proj=3),
}


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("name", TRANSFORMED)
def test_functional_transforms(name):
    shape = TRANSFORMED[name]
    tensors = shape.tensors(torch.float32)
    fn = lambda leaves: {k: v for k, v in ours(shape, leaves).items()}  # noqa: E731, C416
    reference = lambda leaves: specification(shape, leaves)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    tangents = {k: torch.randn(t.shape, generator=generator) for k, t in tensors.items()}
    (y, tangent), (want_y, want) = (torch.func.jvp(f, (tensors,), (tangents,)) for f in (fn, reference))
    for key in want:
        close(y[key], want_y[key])
        close(tangent[key], want[key], 1e-3)

    grads = [torch.func.grad(lambda leaves, f=f: loss(f(leaves).values()))(tensors) for f in (fn, reference)]
    for key in tensors:
        close(grads[0][key], grads[1][key], 1e-3)

    stack = {k: torch.stack([t, 0.5 * t]) for k, t in tensors.items()}
    mapped = torch.vmap(fn)(stack)
    for k in range(2):
        one = reference({name: t[k] for name, t in stack.items()})
        for key in one:
            close(mapped[key][k], one[key])


@pytest.mark.usefixtures("auto")
def test_per_sample_gradients():
    module = nn.LSTM(4, 5)
    parameters = dict(module.named_parameters())
    x = torch.randn(6, 3, 4)

    def of_one(parameters, x):
        return torch.func.functional_call(module, parameters, (x[:, None],))[0].square().sum()

    per_sample = torch.vmap(torch.func.grad(of_one), (None, 1))(parameters, x)
    for b in range(3):
        want = torch.autograd.grad(of_one(parameters, x[:, b]), list(parameters.values()))
        for name, g in zip(parameters, want):
            close(per_sample[name][b], g)


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("cell", CELLS)
def test_transforms_of_cells(cell):
    shape = Shape(cell)
    x, h0, c0, weights, _ = shape.split(shape.tensors(torch.float32))
    hx = h0[0] if c0 is None else (h0[0], c0[0])
    fn = lambda x, w_hh: getattr(functional, f"{cell}_cell")(x, hx, weights[0], w_hh, *weights[2:])  # noqa: E731
    theirs = lambda x, w_hh: getattr(torch, f"{cell}_cell")(x, hx, weights[0], w_hh, *weights[2:])  # noqa: E731
    primals, tangents = (x[0], weights[1]), (torch.randn_like(x[0]), torch.randn_like(weights[1]))
    close(torch.func.jvp(fn, primals, tangents), torch.func.jvp(theirs, primals, tangents))
    mapped = torch.vmap(fn, (0, None))(x, weights[1])
    for k, one in enumerate(x):
        want = theirs(one, weights[1])
        close(tuple(m[k] for m in mapped) if cell == "lstm" else mapped[k], want)


@pytest.mark.usefixtures("auto")
def test_forward_mode():
    """torch.autograd.forward_ad, and over the reverse mode."""
    module, theirs = nn.GRU(4, 5), torch.nn.GRU(4, 5)
    theirs.load_state_dict(module.state_dict())
    x, tangent = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    found = []
    for m in (module, theirs):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            found.append(torch.autograd.forward_ad.unpack_dual(m(dual)[0]).tangent.detach())
    close(*found)
    hvp = lambda m: torch.func.jvp(torch.func.grad(lambda x: m(x)[0].pow(3).sum()), (x,), (tangent,))[1]  # noqa: E731
    close(hvp(module).detach(), hvp(theirs).detach(), 1e-3)


@pytest.mark.parametrize("name", ["lstm", "layer norm"])
def test_batched_gradients(name):
    """torch.autograd.grad(is_grads_batched=True), as torch.autograd.functional.jacobian(vectorize=True) uses it."""
    module = MODULES[name]().eval()
    x = torch.randn(5, 3, 4, requires_grad=True)
    y, leaves = module(x)[0], [x, *module.parameters()]
    vectors = torch.randn(3, *y.shape)
    rows = torch.autograd.grad(y, leaves, vectors, retain_graph=True, is_grads_batched=True)
    for k, vector in enumerate(vectors):
        for row, want in zip(rows, torch.autograd.grad(y, leaves, vector, retain_graph=True)):
            close(row[k], want, 1e-3)


# ---- autocast, checkpointing, threads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_autocast(kind, dtype):
    theirs, module = getattr(torch.nn, kind)(4, 6), getattr(nn, kind)(4, 6)
    module.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, 4, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y, _ = module(x)
        if not (kind == "LSTM" and dtype is torch.float16):  # which torch's has no kernel for
            assert y.dtype is theirs(x)[0].dtype
        with torch.autocast("cpu", enabled=False):
            assert module(x)[0].dtype is torch.float32
    close(y.float(), theirs(x)[0], 0.05)
    leaves = [x, *module.parameters()]
    grads = torch.autograd.grad(y.float().sum(), leaves)
    assert all(g.dtype is torch.float32 for g in grads)
    exact = torch.autograd.grad(module(x)[0].sum(), leaves)
    for a, b in zip(grads, exact):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.03 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_autocast_cells(kind, dtype):
    theirs, module = getattr(torch.nn, f"{kind}Cell")(4, 6), getattr(nn, f"{kind}Cell")(4, 6)
    module.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 4)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
            y, want = module(x), theirs(x)
        for a, b in zip(flat((y,)), flat((want,))):
            assert a.dtype is b.dtype
            close(a.float(), b.float(), 0.05)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    module, x = nn.GRU(4, 6, 2), torch.randn(5, 3, 4, requires_grad=True)
    want = torch.autograd.grad(module(x)[0].square().sum(), [x, *module.parameters()])
    checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant).square().sum().backward()
    for t, g in zip([x, *module.parameters()], want):
        close(t.grad, g)


def test_changing_a_saved_tensor_is_noticed():
    module = nn.LSTM(4, 6)
    y, _ = module(torch.randn(5, 3, 4))
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_that_is_kept_gives_the_same_again():
    module = nn.LSTM(4, 6, layer_norm=True)
    y, _ = module(torch.randn(5, 3, 4))
    first = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(y.sum(), list(module.parameters()))))


def test_inference_mode():
    module, x = nn.LSTM(4, 16), torch.randn(5, 3, 4)
    want = module(x)[0].detach()
    with torch.inference_mode():
        for _ in range(2):
            close(module(x)[0], want)
    close(module(x)[0], want)


def test_threads_at_once():
    """Calls from several Python threads share the scratch pool and the cache, and nothing else."""
    calls = []
    for cell in CELLS:
        for hidden in (7, 40):
            shape = dataclasses.replace(Shape(cell), hidden=hidden, bidirectional=True)
            tensors = shape.tensors(torch.float32)
            calls.append(lambda shape=shape, tensors=tensors: ours(shape, tensors)["y"])
    expected, wrong = [call() for call in calls], []

    def work(k):
        for _ in range(20):
            if not torch.equal(calls[k](), expected[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
