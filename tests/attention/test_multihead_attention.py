"""dlops.nn.MultiheadAttention beside torch.nn's: same parameters, masks, results and gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import dlops
from dlops import nn
from dlops.nn.attention import attend_packed

N, L, S, E, HEADS = 3, 6, 9, 16, 4

KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "kdim, vdim": {"kdim": 12, "vdim": 20},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "all": {"kdim": 12, "vdim": 20, "add_bias_kv": True, "add_zero_attn": True, "bias": False},
}


def pair(*, heads=HEADS, **kwargs):
    """Ours and torch's from the same seed, with random biases (torch starts with zeros)."""
    modules = []
    for make in (nn.MultiheadAttention, torch.nn.MultiheadAttention):
        torch.manual_seed(0)
        module = make(E, heads, **kwargs)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        modules.append(module)
    return modules


def inputs(kwargs, batch_first=True):
    sizes = ((L, E), (S, kwargs.get("kdim", E)), (S, kwargs.get("vdim", E)))
    tensors = [torch.randn(N, length, width) for length, width in sizes]
    return [t if batch_first else t.transpose(0, 1).contiguous() for t in tensors]


PADDING = torch.arange(S) >= torch.tensor([S, 4, 2])[:, None]
MASKS = {
    "none": dict,
    "padding": lambda: {"key_padding_mask": PADDING},
    "float padding": lambda: {"key_padding_mask": torch.zeros(N, S).masked_fill(PADDING, -torch.inf)},
    "2-D": lambda: {"attn_mask": hidden(L, S)},
    "2-D float": lambda: {"attn_mask": torch.randn(L, S)},
    "3-D": lambda: {"attn_mask": hidden(N * HEADS, L, S)},
    "3-D float": lambda: {"attn_mask": torch.randn(N * HEADS, L, S)},
    "2-D, padding": lambda: {"attn_mask": hidden(L, S), "key_padding_mask": PADDING},
    "3-D, padding": lambda: {"attn_mask": hidden(N * HEADS, L, S), "key_padding_mask": PADDING},
    "2-D float, float padding": lambda: {
        "attn_mask": torch.randn(L, S),
        "key_padding_mask": torch.zeros(N, S).masked_fill(PADDING, -torch.inf),
    },
    "causal": lambda: {"attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1), "is_causal": True},
    "causal, padding": lambda: {
        "attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1),
        "is_causal": True,
        "key_padding_mask": PADDING,
    },
}


def hidden(*shape):
    """A boolean mask that leaves every row its first two keys."""
    mask = torch.rand(*shape) > 0.6
    mask[..., :2] = False
    return mask


def compare(ours, theirs, tensors, **options):
    """Outputs, and the gradients of inputs and parameters."""
    results = []
    for module in (ours, theirs):
        module.zero_grad()
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        out, weights = module(*leaves, need_weights=False, **options)
        assert weights is None
        out.square().sum().backward()
        results.append((out, leaves, list(module.parameters())))
    (out, leaves, parameters), (expected, expected_leaves, expected_parameters) = results
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip([*leaves, *parameters], [*expected_leaves, *expected_parameters]):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_parity(kind, batch_first, masks):
    options = MASKS[masks]()
    if KINDS[kind].keys() & {"add_bias_kv", "add_zero_attn"}:
        options["is_causal"] = False  # torch would hide the keys that it has appended
    ours, theirs = pair(batch_first=batch_first, **KINDS[kind])
    compare(ours, theirs, inputs(KINDS[kind], batch_first), **options)


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention(batch_first):
    ours, theirs = pair(batch_first=batch_first)
    x = inputs({}, batch_first)[0]
    outs = [module(x, x, x, need_weights=False)[0] for module in (ours, theirs)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_shared_key_and_value():
    ours, theirs = pair(batch_first=True)
    q, memory, _ = inputs({})
    torch.testing.assert_close(
        ours(q, memory, memory, need_weights=False)[0], theirs(q, memory, memory, need_weights=False)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("masks", ["none", "padding", "2-D", "causal, padding"])
def test_unbatched(masks):
    ours, theirs = pair()
    options = MASKS[masks]()
    if "key_padding_mask" in options:
        options["key_padding_mask"] = options["key_padding_mask"][1]
    compare(ours, theirs, [t[0] for t in inputs({})], **options)
    compare(ours, theirs, [t[0] for t in inputs({})], attn_mask=hidden(HEADS, L, S))


@pytest.mark.parametrize("average", [True, False])
def test_weights_are_torchs(average):
    ours, theirs = pair(batch_first=True)
    q, k, v = inputs({})
    for a, b in zip(*(module(q, k, v, PADDING, average_attn_weights=average) for module in (ours, theirs))):
        assert torch.equal(a, b)


def test_a_learned_mask_gets_its_gradient():
    ours, theirs = pair(batch_first=True)
    tensors, grads = inputs({}), []
    for module in (ours, theirs):
        torch.manual_seed(1)
        mask = torch.randn(L, S, requires_grad=True)
        module(*tensors, need_weights=False, attn_mask=mask)[0].square().sum().backward()
        grads.append(mask.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_a_row_that_sees_nothing_is_the_bias():
    ours, _ = pair(batch_first=True)
    q, k, v = inputs({})
    padding = PADDING.clone()
    padding[1] = True
    tensors = [t.requires_grad_() for t in (q, k, v)]
    out, _ = ours(*tensors, padding, need_weights=False)
    torch.testing.assert_close(out[1], ours.out_proj.bias.expand(L, E))
    out.square().sum().backward()
    assert all(t.grad.isfinite().all() for t in [*tensors, *ours.parameters()])


def test_masks_are_not_expanded(monkeypatch):
    """What attention is given is as small as what the caller gave."""
    from dlops.nn import attention

    seen, real = [], attention.functional.scaled_dot_product_attention

    def spy(q, k, v, mask=None, *args, **kwargs):
        seen.append((None if mask is None else tuple(mask.shape), args, kwargs))
        return real(q, k, v, mask, *args, **kwargs)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", spy)
    ours, _ = pair(batch_first=True)
    tensors = inputs({})
    for masks in ("padding", "2-D", "2-D, padding", "causal", "causal, padding"):
        ours(*tensors, need_weights=False, **MASKS[masks]())
    shapes = [shape for shape, _, _ in seen]
    assert shapes == [(N, 1, 1, S), (1, 1, L, S), (N, 1, L, S), None, (N, 1, 1, S)]
    assert seen[3][1] == (0.0, True) and seen[4][2] == {"window": (None, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_drops_in(kind):
    ours, theirs = pair(batch_first=True, **KINDS[kind])
    assert isinstance(ours, torch.nn.MultiheadAttention) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    tensors = inputs(KINDS[kind])
    expected = theirs(*tensors, need_weights=False)[0]
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is nn.MultiheadAttention
        torch.testing.assert_close(module(*tensors, need_weights=False)[0], expected, rtol=1e-5, atol=1e-5)


def test_dropout_only_in_training():
    ours, theirs = pair(batch_first=True, dropout=0.5)
    x = torch.randn(N, 64, E)
    assert torch.equal(ours.eval()(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])
    torch.testing.assert_close(
        ours(x, x, x, need_weights=False)[0], theirs.eval()(x, x, x, need_weights=False)[0], rtol=1e-5, atol=1e-5
    )
    ours.train()
    torch.manual_seed(0)
    first = ours(x, x, x, need_weights=False)[0]
    assert not torch.equal(first, ours(x, x, x, need_weights=False)[0])
    torch.manual_seed(0)
    assert torch.equal(first, ours(x, x, x, need_weights=False)[0])


def test_float64():
    with dlops.backend("auto"):
        ours, theirs = (module.double() for module in pair(batch_first=True))
        compare(ours, theirs, [t.double() for t in inputs({})], **MASKS["causal, padding"]())


def test_autocast():
    ours, theirs = pair(batch_first=True)
    tensors = inputs({})
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (module(*tensors, PADDING, need_weights=False)[0] for module in (ours, theirs))
    assert a.dtype is b.dtype is torch.bfloat16
    torch.testing.assert_close(a.float(), b.float(), rtol=4e-2, atol=4e-2)


@pytest.mark.parametrize("masks", ["none", "padding", "causal, padding"])
def test_compiles(masks):
    ours, _ = pair(batch_first=True)
    tensors, options = [t.requires_grad_() for t in inputs({})], MASKS[masks]()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    out = compiled(*tensors, need_weights=False, **options)[0]
    torch.testing.assert_close(out, ours(*tensors, need_weights=False, **options)[0], rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert tensors[0].grad is not None


def test_nested_tensors_are_torchs():
    ours, theirs = (module.eval() for module in pair(batch_first=True))
    x = torch.nested.nested_tensor([torch.randn(3, E), torch.randn(5, E)])
    with torch.no_grad():
        a, b = (module(x, x, x, need_weights=False)[0] for module in (ours, theirs))
    assert all(torch.equal(p, q) for p, q in zip(a.unbind(), b.unbind()))


def test_packed():
    ours, theirs = pair(batch_first=True)
    lengths = [3, 6, 1]
    sequences = [torch.randn(n, E) for n in lengths]
    cu_seqlens = torch.tensor([0, 3, 9, 10], dtype=torch.int32)
    expected = torch.cat([theirs(x[None], x[None], x[None], need_weights=False)[0][0] for x in sequences])
    torch.testing.assert_close(attend_packed(ours, torch.cat(sequences), cu_seqlens, 6), expected, rtol=1e-5, atol=1e-5)


def test_accelerate():
    _, theirs = pair(batch_first=True)
    tensors = inputs({})
    expected = theirs(*tensors, need_weights=False)[0]
    assert [entry.to for entry in dlops.accelerate(theirs).swapped] == ["dlops.nn.MultiheadAttention"]
    torch.testing.assert_close(theirs(*tensors, need_weights=False)[0], expected, rtol=1e-5, atol=1e-5)
    plans = dlops.explain(lambda *args: theirs(*args, need_weights=False), *tensors)
    assert [plan.op for plan in plans] == ["attention"]
    dlops.restore(theirs)
    assert type(theirs) is torch.nn.MultiheadAttention


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(L, E)}, ValueError, r"must all be 3-D \(batched\) or 2-D \(unbatched\): got shapes \[6, 16\]"),
        ({"query": torch.zeros(N, L, 8)}, ValueError, r"query has shape \[3, 6, 8\], expected 16 features"),
        ({"value": torch.zeros(N, 5, E)}, ValueError, r"key \[3, 9, 16\] and value \[3, 5, 16\] differ"),
        ({"query": torch.zeros(2, L, E)}, ValueError, r"query \[2, 6, 16\] and key \[3, 9, 16\] differ in batch"),
        ({"key_padding_mask": PADDING[:, 1:]}, RuntimeError, r"key_padding_mask has shape \[3, 8\], expected \[3, 9\]"),
        ({"key_padding_mask": PADDING.int()}, TypeError, "key_padding_mask must be bool or floating point: got torch.int32"),
        ({"attn_mask": torch.zeros(S, L)}, RuntimeError, r"attn_mask has shape \[9, 6\], expected \[6, 9\] or \[12, 6, 9\]"),
        ({"is_causal": True}, RuntimeError, "is_causal is a hint about attn_mask, which is None"),
    ],
    ids=str,
)
def test_bad_input(change, error, message):
    ours, _ = pair(batch_first=True)
    arguments = dict(zip(("query", "key", "value"), inputs({}))) | {"need_weights": False} | change
    with pytest.raises(error, match=message):
        ours(**arguments)
