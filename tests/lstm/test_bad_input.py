"""Every error that torch raises is raised, with the same type and like words; what torch does not know has errors of its own."""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops import functional, nn

X = (5, 3, 4)  # T, B, I


def t(*size, **kwargs):
    return torch.ones(size, **kwargs)


# name: (arguments of the constructor, keywords)
CONSTRUCTORS = {
    "projection as wide as hidden": ("LSTM", (4, 6), {"proj_size": 6}),
    "projection wider than hidden": ("LSTM", (4, 6), {"proj_size": 7}),
    "projection < 0": ("LSTM", (4, 6), {"proj_size": -1}),
    "projection of a GRU": ("GRU", (4, 6), {"proj_size": 2}),
    "projection of an RNN": ("RNN", (4, 6), {"proj_size": 2}),
    "dropout 2": ("LSTM", (4, 6, 2), {"dropout": 2}),
    "dropout True": ("GRU", (4, 6, 2), {"dropout": True}),
    "no hidden": ("LSTM", (4, 0), {}),
    "no input": ("LSTM", (0, 4), {}),
    "hidden 1.5": ("GRU", (4, 1.5), {}),
    "no layers": ("GRU", (4, 6, 0), {}),
    "bias 1": ("LSTM", (4, 6), {"bias": 1}),
    "batch_first 1": ("LSTM", (4, 6), {"batch_first": 1}),
    "nonlinearity": ("RNN", (4, 6), {"nonlinearity": "sigmoid"}),
    "unknown keyword": ("LSTM", (4, 6), {"depth": 3}),
    "missing size": ("LSTM", (4,), {}),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name):
    kind, args, kwargs = CONSTRUCTORS[name]
    with pytest.raises((ValueError, TypeError)) as theirs:
        getattr(torch.nn, kind)(*args, **kwargs)
    with pytest.raises(type(theirs.value)) as ours:
        getattr(nn, kind)(*args, **kwargs)
    assert str(ours.value) == str(theirs.value)


# name: (kind, keywords of the constructor, arguments of the call, words that both messages have)
CALLS = {
    "input of 1 dimension": ("LSTM", {}, (t(4),), ["2D or 3D", "1D"]),
    "input of 4 dimensions": ("GRU", {}, (t(2, 5, 3, 4),), ["2D or 3D", "4D"]),
    "rnn: input of 4 dimensions": ("RNN", {}, (t(2, 5, 3, 4),), ["2D or 3D", "4D"]),
    "features": ("LSTM", {}, (t(5, 3, 5),), ["input_size", "4", "5"]),
    "features of a GRU": ("GRU", {}, (t(5, 3, 5),), ["input_size", "4", "5"]),
    "dtype": ("LSTM", {}, (t(*X, dtype=torch.float64),), ["float64", "float32"]),
    "dtype of an RNN": ("RNN", {}, (t(*X, dtype=torch.bfloat16),), ["bfloat16", "float32"]),
    "h of another batch": ("LSTM", {}, (t(*X), (t(1, 2, 6), t(1, 3, 6))), ["hidden.0.", "1, 3, 6", "1, 2, 6"]),
    "c of another batch": ("LSTM", {}, (t(*X), (t(1, 3, 6), t(1, 2, 6))), ["hidden.1.", "1, 3, 6", "1, 2, 6"]),
    "h of another size": ("GRU", {}, (t(*X), t(1, 3, 5)), ["hidden size", "1, 3, 6", "1, 3, 5"]),
    "h of other layers": ("RNN", {"num_layers": 2}, (t(*X), t(1, 3, 6)), ["hidden size", "2, 3, 6", "1, 3, 6"]),
    "h of one direction": ("GRU", {"bidirectional": True}, (t(*X), t(1, 3, 6)), ["hidden size", "2, 3, 6", "1, 3, 6"]),
    "h as wide as c": (
        "LSTM",
        {"proj_size": 2},
        (t(*X), (t(1, 3, 6), t(1, 3, 6))),
        ["hidden.0.", "1, 3, 2", "1, 3, 6"],
    ),
    "c as wide as h": (
        "LSTM",
        {"proj_size": 2},
        (t(*X), (t(1, 3, 2), t(1, 3, 2))),
        ["hidden.1.", "1, 3, 6", "1, 3, 2"],
    ),
    "h of 2 dimensions": ("LSTM", {}, (t(*X), (t(3, 6), t(3, 6))), ["hx and cx should", "2-D, 2-D"]),
    "h of a batch": ("LSTM", {}, (t(5, 4), (t(1, 1, 6), t(1, 6))), ["hx and cx should", "3-D, 2-D"]),
    "gru: h of 2 dimensions": ("GRU", {}, (t(*X), t(3, 6)), ["hx should also be 3-D", "2-D"]),
    "rnn: h of a batch": ("RNN", {}, (t(5, 4), t(1, 1, 6)), ["hx should also be 2-D", "3-D"]),
    "three states": ("LSTM", {}, (t(*X), (t(1, 3, 6),) * 3), ["two|hx"]),
    "no steps": ("LSTM", {}, (t(0, 3, 4),), []),
    "no steps of a GRU": ("GRU", {"batch_first": True}, (t(3, 0, 4),), []),
}


