"""dlops.nn's recurrent layers beside torch.nn's: whatever one can do with the one, one can do with the other."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import dlops
from dlops import nn

KINDS = ["LSTM", "GRU", "RNN"]
KWARGS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True, "num_layers": 2},
    {"nonlinearity": "relu"},
    {"proj_size": 3, "num_layers": 2},
    {"dtype": torch.bfloat16},
]
ONLY = {"nonlinearity": "RNN", "proj_size": "LSTM"}
CASES = [
    pytest.param(kind, kwargs, id=f"{kind}-{kwargs}")
    for kind in KINDS
    for kwargs in KWARGS
    if all(ONLY.get(name, kind) == kind for name in kwargs)
]


def pair(kind, kwargs=None, sizes=(4, 6)):
    """torch's module and ours, of the same seed."""
    kwargs = kwargs or {}
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(*sizes, **kwargs)
    torch.manual_seed(0)
    return theirs, getattr(nn, kind)(*sizes, **kwargs)


def state_for(module, batch=3):
    make = lambda width: torch.randn(  # noqa: E731
        module.num_layers * (1 + module.bidirectional), batch, width, dtype=module.weight_hh_l0.dtype
    )
    h = make(module.proj_size or module.hidden_size)
    return (h, make(module.hidden_size)) if isinstance(module, torch.nn.LSTM) else h


def close(ours, theirs, dtype=torch.float32, **tolerances):
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(ours, theirs, **({"rtol": tolerance, "atol": tolerance} | tolerances))


@pytest.fixture(params=["auto", "dlops"])
def _both(request):
    with dlops.backend(request.param):
        yield


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_drops_in(kind, kwargs):
    theirs, ours = pair(kind, kwargs)
    assert isinstance(ours, getattr(torch.nn, kind)) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours.parameters(), theirs.parameters()))
    assert [[*names] for names in ours._all_weights] == [[*names] for names in theirs._all_weights]
    dtype = kwargs.get("dtype", torch.float32)
    x, state = torch.randn(3, 3, 4, dtype=dtype), state_for(theirs)
    one = tuple(s[:, 0] for s in state) if isinstance(state, tuple) else state[:, 0]
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(ours)
        close(module(x), theirs(x), dtype)
        close(module(x, state), theirs(x, state), dtype)
        close(module(x[:, 0]), theirs(x[:, 0]), dtype)
        close(module(x[:, 0], one), theirs(x[:, 0], one), dtype)
    y, states = ours(x, state)
    want, want_states = theirs(x, state)
    assert y.stride() == want.stride() or kwargs.get("batch_first")
    assert type(states) is type(want_states)


@pytest.mark.parametrize("kind", KINDS)
def test_input_of_any_layout(kind):
    theirs, ours = pair(kind)
    base = torch.randn(8, 6, 8)
    state = state_for(theirs, 6)
    for x in (
        base[..., ::2], base[::2, ..., 4:], base.transpose(0, 1)[..., :4].transpose(0, 1), base[:1, ..., :4].expand(8, -1, -1),
        base[:, :, :1].expand(-1, -1, 4), base[..., 3:7],
    ):  # fmt: skip
        close(ours(x, state), theirs(x, state))
    turned = tuple(s.transpose(1, 2).contiguous().transpose(1, 2) for s in state) if isinstance(state, tuple) else state
    close(ours(base[..., :4], turned), theirs(base[..., :4], state))


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind):
    theirs, ours = pair(kind, {"bidirectional": True, "num_layers": 2})
    x = torch.randn(5, 0, 4, requires_grad=True)
    y, states = ours(x)
    assert y.shape == (5, 0, 12)
    for state in states if isinstance(states, tuple) else (states,):
        assert state.shape == (4, 0, 6)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is None or (p.grad == 0).all() for p in ours.parameters())


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("kind", KINDS)
def test_trains(kind):
    theirs, ours = pair(kind, {"num_layers": 2, "bidirectional": True})
    optimisers = [torch.optim.SGD(module.parameters(), 0.1) for module in (ours, theirs)]
    inputs = [torch.randn(5, 3, 4).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    for _ in range(3):
        for module, x, optimiser in zip((ours, theirs), inputs, optimisers):
            optimiser.zero_grad()
            x.grad = None
            module(x)[0].square().sum().backward()
            optimiser.step()
        close(inputs[0].grad, inputs[1].grad)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_subsets_of_gradients(kind):
    _, ours = pair(kind)
    x, state = torch.randn(4, 2, 4), state_for(ours, 2)
    leaves = {"x": x, **{f"state{k}": s for k, s in enumerate(state if isinstance(state, tuple) else (state,))}}
    leaves |= dict(ours.named_parameters())

    def gradients(wanted):
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in wanted)
        y, states = ours(x, state)
        last = states[0] + states[1] if isinstance(states, tuple) else states
        loss = y.square().sum() + last.sum()
        return dict(zip(wanted, torch.autograd.grad(loss, [leaves[name] for name in wanted])))

    whole = gradients(list(leaves))
    for name in leaves:
        close(gradients([name])[name], whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_in_eval_mode(kind):
    theirs, ours = pair(kind, {"num_layers": 2, "dropout": 0.5})
    x = torch.randn(4, 3, 4)
    grads = []
    for module in (theirs.eval(), ours.eval()):
        module(x)[0].square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
    close(*grads)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(device, kind):
    """float32, first derivatives from our kernels: their derivatives equal float64's."""
    if device.simt and kind == "RNN":
        pytest.skip("part of the grid for the simt runner")
    theirs, ours = pair(kind, {"bidirectional": True}, (3, 4))
    start = torch.randn(3, 2, 3)

    def penalty(module, x):
        module, x = module.to(x.device), x.detach().requires_grad_()
        parameters = list(module.parameters())
        first = torch.autograd.grad(module(x)[0].pow(3).sum(), [x, *parameters], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [x, *parameters])

    got = penalty(ours, start.to(device.torch_device))
    with dlops.backend("torch"):
        want = penalty(theirs.double(), start.double())
    for a, b in zip(got, want):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_float64(kind):
    """Torch's, or the specification: derivatives of any order."""
    with dlops.backend("auto"):
        theirs, ours = pair(kind, {"bidirectional": True, "dtype": torch.float64}, (2, 3))
        x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(ours(x), theirs(x))
        assert torch.autograd.gradcheck(lambda x: ours(x)[0], x, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], x, fast_mode=True)
        reset = torch.tensor([[False, True], [True, False], [False, False]])
        more = {"lengths": [2, 3], "reset": reset}
        assert torch.autograd.gradcheck(lambda x: ours(x, **more)[0], x, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: ours(x, **more)[0], x, fast_mode=True)


