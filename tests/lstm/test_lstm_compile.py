"""torch.compile, torch.export, fake tensors and opcheck of the recurrent networks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import dlops
from dlops import nn
from tests.lstm.calls import CELLS, Shape

ops = torch.ops.dlops


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


MODULES = {
    "lstm": lambda: nn.LSTM(4, 6, 2, bidirectional=True),
    "gru": lambda: nn.GRU(4, 6, batch_first=True),
    "rnn": lambda: nn.RNN(4, 6, 2, nonlinearity="relu"),
    "projection": lambda: nn.LSTM(4, 6, proj_size=3, bias=False),
    "layer norm": lambda: nn.LSTM(
        4, 6, layer_norm=True, zoneout=(0.1, 0.2), return_all_states=True, init="chrono", T_max=9
    ),
    "gru, layer norm": lambda: nn.GRU(4, 6, 2, layer_norm=True, zoneout=0.2, bidirectional=True),
}


def inputs_of(module, batch=3, grad=True):
    x = torch.randn(batch, 5, 4) if module.batch_first else torch.randn(5, batch, 4)
    return x.requires_grad_(grad)


def flat(results):
    return [t for r in results for t in (r if isinstance(r, tuple) else (r,))]


def loss(results):
    return sum(t.square().sum() for t in flat(results))


@pytest.mark.parametrize("name", MODULES)
def test_compiles_into_one_graph(name):
    module = MODULES[name]().eval()
    x = inputs_of(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    eager, traced = module(x), compiled(x)
    for a, b in zip(flat(traced), flat(eager)):
        close(a, b)
        assert a.stride() == b.stride()
    leaves = [x, *module.parameters()]
    for a, b in zip(torch.autograd.grad(loss(traced), leaves), torch.autograd.grad(loss(eager), leaves)):
        close(a, b)
    with torch.no_grad():
        for a, b in zip(flat(compiled(x)), flat(module(x))):
            close(a, b)


class Model(torch.nn.Module):
    """A network within another one, with a state of its own making."""

    def __init__(self, package):
        super().__init__()
        self.rnn = package.GRU(4, 6)
        self.cell = package.LSTMCell(6, 5)
        self.head = torch.nn.Linear(5, 2)

    def forward(self, x, h):
        y, _ = self.rnn(x, h)
        state = None
        for step in y:
            state = self.cell(step, state)
        return self.head(state[0])


def test_a_model_compiles_into_one_graph():
    model, x, h = Model(nn), torch.randn(5, 3, 4), torch.randn(1, 3, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(x, h), model(x, h))
    grads = [torch.autograd.grad(m(x, h).square().sum(), list(model.parameters())) for m in (compiled, model)]
    close(*grads)


def test_torchs_modules_compile_as_they_did():
    """What lets ours through lets nothing else through."""
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(Model(torch.nn), fullgraph=True, backend="aot_eager")(torch.randn(5, 3, 4), torch.randn(1, 3, 6))
    assert not torch._dynamo.config.allow_rnn


def test_compiles_where_the_compiler_comes_later():
    """In a process that imports Dynamo after the module was made."""
    code = """
