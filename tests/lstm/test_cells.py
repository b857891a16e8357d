"""The cells beside torch's: the error rule, bits, modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils import prune

import dlops
from dlops import _C, functional, nn
from dlops.reference import lstm as reference
from tests.lstm.calls import CELLS, DTYPES, check_rule

KINDS = ["LSTMCell", "GRUCell", "RNNCell"]
SIZES = [(1, 1, 1), (1, 5, 7), (3, 5, 7), (33, 16, 32), (2, 33, 17), (5, 270, 300)]  # B, I, H


def tensors_for(cell, size, dtype=torch.float32, bias=True):
    b, i, h = size
    generator = torch.Generator().manual_seed(b + i + h)
    make = lambda *s, scale=1.0: (torch.randn(s, generator=generator) * scale).to(dtype)  # noqa: E731
    rows = reference.GATES[cell] * h
    tensors = {
        "input": make(b, i),
        "h": make(b, h),
        "w_ih": make(rows, i, scale=i**-0.5),
        "w_hh": make(rows, h, scale=h**-0.5),
    }
    if cell == "lstm":
        tensors["c"] = make(b, h)
    if bias:
        tensors |= {"b_ih": make(rows), "b_hh": make(rows)}
    return tensors


def run(function, cell, tensors, grad=True, **more):
    """Results and gradients of their weighted sum, by name."""
    leaves = {name: t.detach().requires_grad_(grad) for name, t in tensors.items()}
    hx = (leaves["h"], leaves["c"]) if cell == "lstm" else leaves["h"]
    weights = [leaves.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    made = function(leaves["input"], hx, *weights, **more)
    made = dict(zip("hc", made if cell == "lstm" else (made,)))
    found = {f"{name}'": t.detach() for name, t in made.items()}
    if grad:
        generator = torch.Generator().manual_seed(1)
        loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in made.values())
        found |= {f"d{name}": g for name, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())))}
    return {name: t.cpu() for name, t in found.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_error_rule(device, cell, size, dtype):
    if device.simt and (size not in SIZES[:3] or dtype is torch.float16):
        pytest.skip("part of the grid for the simt runner")
    tensors = tensors_for(cell, size, dtype, bias=size[1] != 16)
    function = getattr(functional, f"{cell}_cell")
    placed = {name: t.to(device.torch_device) for name, t in tensors.items()}
    variants = [None] if device.simt or device.torch_device == "cuda" else [None, "fused_cell"]
    mine = [run(function, cell, placed), *(run(function, cell, placed, False, variant=v) for v in variants)]
    with dlops.backend("torch"):
        theirs = run(getattr(torch, f"{cell}_cell"), cell, tensors)
        exact = run(getattr(torch, f"{cell}_cell"), cell, {name: t.double() for name, t in tensors.items()})
    for found in mine:
        for name, value in found.items():
            check_rule(value, theirs[name], exact[name], f"{name} of {cell} {size} {dtype}", 4)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_a_layer_of_one_step(device, cell):
    tensors = {name: t.to(device.torch_device) for name, t in tensors_for(cell, (4, 9, 21)).items()}
    made = run(getattr(functional, f"{cell}_cell"), cell, tensors, grad=False)
    weights = [tensors[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    state = tensors["h"][None] if cell != "lstm" else (tensors["h"][None], tensors["c"][None])
    with torch.no_grad():
        y, *states = getattr(functional, cell)(
            tensors["input"][None], state, weights, True, 1, 0.0, False, False, False
        )
    torch.testing.assert_close(made["h'"], y[0].cpu(), rtol=1e-5, atol=1e-6)
    for name, s in zip("hc", states):
        torch.testing.assert_close(made[f"{name}'"], s[0].cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_the_fused_cell_does_not_look_at_the_batch(cell):
    """Nor at the number of threads."""
    for isa in dlops.cpu_isas():
        with at_level(isa):
            tensors = tensors_for(cell, (37, 40, 45))
            function = getattr(functional, f"{cell}_cell")
            whole = run(function, cell, tensors, False, variant="fused_cell")
            for rows in (slice(0, 1), slice(5, 7), slice(20, 37)):
                part = {name: t[rows] if name in ("input", "h", "c") else t for name, t in tensors.items()}
                for name, value in run(function, cell, part, False, variant="fused_cell").items():
                    assert torch.equal(value, whole[name][rows]), (isa, name, rows)
            torch.set_num_threads(1)
            again = run(function, cell, tensors, False, variant="fused_cell")
            torch.set_num_threads(2)
            assert all(torch.equal(again[name], value) for name, value in whole.items())


class at_level:
    def __init__(self, isa):
        self.isa = isa

    def __enter__(self):
        self.before = _C.cpu_isa()
        _C.set_cpu_isa(self.isa)

    def __exit__(self, *_):
        _C.set_cpu_isa(self.before)


def pair(kind, **kwargs):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(4, 6, **kwargs)
    torch.manual_seed(0)
    return theirs, getattr(nn, kind)(4, 6, **kwargs)


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["auto", "dlops"])
@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"dtype": torch.bfloat16}, {"nonlinearity": "relu"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_drops_in(kind, kwargs, backend):
    if "nonlinearity" in kwargs and kind != "RNNCell":
        pytest.skip("RNNCell alone has one")
    theirs, ours = pair(kind, **kwargs)
    assert isinstance(ours, getattr(torch.nn, kind)) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    dtype = kwargs.get("dtype", torch.float32)
    make = lambda *size: torch.randn(size).to(dtype)  # noqa: E731
    x, state = make(3, 4), make(3, 6)
    state = (state, make(3, 6)) if kind == "LSTMCell" else state
    one = tuple(s[0] for s in state) if kind == "LSTMCell" else state[0]
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    with dlops.backend(backend):
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            for arguments in ((x,), (x, state), (x[0],), (x[0], one), (x[:0],), (x.t().contiguous().t(), state)):
                close(module(*arguments), theirs(*arguments), tolerance)
                with torch.no_grad():
                    for _ in range(2):
                        close(module(*arguments), theirs(*arguments), tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_trains(kind):
    theirs, ours = pair(kind)
    xs = torch.randn(5, 3, 4)
    grads = []
    for module in (ours, theirs):
        state, total = None, 0
        for x in xs:
            state = module(x, state)
            total = total + (state[0] if kind == "LSTMCell" else state).square().sum()
        grads.append(torch.autograd.grad(total, list(module.parameters())))
    close(*grads, tolerance=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(device, cell):
    tensors = tensors_for(cell, (2, 3, 4))

    def penalty(function, tensors):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        hx = (leaves["h"], leaves["c"]) if cell == "lstm" else leaves["h"]
        made = function(leaves["input"], hx, *(leaves[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))
        loss = sum(t.pow(3).sum() for t in made) if cell == "lstm" else made.pow(3).sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))

    got = penalty(getattr(functional, f"{cell}_cell"), {name: t.to(device.torch_device) for name, t in tensors.items()})
    with dlops.backend("torch"):
        want = penalty(getattr(torch, f"{cell}_cell"), {name: t.double() for name, t in tensors.items()})
    for a, b in zip(got, want):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)


@pytest.mark.parametrize("cell", CELLS)
def test_float64(cell):
    with dlops.backend("auto"):
        tensors = tensors_for(cell, (2, 2, 3), torch.float64)
        names = list(tensors)

        def fn(*values):
            leaves = dict(zip(names, values))
            hx = (leaves["h"], leaves["c"]) if cell == "lstm" else leaves["h"]
            return getattr(functional, f"{cell}_cell")(
                leaves["input"], hx, *(leaves[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh"))
            )

        leaves = [t.requires_grad_() for t in tensors.values()]
        assert torch.autograd.gradcheck(fn, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(fn, leaves, fast_mode=True)


def test_stock_tools_work_on_ours():
    """Parametrised, pruned and replicated cells have no parameter of the plain name."""
    x = torch.randn(3, 4)
    theirs, ours = pair("LSTMCell")
    for tool in (
        lambda m: torch.nn.utils.parametrizations.weight_norm(m, "weight_hh"),
        lambda m: prune.l1_unstructured(m, "weight_ih", 0.5),
    ):
        close(tool(copy.deepcopy(ours))(x), tool(copy.deepcopy(theirs))(x))
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours.named_parameters():
        setattr(replica, name, parameter.detach())
    close(replica(x), theirs(x))
    other = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    close(torch.func.functional_call(ours, other, (x,)), torch.func.functional_call(theirs, other, (x,)))


@pytest.mark.parametrize("hidden", [6, 64])  # packed weights are kept of the larger one
@pytest.mark.parametrize("kind", KINDS)
def test_compiles(kind, hidden):
    torch._dynamo.reset()
    ours = getattr(nn, kind)(4, hidden)
    x = torch.randn(3, 4)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close(compiled(x), ours(x))
    with torch.no_grad():
        close(compiled(x, ours(x)), ours(x, ours(x)))
