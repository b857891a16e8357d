"""Layers over whole sequences, forward and backward, on every device: the error rule over the grid of options, and bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import dlops
from dlops.functional import _lstm
from tests.lstm.calls import ALL, CELLS, DTYPES, Shape, call, ours, same_bits, variants

WIDE = ("full lanes", "past the lanes", "long sums", "layer norm, wide")  # too slow for the simt runner
HALF = (
    "plain", "past the lanes", "long sums", "no bias", "lengths", "packed", "projection", "layer norm", "zoneout, reset",
)  # fmt: skip
TAKES_ALL = {"plain", "lengths"}  # no variant may refuse these
EMULATED = (
    "plain",
    "H = 1",
    "T = 1",
    "bidirectional",
    "packed",
    "reset, lengths",
    "layer norm, lengths",
    "projection, zoneout",
)


def option(name: str) -> str:
    return name.partition(": ")[2]


def check(name, dtype, device, variant=None):
    shape = ALL[name]
    if device.simt and option(name) not in EMULATED:
        pytest.skip("part of the grid for the simt runner")
    try:
        return call(shape, dtype).check(device.torch_device, variant)
    except ValueError as error:
        if variant is None or option(name) in TAKES_ALL or f"'{variant}'" not in str(error):
            raise
        pytest.skip(f"refused: {error}")


@pytest.mark.parametrize("name", ALL)
def test_float32(device, name):
    check(name, torch.float32, device)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if option(name) in HALF])
def test_half_types(device, name, dtype):
    if device.simt and dtype is torch.float16:
        pytest.skip("part of the grid for the simt runner")
    check(name, dtype, device)


@pytest.mark.parametrize(
    "name", [name for name in ALL if option(name) in ("plain", "lengths", "layer norm, lengths", "projection")]
)
def test_every_variant(device, name):
    for variant in variants(device):
        check(name, torch.float32, device, variant)


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_everything(device, name, dtype):
    for variant in (None, *variants(device)):
        check(name, dtype, device, variant)


def test_unknown_variants_are_refused():
    shape = Shape()
    with pytest.raises(ValueError, match="'warp'"):
        ours(shape, shape.tensors(torch.float32), variant="warp")


# ---- bits: nothing but the sample itself has a say in its result


def run(shape, tensors, device="cpu", **more):
    with torch.no_grad():
        return ours(shape, {name: t.to(device) for name, t in tensors.items()}, **more)


@pytest.fixture
def exact_input(device, monkeypatch):
    """On CUDA torch computes W_ih x, and may round it otherwise in another batch: here so exactly that it does not."""
    if device.simt or device.torch_device == "cuda":
        product = lambda x, w, ours: torch.nn.functional.linear(x.double(), w.double()).to(x.dtype)  # noqa: E731
        monkeypatch.setattr(_lstm, "_input_product", product)


@pytest.mark.usefixtures("exact_input")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [5, 48, 300])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sample_is_the_same_in_any_batch(device, cell, hidden, dtype):
    if device.simt and (hidden != 5 or dtype is not torch.float32):
        pytest.skip("part of the grid for the simt runner")
    shape = Shape(cell, input=9, hidden=hidden, steps=3, batch=7 if device.simt else 37)
    tensors = shape.tensors(dtype)
    whole = run(shape, tensors, device.torch_device)
    batched = {"x", "h0", "c0"}
    for rows in (slice(0, 1), slice(3, 4), slice(2, 7), slice(shape.batch - 2, shape.batch)):
        part = {name: t[:, rows] if name in batched else t for name, t in tensors.items()}
        few = dataclasses.replace(shape, batch=part["x"].shape[1])
        same_bits(run(few, part, device.torch_device), {name: t[:, rows] for name, t in whole.items()}, f"{rows}")


def lengths_apart(shape, dtype, device):
    """A batch with lengths beside its sequences, each alone; states and outputs to the last bit."""
    tensors = shape.tensors(dtype)
    poisoned = dict(tensors)
    beyond = torch.arange(shape.steps)[:, None] >= torch.tensor(shape.lengths)
    poisoned["x"] = tensors["x"].masked_fill(beyond[..., None], float("nan"))
    whole = run(shape, poisoned, device)
    for b, length in enumerate(shape.lengths):
        assert all((whole[name][length:, b] == 0).all() for name in ("y", "cells") if name in whole)
        alone = {name: t[:, b : b + 1] if name in ("x", "h0", "c0") else t for name, t in tensors.items()}
        if length == 0:
            for name, state in (("h", "h0"), ("c", "c0")):
                if name in whole:
                    assert torch.equal(whole[name][:, b].cpu(), tensors[state][:, b])
            continue
        alone["x"] = alone["x"][:length]
        one = dataclasses.replace(shape, batch=1, steps=length, lengths=None, packed=False)
        made = {name: t[:length, b : b + 1] if name in ("y", "cells") else t[:, b : b + 1] for name, t in whole.items()}
        same_bits(run(one, alone, device), made, f"sequence {b} of {shape}")


@pytest.mark.usefixtures("exact_input")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_sequences_apart(device, cell, batch_first):
    lengths = (4, 0, 9, 1, 9, 7)
    shape = Shape(cell, hidden=20, steps=9, batch=6, lengths=lengths, bidirectional=True, batch_first=batch_first)
    lengths_apart(shape, torch.float32, device.torch_device)
    lengths_apart(dataclasses.replace(shape, layers=2), torch.bfloat16, device.torch_device)


@pytest.mark.usefixtures("exact_input")
@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences_are_sequences_apart(device, cell):
    shape = Shape(cell, hidden=20, steps=9, batch=5, lengths=(9, 7, 7, 4, 1), bidirectional=True, packed=True)
    lengths_apart(shape, torch.float32, device.torch_device)


RESET = [
    *((cell, {}) for cell in CELLS),
    *((cell, {"layer_norm": True, "zoneout": (0.25, 0.5)}) for cell in ("lstm", "gru")),
    ("lstm", {"proj": 3}),
]


@pytest.mark.usefixtures("exact_input")
@pytest.mark.parametrize(("cell", "extras"), RESET, ids=str)
def test_reset_is_a_new_sequence(device, cell, extras):
    """To the last bit, in both directions: a batch with resets beside its pieces, each alone. (Layer norms and projections on
    CUDA multiply h by torch too.)"""
    exact = not (extras and (device.simt or device.torch_device == "cuda"))
    same = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    shape = Shape(cell, hidden=18, steps=8, batch=3, bidirectional=True, state=False, **extras)
    tensors = {name: t.to(device.torch_device) for name, t in shape.tensors(torch.float32).items()}
    x, _, _, params, norms = shape.split(tensors)
    function, more = getattr(dlops.functional, cell), {}
    if cell in ("lstm", "gru"):
        more["zoneout"] = shape.zoneout if cell == "lstm" else shape.zoneout[0]
    mask = torch.zeros(8, 3, dtype=torch.bool)
    mask[3, :2] = mask[5, 1:] = mask[0, 2] = True

    def layers(x, which, **given):
        """Both directions, or one of them as if it were the only one."""
        part = slice(which * len(params) // 2, (which + 1) * len(params) // 2) if which is not None else slice(None)
        if norms is not None:
            given["norms"] = norms if which is None else norms[which : which + 1]
        return function(x, None, params[part], True, 1, 0.0, False, which is None, False, **more, **given)

    with torch.no_grad():
        y, *states = layers(x, None, reset=mask.to(x.device))
        for direction, half in enumerate(y.chunk(2, dim=-1)):
            turn = (lambda t: t.flip(0)) if direction else (lambda t: t)  # so that a piece is a piece in time
            for b in range(3):
                starts = [0, *(t for t in range(1, 8) if turn(mask)[t, b]), 8]
                for start, end in zip(starts, starts[1:]):
                    piece, *last = layers(turn(x)[start:end, b : b + 1], direction)
                    assert same(piece[:, 0], turn(half)[start:end, b]), (direction, b, start, end)
                for state, alone in zip(states, last):
                    assert same(state[direction, b], alone[0, 0])


@pytest.mark.parametrize("name", ["plain", "full lanes", "lengths", "packed", "layer norm, wide", "reset, lengths"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_threads_change_no_bit(cell, name):
    shape = dataclasses.replace(ALL[f"{cell}: {name}"], hidden=40)
    made = call(shape)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(made.run(ours, lambda t: t))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        same_bits(found[0], other, f"{shape}")


def test_again_is_the_same(device):
    made = call(ALL["lstm: layer norm, lengths"])
    same_bits(*(made.run(ours, lambda t: t.to(device.torch_device)) for _ in range(2)))


@pytest.mark.parametrize("cell", CELLS)
def test_absent_elements_bring_in_nothing(device, cell):
    """NaN beyond the lengths, in the input and in the gradients of the outputs."""
    shape = Shape(cell, lengths=(6, 0, 2), bidirectional=True, layers=2)
    beyond = (torch.arange(6)[:, None] >= torch.tensor(shape.lengths))[..., None]
    clean = {name: t.to(device.torch_device) for name, t in shape.tensors(torch.float32).items()}
    found = []
    for fill in (1.0, float("nan")):
        leaves = dict(clean)
        leaves["x"] = clean["x"].masked_fill(beyond.to(clean["x"].device), fill)
        leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
        results = ours(shape, leaves)
        outputs = [t for name, t in results.items() if name != "cells"]
        grads = [torch.ones_like(t) for t in outputs]
        grads[0] = grads[0].masked_fill(beyond.to(grads[0].device), fill)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), grads)
        found.append(results | dict(zip((f"d{name}" for name in leaves), gradients)))
    assert all(t.isfinite().all() for t in found[1].values())
    same_bits(*({name: t.detach() for name, t in made.items()} for made in found))
    assert (found[0]["dx"].masked_select(beyond.to(found[0]["dx"].device)) == 0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_nan_flows_as_in_torch(device, cell):
    """A NaN in one sample stays in it, and reaches every later step of it."""
    shape = Shape(cell, hidden=9, state=False)
    tensors = shape.tensors(torch.float32)
    tensors["x"][2, 1, 0] = float("nan")
    y = run(shape, tensors, device.torch_device)["y"]
    assert y[2:, 1].isnan().all() and y[:2].isfinite().all() and y[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
def test_large_gates_saturate(device, cell):
    """No overflow on the way to 0 and 1."""
    shape = Shape(cell, hidden=17)
    tensors = {name: t * 200 if name.startswith("w_ih") else t for name, t in shape.tensors(torch.float32).items()}
    got = run(shape, tensors, device.torch_device)
    with dlops.backend("torch"):
        want = run(shape, {name: t.double() for name, t in tensors.items()})
    for name, value in got.items():
        torch.testing.assert_close(
            value.cpu().double(), want[name], rtol=1e-4, atol=1e-4 * float(want[name].abs().max())
        )
