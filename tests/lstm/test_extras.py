"""What torch does not have: zoneout, recurrent dropout and layer norm in training, resets, lengths, all states."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import dlops
from dlops import functional, nn
from dlops.reference import lstm as reference
from tests.lstm.calls import CELLS, Shape, named, ours

SHAPES = {
    "lstm": Shape("lstm", hidden=11),
    "lstm, projection": Shape("lstm", hidden=11, proj=4),
    "lstm, layer norm": Shape("lstm", hidden=11, layer_norm=True),
    "lstm, lengths": Shape("lstm", hidden=11, lengths=(6, 0, 3), reset=True),
    "gru": Shape("gru", hidden=11),
    "gru, layer norm": Shape("gru", hidden=11, layer_norm=True, lengths=(2, 6, 4)),
}


def results_and_gradients(fn, tensors):
    """fn(tensors) -> results by name; with the gradients of a weighted sum."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    results = fn(leaves)
    generator = torch.Generator().manual_seed(4)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in results.values())
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found = {name: t.detach() for name, t in results.items()} | {f"d{name}": g for name, g in zip(leaves, grads)}
    return {name: t.cpu().double() for name, t in found.items()}


def with_masks(shape, tensors, masks):
    """The specification in float64 with these masks."""

    def fn(leaves):
        x, h0, c0, params, norms = shape.split(leaves)
        lengths = None if shape.lengths is None else torch.tensor(shape.lengths)
        made = reference.layers(
            x, h0, c0, params, cell=shape.cell, norms=norms, masks=[masks], lengths=lengths, reset=shape.mask()
        )
        return named(*made)

    return results_and_gradients(fn, {name: t.double() for name, t in tensors.items()})