import sys, torch, dlops
module = dlops.nn.LSTM(4, 5)
assert "torch._dynamo" not in sys.modules, "dlops must not import the compiler"
x = torch.randn(3, 2, 4)
assert torch.allclose(torch.compile(module, fullgraph=True, backend="eager")(x)[0], module(x)[0], atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_compiles_with_lengths_and_reset(kind):
    module = getattr(nn, kind)(4, 6, 2, bidirectional=True)
    x, reset = torch.randn(5, 3, 4), torch.rand(5, 3) < 0.4
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for lengths in (torch.tensor([2, 5, 0]), torch.tensor([5, 1, 1], dtype=torch.int32)):
        close(compiled(x, lengths=lengths, reset=reset), module(x, lengths=lengths, reset=reset))
    close(compiled(x, lengths=[1, 2, 3]), module(x, lengths=[1, 2, 3]))
    with pytest.raises(RuntimeError, match="lengths must be 0 to the number of steps"):
        compiled(x, lengths=torch.tensor([2, 6, 0]), reset=reset)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_compiles_with_dynamic_shapes(kind):
    """Batch and length stay symbols."""
    module = getattr(nn, kind)(4, 6, bidirectional=True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for steps, batch in ((5, 3), (6, 4), (7, 2), (9, 5)):
        x = torch.randn(steps, batch, 4, requires_grad=True)
        got, want = compiled(x), module(x)
        close(got, want)
        close(torch.autograd.grad(loss(got), x), torch.autograd.grad(loss(want), x))
    assert counter.frame_count <= 2


def test_compiles_in_training():
    """Dropouts and zoneout draw in the graph."""
    module = nn.LSTM(4, 32, 2, dropout=0.5, zoneout=(0.3, 0.3), recurrent_dropout=0.3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 4)
    a, b = compiled(x)[0], compiled(x)[0]
    assert a.isfinite().all() and not torch.equal(a, b)
    a.sum().backward()
    module.eval()
    close(compiled(x), module(x))


def test_compiled_modules_follow_their_parameters():
    module = nn.LSTM(4, 16)
    x = torch.randn(3, 2, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        with torch.no_grad():
            close(compiled(x), module(x))
            module.weight_hh_l0.mul_(-1.5)
        compiled(x)[0].sum().backward()
        torch.optim.SGD(module.parameters(), 0.1).step()
        module.zero_grad()


def test_packed_sequences_run_under_compile():
    """With graph breaks: how many sequences there are is in the data."""
    module = nn.GRU(4, 6)
    x = torch.randn(5, 3, 4)
    compiled = torch.compile(lambda x: module(pack_padded_sequence(x, [5, 3, 1]))[0].data, backend="aot_eager")
    close(compiled(x), module(pack_padded_sequence(x, [5, 3, 1]))[0].data)


@pytest.mark.parametrize("name", ["lstm", "gru", "layer norm"])
def test_exports(name):
    module = MODULES[name]().eval()
    x = inputs_of(module, grad=False)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0 if module.batch_first else 1: batch},))
        for n in (3, 7):
            x = inputs_of(module, n, grad=False)
            for a, b in zip(flat(program.module()(x)), flat(module(x))):
                close(a, b)
    assert any("dlops" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("name", MODULES)
def test_fake_and_meta_tensors(name):
    module = MODULES[name]()
    x = inputs_of(module)
    want = flat(module(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = flat(module(mode.from_tensor(x)))
        assert [(f.shape, f.stride(), f.dtype) for f in fake] == [(w.shape, w.stride(), w.dtype) for w in want]
        grads = torch.autograd.grad(loss(fake), list(module.parameters()))
        assert [g.shape for g in grads] == [p.shape for p in module.parameters()]
    with dlops.backend("auto"):
        meta = flat(module.to("meta")(x.detach().to("meta")))
    assert [m.shape for m in meta] == [w.shape for w in want]


def recurrence_arguments(cell, **given):
    """Of torch.ops.dlops.recurrence, but for save, states and variant."""
    shape = Shape(cell, **given)
    x, h0, c0, (w_ih, w_hh, b_ih, b_hh), norms = shape.split(shape.tensors(torch.float32))
    norm = (None,) * 3 if norms is None else (*norms[0][1:], None, None)[:3]
    if norms is not None:
        x, w_ih = x @ w_ih.t(), None
    c0 = None if c0 is None else c0[0]
    masks = (None, shape.mask(), None, None)
    settings = (cell, False, False, 0.0, 0.1, 1e-5)
    return [x, w_hh, w_ih, None, None, None, None, b_ih, b_hh, h0[0], c0, *norm, *masks, None, None, *settings]


TESTS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("options", [{}, {"reset": True, "layer_norm": True}], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_opcheck(cell, options):
    arguments = recurrence_arguments(cell, **options)
    for save, states in ((False, False), (True, True)):
        torch.library.opcheck(ops.recurrence.default, (*arguments, save, states, ""), test_utils=TESTS)
        layer = (*arguments[:4], *arguments[7:], save, states, "")
        torch.library.opcheck(ops.recurrent_layer.default, layer, test_utils=TESTS)
    y, _, _, saved, c, hat, rstd = ops.recurrence(*arguments, True, True, "")
    x, w_hh, w_ih, *_ = arguments
    present = lambda t: t if t.numel() else None  # noqa: E731
    lstm, norm = cell == "lstm", w_ih is None
    made = (y, saved, present(c), present(hat), present(rstd))
    own = (None if norm else x, w_hh, w_ih, None, *arguments[9:11], *made)
    needs = [not norm, True, lstm, norm, False, not norm, True, False, True, True, norm, *(lstm and norm,) * 2, False]
    backward = (torch.ones_like(y), None, None, None, *own, *arguments[11:], [int(n) for n in needs], "")
    torch.library.opcheck(ops.recurrence_backward.default, backward, test_utils=TESTS)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_cells(cell):
    shape = Shape(cell)
    x, h0, c0, (w_ih, w_hh, b_ih, b_hh), _ = shape.split(shape.tensors(torch.float32))
    x, h, c = x[0], h0[0], None if c0 is None else c0[0]
    torch.library.opcheck(ops.recurrence_pack.default, (w_hh, w_hh.shape[0] // 7), test_utils=TESTS[:1])
    torch.library.opcheck(
        ops.recurrent_cell.default, (x, w_ih, w_hh, None, None, b_ih, b_hh, h, c, cell), test_utils=TESTS
    )
    halves = x @ w_ih.t(), h @ w_hh.t()
    before = h if cell == "gru" else None
    rest = (None, None, None, None, None, cell, 0.0, 0.0, 1e-5)
    made = ops.gates(*halves, b_ih, b_hh, before, c, *rest, True)
    torch.library.opcheck(ops.gates.default, (*halves, b_ih, b_hh, before, c, *rest, True), test_utils=TESTS)
    backward = (torch.ones_like(h), None, halves[0], before, c, made[2], None, None, *rest)
    torch.library.opcheck(ops.gates_backward.default, backward, test_utils=TESTS)


def test_autocast_compiles():
    module, x = nn.LSTM(4, 6), torch.randn(5, 3, 4)

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)[0]

    y = torch.compile(cast, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype is torch.bfloat16
    close(y, cast(x), 0.02)
