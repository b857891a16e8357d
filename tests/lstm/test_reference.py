"""The specification against torch, in float64: every form of call that torch has; and its extras by their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops.reference import lstm as reference
from tests.lstm.calls import ALL, CELLS, Call, Shape, specification, torchs


@pytest.fixture(autouse=True)
def _torch():
    with dlops.backend("torch"):
        yield


@pytest.mark.parametrize("name", [name for name, shape in ALL.items() if shape.is_torchs])
def test_shapes(name):
    made = Call(ALL[name], torch.float64)
    of = ("y", "h", "c")
    exact, theirs = (
        made.known(kind, fn, lambda t: t, of) for kind, fn in (("exact", specification), ("torch", torchs))
    )
    for key, value in theirs.items():
        torch.testing.assert_close(
            exact[key], value, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k} of {name}: {m}"
        )


def random_recurrence(cell, steps=5, batch=3, inputs=2, hidden=4, proj=0, norm=False):
    """x, h0, c0, weights as keywords, in float64."""
    make = lambda *size: torch.randn(size, dtype=torch.float64) * 0.7  # noqa: E731
    rows, width = reference.GATES[cell] * hidden, proj or hidden
    weights = {"w_ih": make(rows, inputs), "w_hh": make(rows, width), "b_ih": make(rows), "b_hh": make(rows)}
    if proj:
        weights["w_hr"] = make(proj, hidden)
    if norm:
        weights |= {"norm_ih": make(rows), "norm_hh": make(rows)}
        if cell == "lstm":
            weights |= {"cell_weight": make(hidden), "cell_bias": make(hidden)}
    c0 = make(batch, hidden) if cell == "lstm" else None
    return make(steps, batch, inputs), make(batch, width), c0, weights


def test_layer_norm_is_torchs():
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((3, 7), (7,), (7,)))
    torch.testing.assert_close(reference.layer_norm(x, w, b, 1e-3), F.layer_norm(x, (7,), w, b, 1e-3))
    torch.testing.assert_close(reference.layer_norm(x, w), F.layer_norm(x, (7,), w))


def test_layer_norm_lstm_by_its_equations():
    """Ba et al. 2016, equations 20 to 22, written out."""
    x, h, c, w = random_recurrence("lstm", norm=True)
    x[2] = 0
    norm = lambda v, weight: F.layer_norm(v, v.shape[-1:]) * weight  # noqa: E731
    want = []
    state = h, c
    for t in range(len(x)):
        a = (
            norm(x[t] @ w["w_ih"].t(), w["norm_ih"])
            + norm(state[0] @ w["w_hh"].t(), w["norm_hh"])
            + w["b_ih"]
            + w["b_hh"]
        )
        i, f, g, o = a.chunk(4, -1)
        new = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        state = o.sigmoid() * (norm(new, w["cell_weight"]) + w["cell_bias"]).tanh(), new
        want.append(state[0])
    y, h_n, c_n, cells = reference.recurrence(x, h, c, cell="lstm", **w)
    torch.testing.assert_close(y, torch.stack(want))
    torch.testing.assert_close((h_n, c_n), state)
    assert torch.equal(cells[-1], c_n)


def test_layer_norm_gru_by_its_equations():
    x, h, _, w = random_recurrence("gru", norm=True)
    norm = lambda v, weight: F.layer_norm(v, v.shape[-1:]) * weight  # noqa: E731
    y, h_n, *_ = reference.recurrence(x, h, None, cell="gru", **w)
    for t in range(len(x)):
        r_x, z_x, n_x = (norm(x[t] @ w["w_ih"].t(), w["norm_ih"]) + w["b_ih"]).chunk(3, -1)
        r_h, z_h, n_h = (norm(h @ w["w_hh"].t(), w["norm_hh"]) + w["b_hh"]).chunk(3, -1)
        r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        h = (1 - z) * (n_x + r * n_h).tanh() + z * h
        torch.testing.assert_close(y[t], h)
    assert torch.equal(y[-1], h_n)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_sequences_apart(cell, reverse):
    x, h0, c0, w = random_recurrence(cell)
    lengths = torch.tensor([3, 0, 5])
    poisoned = x.masked_fill(torch.arange(5)[:, None, None] >= lengths[:, None], float("nan"))
    y, h, c, _ = reference.recurrence(poisoned, h0, c0, cell=cell, lengths=lengths, reverse=reverse, **w)
    for b, length in enumerate(lengths.tolist()):
        assert (y[length:, b] == 0).all()
        one = slice(b, b + 1)
        if length == 0:
            assert torch.equal(h[b], h0[b]) and (c is None or torch.equal(c[b], c0[b]))
            continue
        state = h0[one], None if c0 is None else c0[one]
        alone, h1, c1, _ = reference.recurrence(x[:length, one], *state, cell=cell, reverse=reverse, **w)
        torch.testing.assert_close(y[:length, one], alone)
        torch.testing.assert_close(h[one], h1)
        assert c is None or torch.allclose(c[one], c1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_reset_is_a_new_sequence(cell, reverse):
    x, h0, c0, w = random_recurrence(cell)
    reset = torch.zeros(5, 3, dtype=torch.bool)
    reset[2] = True
    y, h, *_ = reference.recurrence(x, h0, c0, cell=cell, reset=reset, reverse=reverse, **w)
    first, second = (x[3:], x[:3]) if reverse else (x[:2], x[2:])
    y1, *_ = reference.recurrence(first, h0, c0, cell=cell, reverse=reverse, **w)
    y2, h2, *_ = reference.recurrence(second, None, None, cell=cell, reverse=reverse, **w)
    torch.testing.assert_close(y, torch.cat([y2, y1] if reverse else [y1, y2]))
    torch.testing.assert_close(h, h2)


@pytest.mark.parametrize("proj", [0, 2])
def test_zoneout(proj):
    """Krueger et al. 2016, equation 5, by hand; and the expectation over all masks of one step."""
    x, h0, c0, w = random_recurrence("lstm", steps=3, proj=proj)
    keep_h, keep_c = torch.rand(3, 3, proj or 4) < 0.5, torch.rand(3, 3, 4) < 0.5
    y, h, c, cells = reference.recurrence(x, h0, c0, cell="lstm", keep_h=keep_h, keep_c=keep_c, **w)
    state = h0, c0
    for t in range(3):
        _, new_h, new_c, _ = reference.recurrence(x[t : t + 1], *state, cell="lstm", **w)
        state = torch.where(keep_h[t], state[0], new_h), torch.where(keep_c[t], state[1], new_c)
        torch.testing.assert_close((y[t], cells[t]), state)
    torch.testing.assert_close((h, c), state)
    _, plain_h, plain_c, _ = reference.recurrence(x[:1], h0, c0, cell="lstm", **w)
    _, h, c, _ = reference.recurrence(x[:1], h0, c0, cell="lstm", zoneout_h=0.3, zoneout_c=0.1, **w)
    torch.testing.assert_close(h, 0.3 * h0 + 0.7 * plain_h)
    torch.testing.assert_close(c, 0.1 * c0 + 0.9 * plain_c)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_a_weight_without_columns(cell):
    """One mask for all steps, of what W_hh sees: with one sample, zeros and factors in W_hh's columns."""
    x, h0, c0, w = random_recurrence(cell, batch=1)
    mask = torch.tensor([[0.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    y, *_ = reference.recurrence(x, h0, c0, cell=cell, dropout=mask, **w)
    want, *_ = reference.recurrence(x, h0, c0, cell=cell, **(w | {"w_hh": w["w_hh"] * mask}))
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("cell", CELLS)
def test_input_gates(cell):
    """Without w_ih, x is W_ih x."""
    x, h0, c0, w = random_recurrence(cell)
    want, *_ = reference.recurrence(x, h0, c0, cell=cell, **w)
    gates = x @ w["w_ih"].t()
    assert torch.equal(reference.recurrence(gates, h0, c0, cell=cell, **(w | {"w_ih": None}))[0], want)
    made = reference.gates(gates[0], h0 @ w["w_hh"].t(), w["b_ih"], w["b_hh"], h0, c0, cell=cell)
    assert torch.equal(made[0], want[0]) and len(made) == (2 if cell == "lstm" else 1)


TINY = dict(input=2, hidden=3, steps=3, batch=2)
OPTIONS = {
    "lstm": dict(layer_norm=True, zoneout=(0.2, 0.1), reset=True, lengths=(3, 2), proj=2),
    "gru": dict(layer_norm=True, zoneout=(0.2, 0.0), reset=True, lengths=(3, 0), bidirectional=True),
    "rnn_tanh": dict(lengths=(0, 3), reset=True),
    "rnn_relu": dict(bidirectional=True),
}


@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_derivatives(cell, options):
    """First and second in reverse, and forward."""
    shape = Shape(cell, **TINY, **(OPTIONS[cell] if options else {}))
    made = Call(shape, torch.float64)
    fn = lambda *t: tuple(specification(shape, dict(zip(made.tensors, t))).values())  # noqa: E731
    tensors = [t.requires_grad_() for t in made.tensors.values()]
    assert torch.autograd.gradcheck(fn, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, tensors, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_vmap(cell):
    x, h0, c0, w = random_recurrence(cell)
    lengths, reset = torch.tensor([3, 0, 5]), torch.rand(5, 3) < 0.3
    options = {"cell": cell, "lengths": lengths, "reset": reset}

    def fn(x, w_hh):
        return reference.recurrence(x, h0, c0, **options, **(w | {"w_hh": w_hh}))[:2]

    xs, weights = torch.stack([x, -x]), torch.stack([w["w_hh"], 2 * w["w_hh"]])
    for k, made in enumerate(zip(*torch.vmap(fn)(xs, weights))):
        torch.testing.assert_close(made, fn(xs[k], weights[k]))


def test_half_types_round_once():
    shape = Shape("lstm", hidden=20, steps=8)
    for dtype in (torch.float16, torch.bfloat16):
        tensors = shape.tensors(dtype)
        half, exact = (
            specification(shape, tensors),
            specification(shape, {name: t.double() for name, t in tensors.items()}),
        )
        ulp = 0.51 * torch.finfo(dtype).eps
        for name in ("y", "h", "c"):
            assert half[name].dtype is dtype
            assert (half[name].double() - exact[name]).abs().max() <= ulp * exact[name].abs().max()
        assert half["cells"].dtype is torch.float32