# ---- what a user of torch does with a module


def test_dropout_between_layers():
    torch.manual_seed(0)
    ours = nn.GRU(4, 64, 2, dropout=0.5)
    x = torch.randn(5, 16, 4)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(ours(x)[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])
    zero = nn.GRU(4, 8, 2, dropout=1.0, bias=False)
    assert (zero(x)[0] == 0).all()
    with pytest.warns(UserWarning, match="dropout option"):
        nn.LSTM(4, 5, dropout=0.5)


def test_moves_and_loads():
    theirs, ours = pair("LSTM", {"num_layers": 2})
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    buffer.seek(0)
    torch.nn.init.zeros_(ours.weight_ih_l0)
    ours.load_state_dict(torch.load(buffer))
    x = torch.randn(3, 2, 4)
    close(ours(x), theirs(x))
    half = copy.deepcopy(ours).to(torch.bfloat16)
    assert half(x.bfloat16())[0].dtype is torch.bfloat16
    assert [w.dtype for w in half._flat_weights] == [torch.bfloat16] * 8
    half.flatten_parameters()
    ours.weight_ih_l0 = torch.nn.Parameter(torch.zeros_like(ours.weight_ih_l0))
    theirs.weight_ih_l0 = ours.weight_ih_l0
    assert ours._flat_weights[0] is ours.weight_ih_l0
    close(ours(x), theirs(x))
    with dlops.backend("auto"):
        meta = nn.LSTM(4, 5, device="meta")
        assert meta(torch.empty(3, 2, 4, device="meta"))[0].shape == (3, 2, 5)