@pytest.mark.parametrize("backend", ["auto", "dlops"])
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, backend):
    kind, kwargs, arguments, words = CALLS[name]
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        getattr(torch.nn, kind)(4, 6, **kwargs)(*arguments)
    with dlops.backend(backend), pytest.raises(type(theirs.value)) as ours:
        getattr(nn, kind)(4, 6, **kwargs)(*arguments)
    for word in words:
        assert ours.match(word) and theirs.match(word)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_not_tensors(kind):
    module = getattr(nn, kind)(4, 6)
    with pytest.raises(TypeError, match=f"{kind}: input must be a tensor or a PackedSequence: got list"):
        module([[1.0] * 4])
    state = (t(1, 3, 6), None) if kind == "LSTM" else [t(1, 3, 6)]
    with pytest.raises(TypeError, match=f"{kind}: hx must be"):
        module(t(*X), state)


CELL_CALLS = {
    "input of 3 dimensions": (t(5, 3, 4),),
    "features": (t(3, 5),),
    "h of 3 dimensions": (t(3, 4), t(1, 3, 6)),
    "h of another batch": (t(3, 4), t(2, 6)),
    "h of another size": (t(3, 4), t(3, 5)),
    "dtype": (t(3, 4, dtype=torch.float64),),
}


@pytest.mark.parametrize("name", CELL_CALLS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells(kind, name):
    x, *state = CELL_CALLS[name]
    if kind == "LSTM" and state:
        state = [(state[0], state[0])]
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        getattr(torch.nn, f"{kind}Cell")(4, 6)(x, *state)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises((ValueError, RuntimeError)) as ours:
            getattr(nn, f"{kind}Cell")(4, 6)(x, *state)
    if "dimensions" in name:
        assert str(ours.value) == str(theirs.value) and type(ours.value) is type(theirs.value)
    with pytest.raises(TypeError, match=f"{kind}Cell: input must be a tensor: got list"):
        getattr(nn, f"{kind}Cell")(4, 6)([1.0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_our_own_arguments_of_constructors(kind):
    make = lambda **kwargs: getattr(nn, kind)(4, 6, **kwargs)  # noqa: E731
    for bad in (1, "yes", None):
        with pytest.raises(TypeError, match=f"{kind}: layer_norm must be a bool: got {bad!r}"):
            make(layer_norm=bad)
    for bad in (-0.1, 1, 1.0, "0.5", True, None, float("nan")):
        with pytest.raises(ValueError, match=rf"{kind}: recurrent_dropout must be a number in \[0, 1\): got {bad!r}"):
            make(recurrent_dropout=bad)
    wrong = (
        [(0.1,), 0.1, (0.1, 1.0), (-1, 0), (0.1, 0.1, 0.1), "ab"] if kind == "LSTM" else [(0.1, 0.1), 1.0, -1, "a", ()]
    )
    for bad in wrong:
        with pytest.raises(ValueError, match=f"{kind}: zoneout must be"):
            make(zoneout=bad)
    with pytest.raises(ValueError, match=f"{kind}: init must be None or \"chrono\": got 'xavier'"):
        make(init="xavier")
    for bad in (None, 1, 0, "long", float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match=f'{kind}: init="chrono" needs T_max.*got {bad!r}'):
            make(init="chrono", T_max=bad)
    with pytest.raises(ValueError, match=f'{kind}: T_max belongs to init="chrono"'):
        make(T_max=100)
    with pytest.raises(ValueError, match=f'{kind}: init="chrono" sets biases, but bias is False'):
        make(init="chrono", T_max=100, bias=False)
    if kind == "LSTM":
        with pytest.raises(TypeError, match="LSTM: return_all_states must be a bool"):
            make(return_all_states=1)
    else:
        with pytest.raises(TypeError, match="return_all_states"):
            make(return_all_states=True)
    with pytest.raises(TypeError, match="layer_norm"):
        nn.RNN(4, 6, layer_norm=True)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_lengths(kind):
    module = getattr(nn, kind)(4, 6)
    x = t(*X)
    for bad in ([5, 6, 1], [5, -1, 1], torch.tensor([9, 1, 1])):
        with pytest.raises(ValueError, match=f"(?i){kind}.*: lengths must be 0 to 5, the number of steps: got"):
            module(x, lengths=bad)
    for bad in ([5, 5], [1] * 4, torch.ones(3, 1, dtype=torch.int64), torch.tensor(3)):
        with pytest.raises(ValueError, match=rf"(?i){kind}.*: lengths has shape .*, expected \[3\]"):
            module(x, lengths=bad)
    for bad in (torch.ones(3), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.int16)):
        with pytest.raises(ValueError, match=f"(?i){kind}.*: lengths must be of torch.int64 or torch.int32: got {bad.dtype}"):
            module(x, lengths=bad)
    for bad in (3, [1.0, 2.0, 3.0], "abc", [True, False, True], {1, 2, 3}):
        with pytest.raises(TypeError, match=f"(?i){kind}.*: lengths must be a tensor or a sequence of int"):
            module(x, lengths=bad)
    first = getattr(nn, kind)(4, 6, batch_first=True)
    with pytest.raises(ValueError, match=f"(?i){kind}.*: lengths must be 0 to 3"):
        first(x, lengths=[4, 1, 1, 1, 1])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_reset(kind):
    module = getattr(nn, kind)(4, 6)
    for bad in (torch.zeros(5, 3), torch.zeros(5, 3, dtype=torch.uint8), torch.zeros(5, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=f"{kind}: reset must be of torch.bool: got {bad.dtype}"):
            module(t(*X), reset=bad)
    for size in ((3, 5), (5,), (5, 3, 1), (5, 2), (5, 3, 4)):
        with pytest.raises(ValueError, match=rf"{kind}: reset has shape .*, expected \[5, 3\]"):
            module(t(*X), reset=torch.zeros(size, dtype=torch.bool))
    with pytest.raises(TypeError, match=f"{kind}: reset must be a tensor: got list"):
        module(t(*X), reset=[False])
    with pytest.raises(ValueError, match=rf"{kind}: reset has shape \[5, 1\], expected \[5\]"):
        module(t(5, 4), reset=torch.zeros(5, 1, dtype=torch.bool))


# ---- the functions, past the modules


PARAMS = {
    "lstm": [t(24, 4), t(24, 6), t(24), t(24)],
    "gru": [t(18, 4), t(18, 6), t(18), t(18)],
    "rnn_tanh": [t(6, 4), t(6, 6), t(6), t(6)],
}


def function(cell, x=None, hx=None, params=None, has_biases=True, layers=1, **more):
    x, params = t(*X) if x is None else x, PARAMS[cell] if params is None else params
    return getattr(functional, cell)(x, hx, params, has_biases, layers, 0.0, False, False, False, **more)


@pytest.mark.parametrize("cell", PARAMS)
def test_functions(cell):
    w_ih, w_hh, b_ih, b_hh = PARAMS[cell]
    rows = w_ih.shape[0]
    bad = [
        {"x": t(5, 4)},
        {"x": t(5, 3, 5)},
        {"x": t(*X, dtype=torch.float64)},
        {"params": PARAMS[cell][:3]},
        {"params": PARAMS[cell][:2]},
        {"params": PARAMS[cell] * 2},
        {"layers": 2},
        {"has_biases": False},
        {"params": [w_ih, t(rows, 5), b_ih, b_hh]},
        {"params": [t(rows + 1, 4), w_hh, b_ih, b_hh]},
        {"params": [w_ih, w_hh, t(rows - 1), b_hh]},
        {"params": [w_ih, w_hh, b_ih, b_hh.double()]},
        {"lengths": torch.tensor([5, 6, 1])},
        {"lengths": torch.tensor([5, -1, 1])},
        {"lengths": torch.tensor([5, 1])},
        {"lengths": torch.tensor([5.0, 1.0, 1.0])},
        {"reset": torch.zeros(5, 3)},
        {"reset": torch.zeros(3, 5, dtype=torch.bool)},
        {"variant": "warp"},
        {"hx": t(1, 2, 6) if cell != "lstm" else (t(1, 2, 6), t(1, 2, 6))},
        {"hx": t(1, 3, 7) if cell != "lstm" else (t(1, 3, 6), t(1, 3, 7))},
        {"batch_sizes": torch.tensor([3, 3, 3, 3, 3])},
        {"x": t(6, 4), "batch_sizes": torch.tensor([2, 3, 1])},
        {"x": t(6, 4), "batch_sizes": torch.tensor([3, 3, 1])},
        {"x": t(6, 4), "batch_sizes": torch.tensor([3, 3]), "lengths": torch.tensor([2, 2, 2])},
        {"x": t(0, 3, 4)},
        {"hx": t(2, 3, 6) if cell != "lstm" else (t(2, 3, 6), t(2, 3, 6))},
        {"reset": torch.zeros(5, 1, dtype=torch.bool)},
        *([] if cell.startswith("rnn") else [{"recurrent_dropout": 2.0}, {"norms": []}, {"norms": [(t(rows),) * 3]}]),
    ]
    for kwargs in bad:
        for backend in ("auto", "dlops", "torch"):
            with dlops.backend(backend), pytest.raises((ValueError, RuntimeError)):
                function(cell, **kwargs)
    for kwargs in ({"x": [1.0]}, {"params": [w_ih, None, b_ih, b_hh]}, {"reset": 1.0}, {"lengths": [5.0, 5, 5]}):
        with pytest.raises(TypeError):
            function(cell, **kwargs)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_features(cell):
    """torch takes an input of size 0; the kernels do not, and say so."""
    x, h, hx = t(3, 0), t(3, 6), (t(3, 6), t(3, 6)) if cell == "lstm" else t(3, 6)
    rows = 24 if cell == "lstm" else 18
    w_ih, w_hh = torch.nn.Parameter(t(rows, 0)), torch.nn.Parameter(t(rows, 6))
    with torch.no_grad():
        with dlops.backend("auto"):
            made = getattr(dlops.functional, f"{cell}_cell")(x, hx, w_ih, w_hh)
        torch.testing.assert_close(made, getattr(torch, f"{cell}_cell")(x, hx, w_ih, w_hh))
        with pytest.raises(RuntimeError, match="no features"):
            function(cell, t(5, 3, 0), params=[w_ih, w_hh], has_biases=False)
        ops, c = torch.ops.dlops, t(3, 6) if cell == "lstm" else None
        with pytest.raises(ValueError, match="no features"):
            ops.recurrent_cell.default(x, w_ih, w_hh, None, None, None, None, h, c, cell)


def test_gates_check_their_probabilities():
    for zoneout in (-3.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="zoneout must lie in"):
            tensors = (t(2, 24), t(2, 24), None, None, t(2, 6), t(2, 6), *(None,) * 5)
            torch.ops.dlops.gates.default(*tensors, "lstm", zoneout, 0.0, 1e-5, False)


def test_what_our_kernels_do_not_take():
    with pytest.raises(RuntimeError, match="lstm: torch.float64"):
        function("lstm", t(*X).double(), params=[p.double() for p in PARAMS["lstm"]])
    with dlops.backend("auto"):
        assert function("lstm", t(*X).double(), params=[p.double() for p in PARAMS["lstm"]])[0].dtype is torch.float64