def close(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=2e-5 * float(value.abs().max()) + 1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


def kept(sequence, start, mask):
    """Which elements are what they were before the step, [T, B, *]."""
    before = torch.cat([start, sequence[:-1]])
    if mask is not None:
        before = before.masked_fill(mask[..., None], 0)
    return sequence == before


@pytest.mark.parametrize("name", SHAPES)
def test_zoneout_in_training(device, name):
    """The masks can be read off the results: what was kept has the same bits as before. With them, all results and
    gradients are the specification's, and as many are kept as were asked for."""
    shape = SHAPES[name]
    tensors = shape.tensors(torch.float32)
    torch.manual_seed(1)
    rates = (0.4, 0.2)
    asked = dataclasses.replace(shape, zoneout=rates)
    placed = {name: t.to(device.torch_device) for name, t in tensors.items()}
    got = results_and_gradients(lambda leaves: ours(asked, leaves, train=True), placed)
    masks = {"keep_h": kept(got["y"], tensors["h0"].double(), shape.mask())}
    if shape.cell == "lstm":
        masks["keep_c"] = kept(got["cells"], tensors["c0"].double(), shape.mask())
    close(got, with_masks(shape, tensors, masks))
    present = torch.ones(6, 3, dtype=torch.bool)
    if shape.lengths is not None:
        present = torch.arange(6)[:, None] < torch.tensor(shape.lengths)
    for mask, rate in zip(masks.values(), rates):
        kept_values = mask[present].double()
        assert abs(float(kept_values.mean()) - rate) < 4 * (rate * (1 - rate) / kept_values.numel()) ** 0.5


@pytest.mark.parametrize("name", SHAPES)
def test_recurrent_dropout_in_training(device, name):
    """The same seed draws the same mask. With weights that show it, and then with those of the test."""
    shape, p = SHAPES[name], 0.4
    tensors = shape.tensors(torch.float32)
    placed = {name: t.to(device.torch_device) for name, t in tensors.items()}

    def run(leaves):
        torch.manual_seed(3)
        return ours(shape, leaves, train=True, recurrent_dropout=p)

    mask = (probed(shape, placed, p) / (1 - p)).cpu()
    assert 0 < mask.count_nonzero() < mask.numel()
    close(results_and_gradients(run, placed), with_masks(shape, tensors, {"dropout": mask.double()}))


def probed(shape, tensors, p):
    """The mask [B, P] of zeros and ones that the seed 3 draws: one step from h = 1 whose gates tell what W_hh saw."""
    width, batch, device = shape.width, shape.batch, tensors["x"].device
    rows = reference.GATES[shape.cell] * width
    w_hh = torch.zeros(rows, width, device=device)
    w_hh[2 * width : 3 * width] = torch.eye(width)  # gate g, or n
    x, h = torch.zeros(shape.steps, batch, 1, device=device), torch.ones(1, batch, width, device=device)
    torch.manual_seed(3)
    options = ([torch.zeros(rows, 1, device=device), w_hh], False, 1, 0.0, True, False, False)
    state = (h, torch.zeros_like(h)) if shape.cell == "lstm" else h
    with torch.no_grad():
        y, *_ = getattr(functional, shape.cell)(x, state, *options, recurrent_dropout=p)
    base = 0.0 if shape.cell == "lstm" else 0.5  # gru: z = 1/2 of h = 1 stays
    return (y[0] > base + 0.05).float()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_dropouts_are_deterministic_under_a_seed(device, kind):
    zoneout = (0.2, 0.3) if kind == "LSTM" else 0.2
    torch.manual_seed(0)
    module = getattr(nn, kind)(4, 8, 2, dropout=0.3, bidirectional=True, zoneout=zoneout, recurrent_dropout=0.3).to(
        device.torch_device
    )
    x = torch.randn(5, 3, 4, device=device.torch_device)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y, _ = module(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1]))
    assert not torch.equal(found[0][0], found[2][0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_draws_the_same_masks(reentrant):
    module = nn.LSTM(4, 8, 2, dropout=0.3, zoneout=(0.2, 0.3), recurrent_dropout=0.3)
    x = torch.randn(5, 3, 4, requires_grad=True)
    found = []
    for run in (lambda x: module(x)[0], lambda x: checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant)):
        torch.manual_seed(2)
        module.zero_grad()
        x.grad = None
        run(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_recurrent_dropout_is_one_mask_for_the_sequence():
    """A plain recurrence h' = h W with W = 1: what is dropped is dropped at every step."""
    p, width = 0.5, 64
    weights = [torch.zeros(4 * width, 1), torch.zeros(4 * width, width)]
    weights[1][2 * width : 3 * width] = 3 * torch.eye(width)  # g sees h
    torch.manual_seed(0)
    h = torch.ones(1, 2, width)
    with torch.no_grad():
        y, *_ = functional.lstm(
            torch.zeros(6, 2, 1), (h, 0 * h), weights, False, 1, 0.0, True, False, False, recurrent_dropout=p
        )  # fmt: skip
    alive = y > 0
    assert (alive == alive[0]).all() and 0.3 < alive.float().mean() < 0.7 and not torch.equal(alive[0, 0], alive[0, 1])


# ---- modules


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_reset(kind, batch_first):
    """In the order of the input's dimensions, and without a batch."""
    torch.manual_seed(0)
    module = getattr(nn, kind)(4, 6, batch_first=batch_first, bidirectional=True)
    x = torch.randn(3, 5, 4) if batch_first else torch.randn(5, 3, 4)
    lengths = [2, 5, 0]
    reset = torch.rand(x.shape[:2]) < 0.4
    with torch.no_grad():
        y, states = module(x, lengths=lengths, reset=reset)
        for given in (torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32), tuple(lengths)):
            assert torch.equal(module(x, lengths=given, reset=reset)[0], y)
        for b in range(3):
            one = (lambda t, b=b: t[b]) if batch_first else (lambda t, b=b: t[:, b])
            alone, last = module(one(x), lengths=lengths[b : b + 1], reset=one(reset))
            assert torch.equal(alone, one(y))
            for state, want in zip(*((s if isinstance(s, tuple) else (s,)) for s in (last, states))):
                assert torch.equal(state, want[:, b])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_all_states(device, layer_norm):
    torch.manual_seed(0)
    module = nn.LSTM(
        4, 6, 2, bidirectional=True, batch_first=True, return_all_states=True, layer_norm=layer_norm, proj_size=2
    ).to(device.torch_device)
    x = torch.randn(3, 5, 4, device=device.torch_device)
    y, (h, c), cells = module(x)
    assert y.shape == (3, 5, 4) and cells.shape == (3, 5, 12) and h.shape == (4, 3, 2) and c.shape == (4, 3, 6)
    torch.testing.assert_close(cells[:, -1, :6], c[2], rtol=0, atol=0)
    torch.testing.assert_close(cells[:, 0, 6:], c[3], rtol=0, atol=0)
    grads = torch.autograd.grad(cells.square().sum(), list(module.parameters()), allow_unused=True)
    with dlops.backend("torch"):
        exact = module.cpu().double()
        want = torch.autograd.grad(
            exact(x.cpu().double())[2].square().sum(), list(exact.parameters()), allow_unused=True
        )
    for (name, _), a, b in zip(exact.named_parameters(), grads, want):
        assert a is not None or b is None or not b.any(), name
        if b is not None and a is not None:
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-7)
    module.float()
    unbatched = nn.LSTM(4, 6, return_all_states=True)
    assert unbatched(torch.randn(5, 4))[2].shape == (5, 6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layer_norm_module_is_the_specification(device, kind):
    torch.manual_seed(0)
    module = getattr(nn, kind)(5, 7, 2, bidirectional=True, layer_norm=True)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    x = torch.randn(6, 3, 5)
    norms = [tuple(p.double() for p in each) for each in module._norms()]
    want, *_ = reference.layers(
        x.double(), None, None, [p.double() for p in module._flat_weights], cell=kind.lower(), num_layers=2, bidirectional=True,
        norms=norms,
    )  # fmt: skip
    module.to(device.torch_device)
    y, _ = module(x.to(device.torch_device))
    torch.testing.assert_close(y.cpu().double(), want, rtol=1e-4, atol=1e-5)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_cost_no_gradient_beyond_them(device, cell):
    """dx is zero past the lengths and the weights' gradients are those of the sequences apart."""
    shape = Shape(cell, lengths=(6, 2, 0), bidirectional=True)
    tensors = {name: t.to(device.torch_device) for name, t in shape.tensors(torch.float32).items()}
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    grads = torch.autograd.grad(ours(shape, leaves)["y"].square().sum(), list(leaves.values()))
    grads = dict(zip(leaves, grads))
    total = None
    for b, length in enumerate(shape.lengths):
        if length == 0:
            assert not grads["x"][:, b].any() and not grads["h0"][:, b].any()
            continue
        part = {name: t[:, b : b + 1] if name in ("x", "h0", "c0") else t for name, t in tensors.items()}
        part["x"] = part["x"][:length]
        alone = {name: t.detach().requires_grad_() for name, t in part.items()}
        one = Shape(cell, steps=length, batch=1, bidirectional=True)
        found = dict(zip(alone, torch.autograd.grad(ours(one, alone)["y"].square().sum(), list(alone.values()))))
        torch.testing.assert_close(grads["x"][:length, b : b + 1], found["x"], rtol=1e-5, atol=1e-6)
        assert not grads["x"][length:, b].any()
        weights = {name: g for name, g in found.items() if name not in ("x", "h0", "c0")}
        total = weights if total is None else {name: total[name] + g for name, g in weights.items()}
    for name, want in total.items():
        torch.testing.assert_close(grads[name], want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("backend", ["dlops", "torch"])
def test_layer_norm_reads_nothing_beyond_the_lengths(backend):
    module, x = nn.LSTM(4, 6, layer_norm=True), torch.randn(5, 2, 4)
    x[3:, 0] = float("nan")
    x.requires_grad_()
    with dlops.backend(backend):
        y, _ = module(x, lengths=[3, 5])
        grads = torch.autograd.grad(y.sum(), [x, *module.parameters()])
    assert y.isfinite().all() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_masks_under_another_default_type(dtype):
    module, x = nn.LSTM(4, 6, recurrent_dropout=0.5, zoneout=(0.1, 0.1)), torch.randn(5, 2, 4)
    torch.set_default_dtype(dtype)
    try:
        assert module(x)[0].dtype is torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