def test_stock_tools_work_on_ours():
    """Reparametrisation, functional calls, sharing."""
    theirs, ours = pair("LSTM")
    x = torch.randn(3, 2, 4)
    other = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    want = torch.func.functional_call(theirs, other, (x,))
    before = ours(x)
    close(torch.func.functional_call(ours, other, (x,)), want)
    close(ours(x), before)
    normed = torch.nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    close(normed(x), torch.nn.utils.parametrizations.weight_norm(theirs, "weight_hh_l0")(x))
    tied = nn.GRU(4, 4, 2)
    tied.weight_ih_l1 = tied.weight_ih_l0
    like = torch.nn.GRU(4, 4, 2)
    like.load_state_dict(tied.state_dict())
    close(tied(x), like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate(kind):
    theirs, _ = pair(kind, {"num_layers": 2, "bidirectional": True})
    model = torch.nn.ModuleDict({"rnn": copy.deepcopy(theirs), "cell": getattr(torch.nn, f"{kind}Cell")(4, 5)})
    want_cell = model["cell"](torch.ones(2, 4))
    report = dlops.accelerate(model)
    assert [entry.to for entry in report.swapped] == [f"dlops.nn.{kind}", f"dlops.nn.{kind}Cell"] and not report.kept
    x = torch.randn(5, 3, 4)
    assert type(model["rnn"]) is getattr(nn, kind) and repr(model["rnn"]) == repr(theirs)
    for swapped in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(swapped["rnn"](x), theirs(x))
        close(swapped["rnn"](x, lengths=[5, 1, 2])[0][:, 0], theirs(x)[0][:, 0])
        close(swapped["cell"](torch.ones(2, 4)), want_cell)
    dlops.restore(model)
    assert type(model["rnn"]) is getattr(torch.nn, kind)
    assert torch.equal(model["rnn"](x)[0], theirs(x)[0])


class Tagger(torch.nn.Module):
    def __init__(self, package):
        super().__init__()
        self.embed = package.Embedding(20, 8)
        self.body = package.LSTM(8, 12, 2, bidirectional=True, batch_first=True, proj_size=6)
        self.mix = package.GRU(12, 10, batch_first=True)
        self.last = package.RNN(10, 7)
        self.cell = package.LSTMCell(7, 5)
        self.head = package.Linear(5, 3)

    def forward(self, tokens):
        x, _ = self.body(self.embed(tokens))
        x, h = self.mix(x)
        x, _ = self.last(x.transpose(0, 1))
        state = None
        for step in x:
            state = self.cell(step, state)
        return self.head(state[0]) + h.mean()


def test_a_model_of_ours_is_a_model_of_torchs():
    torch.manual_seed(0)
    theirs = Tagger(torch.nn)
    torch.manual_seed(0)
    ours = Tagger(nn)
    tokens = torch.randint(20, (3, 5))
    close(ours(tokens), theirs(tokens))
    grads = [torch.autograd.grad(m(tokens).square().sum(), list(m.parameters())) for m in (ours, theirs)]
    close(*grads)


# ---- extra arguments of the constructor


def test_extras_show_pickle_and_reset():
    module = nn.LSTM(
        4, 5, 2, bidirectional=True, layer_norm=True, zoneout=(0.1, 0.2), recurrent_dropout=0.3, init="chrono", T_max=50,
        return_all_states=True,
    )  # fmt: skip
    text = (
        "LSTM(4, 5, num_layers=2, bidirectional=True, layer_norm=True, zoneout=(0.1, 0.2), recurrent_dropout=0.3, "
        "init='chrono', T_max=50, return_all_states=True)"
    )
    assert repr(module) == text
    names = ["norm_ih", "norm_hh", "norm_cell_weight", "norm_cell_bias"]
    stock = list(torch.nn.LSTM(4, 5, 2, bidirectional=True).state_dict())
    wanted = [f"{name}_l{layer}{end}" for layer in (0, 1) for end in ("", "_reverse") for name in names]
    assert list(module.state_dict()) == [*stock, *wanted]
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(again) == text
        x = torch.randn(3, 2, 4)
        close(again.eval()(x), module.eval()(x), rtol=0, atol=0)
    torch.nn.init.normal_(module.norm_ih_l0)
    torch.nn.init.normal_(module.norm_cell_bias_l1_reverse)
    torch.manual_seed(3)
    module.reset_parameters()
    assert (module.norm_ih_l0 == 1).all() and (module.norm_cell_bias_l1_reverse == 0).all()
    torch.manual_seed(3)
    like = nn.LSTM(4, 5, 2, bidirectional=True)
    assert torch.equal(like.weight_hh_l1, module.weight_hh_l1)
    gru = nn.GRU(4, 5, layer_norm=True, zoneout=0.1)
    assert repr(gru) == "GRU(4, 5, layer_norm=True, zoneout=0.1)" and gru.norm_hh_l0.shape == (15,)
    assert nn.GRU(4, 5, zoneout=(0.1,)).zoneout == 0.1
    half = nn.LSTM(4, 5, layer_norm=True, dtype=torch.bfloat16)
    assert half.norm_cell_weight_l0.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_chrono_initialisation(kind):
    torch.manual_seed(0)
    module = getattr(nn, kind)(4, 600, 2, bidirectional=True, init="chrono", T_max=100)
    theirs = getattr(torch.nn, kind)(4, 600, 2, bidirectional=True)
    for names in module._all_weights:
        total = (getattr(module, names[2]) + getattr(module, names[3])).detach()
        if kind == "LSTM":
            i, f, g, o = total.chunk(4)
            assert torch.equal(i, -f)
            others = (g, o)
        else:
            r, f, n = total.chunk(3)
            others = (r, n)
        steps = f.exp()  # uniform on [1, 99]
        assert steps.min() >= 1 - 1e-5 and steps.max() <= 99.01
        assert abs(float(steps.mean()) - 50) < 5 and abs(float(steps.std()) - 98 / 12**0.5) < 3
        for other in others:  # as torch's
            assert 0 < other.abs().max() <= 2 / 600**0.5
        assert getattr(module, names[0]).shape == getattr(theirs, names[0]).shape
