"""dlops.nn's transformer layers and stacks beside torch.nn's."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops import nn

N, S, T, E, HEADS, HIDDEN = 3, 9, 7, 16, 4, 32

LAYERS = {
    "post-norm": {},
    "pre-norm": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "callable": {"activation": F.silu, "norm_first": True},
    "module": {"activation": torch.nn.SiLU()},
    "no bias": {"bias": False},
    "pre-norm, no bias": {"norm_first": True, "bias": False, "layer_norm_eps": 1e-3},
    "length first": {"batch_first": False},
}

PADDING = torch.arange(S) >= torch.tensor([S, 5, 2])[:, None]
CAUSAL = torch.ones(S, S, dtype=torch.bool).triu(1)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "enable_nested_tensor is True")
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors is in prototype stage")
        warnings.filterwarnings("ignore", "Support for mismatched")
        yield


def pair(name, *args, **kwargs):
    modules = []
    for make in (nn, torch.nn):
        torch.manual_seed(0)
        module = getattr(make, name)(*args, **({"dropout": 0.0, "batch_first": True} | kwargs))
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()) * (1 + len(key) % 3))
        modules.append(module)
    return modules


def layers(kind, name="TransformerEncoderLayer"):
    return pair(name, E, HEADS, HIDDEN, **LAYERS[kind])


def stacks(kind="post-norm", norm=True, **kwargs):
    made = []
    for make, layer in zip((nn, torch.nn), layers(kind)):
        torch.manual_seed(1)
        made.append(make.TransformerEncoder(layer, 2, make.LayerNorm(E) if norm else None, **kwargs))
    return made


def turn(x, kwargs):
    return x if kwargs.get("batch_first", True) else x.transpose(0, 1).contiguous()


def compare(ours, theirs, tensors, **options):
    """Outputs, and the gradients of inputs and parameters."""
    results = []
    for module in (ours, theirs):
        module.zero_grad()
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        out = module(*leaves, **options)
        out.square().mean().backward()
        results.append((out, leaves, list(module.parameters())))
    (out, leaves, parameters), (expected, expected_leaves, expected_parameters) = results
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip([*leaves, *parameters], [*expected_leaves, *expected_parameters]):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


ENCODER_MASKS = {
    "none": {},
    "causal": {"src_mask": CAUSAL, "is_causal": True},
    "causal, no hint": {"src_mask": CAUSAL},
    "float": {"src_mask": torch.nn.Transformer.generate_square_subsequent_mask(S)},
    "padding": {"src_key_padding_mask": PADDING},
    "causal, padding": {"src_mask": CAUSAL, "src_key_padding_mask": PADDING, "is_causal": True},
}


@pytest.mark.parametrize("masks", ENCODER_MASKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_encoder_layer(kind, masks):
    ours, theirs = layers(kind)
    x, options = turn(torch.randn(N, S, E), LAYERS[kind]), ENCODER_MASKS[masks]
    compare(ours, theirs, [x], **options)
    with torch.no_grad():  # torch's fast path
        torch.testing.assert_close(ours.eval()(x, **options), theirs.eval()(x, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masks", ["none", "causal", "padding"])
@pytest.mark.parametrize("kind", LAYERS)
def test_decoder_layer(kind, masks):
    ours, theirs = layers(kind, "TransformerDecoderLayer")
    tensors = [turn(torch.randn(N, T, E), LAYERS[kind]), turn(torch.randn(N, S, E), LAYERS[kind])]
    options = {
        "none": {},
        "causal": {"tgt_mask": CAUSAL[:T, :T], "tgt_is_causal": True, "memory_mask": torch.rand(T, S) > 0.9},
        "padding": {"tgt_key_padding_mask": PADDING[:, :T], "memory_key_padding_mask": PADDING},
    }[masks]
    compare(ours, theirs, tensors, **options)


def test_unbatched():
    ours, theirs = layers("post-norm")
    compare(ours, theirs, [torch.randn(S, E)], src_key_padding_mask=PADDING[1])
    ours, theirs = layers("pre-norm", "TransformerDecoderLayer")
    compare(ours, theirs, [torch.randn(T, E), torch.randn(S, E)], memory_key_padding_mask=PADDING[2])


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_drop_in(kind):
    for name, count in (("TransformerEncoderLayer", 1), ("TransformerDecoderLayer", 2)):
        ours, theirs = layers(kind, name)
        assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
        types = [type(module) for module in ours.modules()]
        assert types.count(nn.MultiheadAttention) == count and types.count(nn.LayerNorm) == count + 1
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        ours.load_state_dict(theirs.state_dict())
        tensors = [turn(torch.randn(N, S, E), LAYERS[kind])] * count
        for copied in (lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
            module = copied(ours)
            assert type(module) is type(ours)
            torch.testing.assert_close(module(*tensors), copied(theirs)(*tensors), rtol=1e-5, atol=1e-5)


def test_children_with_hooks_are_called():
    ours, theirs = layers("post-norm")
    seen = []
    for child in (ours.self_attn, ours.norm1, ours.norm2, ours.linear1, ours.dropout1):
        child.register_forward_hook(lambda module, args, output: seen.append((module, len(args), type(output))))
    x = torch.randn(N, S, E)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert [module for module, _, _ in seen] == [ours.self_attn, ours.dropout1, ours.norm1, ours.linear1, ours.norm2]
    assert all(count == 1 and kind is torch.Tensor for module, count, kind in seen if module in (ours.norm1, ours.norm2))


def test_add_and_norm_are_one(monkeypatch):
    """Where our kernels are asked for, and on a GPU."""
    from dlops.nn import norm

    residuals, real = [], norm.functional.layer_norm

    def spy(*args, residual=None, **kwargs):
        residuals.append(residual is not None)
        return real(*args, residual=residual, **kwargs)

    monkeypatch.setattr(norm.functional, "layer_norm", spy)
    x = torch.randn(N, S, E)
    layers("post-norm")[0](x)
    assert residuals == [True, True]
    residuals.clear()
    layers("pre-norm")[0](x)
    assert residuals == [False, True]
    residuals.clear()
    layers("pre-norm", "TransformerDecoderLayer")[0](x, x)
    assert residuals == [False, True, True]


def test_dropout_is_seeded():
    layer = nn.TransformerEncoderLayer(E, HEADS, HIDDEN, dropout=0.3, batch_first=True)
    x, outs = torch.randn(N, S, E), []
    for _ in range(2):
        torch.manual_seed(0)
        outs.append(layer(x))
    assert torch.equal(*outs) and not torch.equal(outs[0], layer(x))


def test_small_inference_is_torchs():
    x = torch.randn(N, S, E)
    for ours, theirs in (layers("gelu"), pair("MultiheadAttention", E, HEADS)):
        ours.eval(), theirs.eval()

        def run(module, x, **masks):
            options = {"need_weights": False} if isinstance(module, torch.nn.MultiheadAttention) else {}
            return module(*([x] * (3 if options else 1)), **options, **masks)

        with torch.no_grad():
            forced = run(ours, x)
            with dlops.backend("auto"):
                small, expected = run(ours, x), run(theirs, x)
                assert len(plans(run, ours, x)) == 1
            for a, b, c in zip(*([t] if isinstance(t, torch.Tensor) else [t[0]] for t in (small, expected, forced))):
                assert torch.equal(a, b)
                torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)
    with dlops.backend("auto"), torch.no_grad():  # a GELU that torch's fast path takes for the other one
        layer = nn.TransformerEncoderLayer(E, HEADS, HIDDEN, 0.0, torch.nn.GELU("tanh"), batch_first=True).eval()
        out = layer(x)
        with dlops.backend("dlops"):
            torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)


# ---- stacks


@pytest.mark.parametrize("masks", ENCODER_MASKS)
@pytest.mark.parametrize("kind", ["post-norm", "pre-norm", "length first"])
def test_encoder(kind, masks):
    ours, theirs = stacks(kind)
    options = dict(ENCODER_MASKS[masks])
    options["mask"] = options.pop("src_mask", None)
    x = turn(torch.randn(N, S, E), LAYERS[kind])
    compare(ours, theirs, [x], **options)
    with torch.no_grad():  # torch goes over to nested tensors where there is padding
        torch.testing.assert_close(ours.eval()(x, **options), theirs.eval()(x, **options), rtol=1e-5, atol=1e-5)


def plans(module, *args, **kwargs):
    return [plan for plan in dlops.explain(module, *args, **kwargs) if plan.op == "attention"]


def test_explain():
    ours, x = stacks()[0].eval(), torch.randn(N, S, E)
    with torch.no_grad():
        for masks in ({}, {"mask": CAUSAL}, {"src_key_padding_mask": PADDING}):
            assert len(plans(ours, x, **masks)) == 2


@pytest.mark.parametrize("float_mask", [False, True])
def test_encoder_computes_no_padding(float_mask, monkeypatch):
    from dlops.nn import transformer

    rows, real = [], transformer.attend_packed

    def spy(module, x, *args):
        rows.append(x.shape[0])
        return real(module, x, *args)

    monkeypatch.setattr(transformer, "attend_packed", spy)
    ours, theirs = (stack.eval() for stack in stacks())
    x = torch.randn(N, S, E)
    padding = torch.zeros(N, S).masked_fill(PADDING, -torch.inf) if float_mask else PADDING
    with torch.no_grad():
        out = ours(x, src_key_padding_mask=padding)
        torch.testing.assert_close(out, theirs(x, src_key_padding_mask=padding), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out[PADDING], ours.norm.bias.expand(int(PADDING.sum()), E))
        assert rows == [S + 5 + 2] * 2
        ours(x, src_key_padding_mask=torch.zeros(N, S, dtype=torch.bool))  # nothing to leave out
        ours(x, src_key_padding_mask=PADDING.flip(1))  # padding at the front
        ours(x, CAUSAL, PADDING)
        ours(x[:0], src_key_padding_mask=PADDING[:0])
    stacks(enable_nested_tensor=False)[0].eval()(x, src_key_padding_mask=padding)
    ours(x, src_key_padding_mask=padding)  # with gradients
    assert len(rows) == 2


@pytest.mark.parametrize("mask", [CAUSAL, torch.nn.Transformer.generate_square_subsequent_mask(S)])
def test_a_causal_mask_is_recognised(mask, monkeypatch):
    from dlops.nn import attention

    seen, real = [], attention.functional.scaled_dot_product_attention

    def spy(q, k, v, mask, p, causal):
        seen.append((mask, causal))
        return real(q, k, v, mask, p, causal)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", spy)
    x = torch.randn(N, S, E)
    stacks()[0](x, mask=mask)
    assert seen == [(None, True)] * 2
    other = mask.clone()
    other[0, 1] = other[0, 0]
    stacks()[0](x, mask=other)
    assert [causal for _, causal in seen[2:]] == [False, False]


def test_nested_tensors_are_torchs():
    ours, theirs = (stack.eval() for stack in stacks(norm=False))
    x = torch.nested.nested_tensor([torch.randn(3, E), torch.randn(5, E)])
    with torch.no_grad():
        for a, b in zip(ours(x).unbind(), theirs(x).unbind()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu", "batch_first": False}], ids=str)
def test_transformer(options):
    ours, theirs = pair("Transformer", E, HEADS, 2, 2, HIDDEN, **options)
    assert isinstance(ours, torch.nn.Transformer) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    types = {type(module) for module in ours.modules()}
    assert {nn.TransformerEncoder, nn.TransformerDecoder, nn.LayerNorm, nn.MultiheadAttention} < types
    assert not types & {torch.nn.LayerNorm, torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer}
    src, tgt = turn(torch.randn(N, S, E), options), turn(torch.randn(N, T, E), options)
    masks = {"tgt_mask": CAUSAL[:T, :T], "src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING}
    compare(ours, theirs, [src, tgt], **masks)
    compare(pickle.loads(pickle.dumps(ours)), theirs, [src, tgt], **masks)


def test_a_custom_encoder_stays():
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(E, HEADS, HIDDEN), 1)
    model = nn.Transformer(E, HEADS, 1, 1, HIDDEN, custom_encoder=encoder)
    assert model.encoder is encoder and type(encoder.layers[0].norm1) is torch.nn.LayerNorm
    assert type(model.decoder) is nn.TransformerDecoder


# ---- what surrounds


@pytest.mark.parametrize("kind", ["post-norm", "pre-norm"])
def test_compiles(kind):
    ours, _ = layers(kind)
    x = torch.randn(N, S, E)
    for options in ({}, ENCODER_MASKS["causal, padding"]):
        out = torch.compile(ours, fullgraph=True, backend="aot_eager")(x, **options)
        torch.testing.assert_close(out, ours(x, **options), rtol=1e-5, atol=1e-5)
        out.sum().backward()


def test_the_model_compiles():
    ours, _ = pair("Transformer", E, HEADS, 1, 1, HIDDEN)
    src, tgt = torch.randn(N, S, E), torch.randn(N, T, E)
    masks = {"tgt_mask": CAUSAL[:T, :T], "src_key_padding_mask": PADDING}
    out = torch.compile(ours, fullgraph=True, backend="aot_eager")(src, tgt, **masks)
    torch.testing.assert_close(out, ours(src, tgt, **masks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["post-norm", "pre-norm"])
def test_autocast(kind):
    ours, theirs = layers(kind)
    x = torch.randn(N, S, E)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ours(x), theirs(x)
    assert a.dtype is b.dtype
    torch.testing.assert_close(a.float(), b.float(), rtol=4e-2, atol=4e-2)


def test_bfloat16():
    ours, theirs = (layer.bfloat16() for layer in layers("pre-norm"))
    x = torch.randn(N, S, E, dtype=torch.bfloat16)
    torch.testing.assert_close(ours(x).float(), theirs(x).float(), rtol=5e-2, atol=5e-2)


def test_float64():
    with dlops.backend("auto"):
        ours, theirs = (layer.double() for layer in layers("post-norm"))
        compare(ours, theirs, [torch.randn(N, S, E).double()], src_key_padding_mask=PADDING)


def test_accelerate():
    _, model = pair("Transformer", E, HEADS, 2, 1, HIDDEN)
    model.eval()
    src, tgt = torch.randn(N, S, E), torch.randn(N, T, E)
    masks = {"src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING}
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    with torch.no_grad():
        expected = model(src, tgt, **masks)
        report = dlops.accelerate(model)
        assert not report.kept and len(report.swapped) == 2 + 3 + 4 + 9 + 2 * 3, report
        torch.testing.assert_close(model(src, tgt, **masks), expected, rtol=1e-5, atol=1e-5)
        assert len(plans(model, src, tgt)) == 4
        assert list(model.state_dict()) == keys and dlops.accelerate(model).entries == []
        copied = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(copied(src, tgt, **masks), expected, rtol=1e-5, atol=1e-5)
        for each in (model, copied):
            dlops.restore(each)
            assert [type(module) for module in each.modules()] == types
            assert torch.equal(each(src, tgt, **masks), expected)


class OwnLayer(torch.nn.TransformerEncoderLayer):
    pass


def test_subclasses_are_left():
    layer = OwnLayer(E, HEADS, HIDDEN, 0.0, batch_first=True)
    x = torch.randn(N, S, E)
    expected = layer(x)
    report = dlops.accelerate(layer)
    assert [entry.reason for entry in report.kept] == ["a subclass of torch.nn.TransformerEncoderLayer"]
    assert type(layer) is OwnLayer and type(layer.self_attn) is nn.MultiheadAttention
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_bad_input():
    ours, _ = layers("post-norm")
    x = torch.randn(N, S, E)
    with pytest.raises(RuntimeError, match=r"key_padding_mask has shape \[3, 8\], expected \[3, 9\]"):
        ours(x, src_key_padding_mask=PADDING[:, 1:])
    with pytest.raises(RuntimeError, match=r"attn_mask has shape \[8, 8\]"):
        ours(x, src_mask=CAUSAL[1:, 1:])
    with pytest.raises(ValueError, match="expected 16 features"):
        ours(torch.randn(N, S, 8))
    stack = stacks()[0].eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"src_key_padding_mask has shape \[3, 8\], expected \[3, 9\]"):
        stack(x, src_key_padding_mask=PADDING[:, 1:])
    with pytest.raises(RuntimeError, match="activation should be relu/gelu"):
        nn.TransformerEncoderLayer(E, HEADS, HIDDEN, activation="tanh")
