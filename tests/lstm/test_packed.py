"""PackedSequence in and out, beside torch's modules and beside `lengths`."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import dlops
from dlops import nn
from tests.lstm.test_lstm_modules import KINDS, close, pair, state_for

LENGTHS = [2, 6, 1, 6]


@pytest.fixture(params=["auto", "dlops"], autouse=True)
def _both(request):
    with dlops.backend(request.param):
        yield


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "kwargs", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_as_torch(kind, kwargs, given):
    """Sequences in any order: outputs, states and gradients."""
    theirs, ours = pair(kind, kwargs)
    padded = torch.randn(4, 6, 4) if theirs.batch_first else torch.randn(6, 4, 4)
    state = state_for(theirs, 4) if given else None
    found = []
    for module in (ours, theirs):
        x = padded.clone().requires_grad_()
        packed = pack_padded_sequence(x, LENGTHS, module.batch_first, enforce_sorted=False)
        y, states = module(packed, state)
        assert isinstance(y, PackedSequence)
        last = states if isinstance(states, tuple) else (states,)
        loss = y.data.square().sum() + sum(s.sum() for s in last)
        grads = torch.autograd.grad(loss, [x, *module.parameters()])
        found.append([*y[:1], *last, *grads])
        assert torch.equal(y.batch_sizes, packed.batch_sizes) and torch.equal(
            y.unsorted_indices, packed.unsorted_indices
        )
    close(*found)


def test_projection():
    theirs, ours = pair("LSTM", {"proj_size": 3, "bidirectional": True})
    packed = pack_sequence([torch.randn(n, 4) for n in (5, 3, 3, 1)])
    (y, states), (want, want_states) = ours(packed), theirs(packed)
    assert y.sorted_indices is None
    close(y.data, want.data)
    close(states, want_states)


@pytest.mark.parametrize("kind", KINDS)
def test_as_lengths(kind):
    """The same bits as `lengths` on the padded input, states in the order of the caller's sequences."""
    _, ours = pair(kind, {"num_layers": 2, "bidirectional": True})
    x, state = torch.randn(6, 4, 4), state_for(ours, 4)
    with torch.no_grad(), dlops.backend("dlops"):
        y, states = ours(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), state)
        want, want_states = ours(x, state, lengths=LENGTHS)
    assert torch.equal(pad_packed_sequence(y)[0], want)
    for a, b in zip(states, want_states) if isinstance(states, tuple) else ((states, want_states),):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_reset(kind):
    """As a PackedSequence, or a tensor in the order of input.data."""
    _, ours = pair(kind)
    x, reset = torch.randn(6, 4, 4), torch.rand(6, 4) < 0.4
    packed, packed_reset = (pack_padded_sequence(t, LENGTHS, enforce_sorted=False) for t in (x, reset))
    with torch.no_grad(), dlops.backend("dlops"):
        want, _ = ours(x, lengths=LENGTHS, reset=reset)
        for given in (packed_reset, packed_reset.data):
            assert torch.equal(pad_packed_sequence(ours(packed, reset=given)[0])[0], want)
    other = pack_padded_sequence(reset, [6, 6, 6, 6])
    with pytest.raises(ValueError, match=f"{kind}: reset was packed with other lengths than input"):
        ours(packed, reset=other)
    with pytest.raises(ValueError, match=rf"{kind}: reset has shape \[6, 4\], expected \[15\]"):
        ours(packed, reset=reset)
    with pytest.raises(ValueError, match=f"{kind}: lengths must be None with a PackedSequence"):
        ours(packed, lengths=LENGTHS)


def test_all_states():
    module = nn.LSTM(4, 5, bidirectional=True, return_all_states=True, layer_norm=True)
    x = torch.randn(6, 4, 4)
    with torch.no_grad():
        y, (h, c), cells = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
        want, (want_h, want_c), want_cells = module(x, lengths=LENGTHS)
    assert isinstance(cells, PackedSequence)
    close(pad_packed_sequence(y)[0], want)
    close(pad_packed_sequence(cells)[0], want_cells)
    close((h, c), (want_h, want_c))
    ends = torch.stack([want_cells[n - 1, b, :5] for b, n in enumerate(LENGTHS)])
    close(ends, c[0])


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind):
    _, ours = pair(kind)
    packed, wide = (pack_padded_sequence(torch.randn(6, 4, n), LENGTHS, enforce_sorted=False) for n in (4, 5))
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 4, got 5"):
        ours(wide)
    for batch in (3, 5):
        hidden = r"hidden\[0\]" if kind == "LSTM" else "hidden"
        with pytest.raises(RuntimeError, match=rf"Expected {hidden} size \(1, 4, 6\), got \[1, {batch}, 6\]"):
            ours(packed, state_for(ours, batch))
    with pytest.raises(ValueError, match="dtype"):
        ours(packed.double())
    if kind == "LSTM":
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 4, 6\), got \[1, 4, 7\]"):
            ours(packed, (torch.randn(1, 4, 6), torch.randn(1, 4, 7)))


def test_second_derivative():
    _, ours = pair("LSTM", {"bidirectional": True})
    x = torch.randn(6, 4, 4)

    def penalty(module, x):
        x = x.detach().requires_grad_()
        y, _ = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
        (g,) = torch.autograd.grad(y.data.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, *module.parameters()])

    got = penalty(ours, x)
    with dlops.backend("torch"):
        want = penalty(ours.double(), x.double())
    for a, b in zip(got, want):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
