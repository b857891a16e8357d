"""dlops.accelerate on models of the transformers library: random weights, tiny configurations."""

import copy
import pickle

import pytest
import torch
from torch import nn

import dlops

transformers = pytest.importorskip("transformers", reason="its models are what is accelerated")

from dlops import _transformers  # noqa: E402

WIDTHS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
TEXT = dict(vocab_size=99, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GROUPED = WIDTHS | TEXT | dict(num_key_value_heads=2)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
B, L = 3, 11


def gpt2(**kwargs):
    options = dict(n_positions=64, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**(options | TEXT | kwargs)))


MODELS = {
    "GPT-2": gpt2,
    "BERT": lambda: transformers.BertModel(transformers.BertConfig(**WIDTHS, **NO_DROPOUT, vocab_size=99)),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**WIDTHS, **NO_DROPOUT, image_size=16, patch_size=4)),
    # a sliding window
    "Mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED, sliding_window=4)),
    # a softcap, and a window in every other layer
    "Gemma 2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **GROUPED, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0, attn_implementation="eager"
        )
    ),
    # sinks, and a window in every other layer
    "gpt-oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4)
    ),
    # a learned bias; encoder and decoder
    "T5": lambda: transformers.T5Model(
        transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=64, dropout_rate=0.0)
    ),
}
PADDED = torch.ones(B, L, dtype=torch.long)
PADDED[1, 7:] = 0  # on the right
PADDED[2, :3] = 0  # on the left


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("sinks"):
                parameter.normal_()
    return model


def inputs(name, padded=False):
    torch.manual_seed(1)
    if name == "ViT":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    ids = torch.randint(3, 99, (B, L))
    given = {"input_ids": ids} | ({"attention_mask": PADDED} if padded else {})
    return given | ({"decoder_input_ids": ids.flip(1)} if name == "T5" else {})


def outputs(model, given):
    """The first output, where it is not padding (of which eager attention makes something else)."""
    out = model(**given)[0]  # [B, L, ...]
    return out[given["attention_mask"].bool()] if "attention_mask" in given else out


def gradients(model, given):
    model.zero_grad()
    outputs(model, given).square().mean().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("train", "padded"), [(False, False), (True, True)], ids=["eval", "train-padded"])
@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_and_gradients(name, train, padded):
    model, given = build(name).train(train), inputs(name, padded)
    was = model.config._attn_implementation
    expected, expected_gradients = outputs(model, given), gradients(model, given)

    report = dlops.accelerate(model)
    attentions = [entry for entry in report.swapped if entry.of.startswith("the attention of")]
    assert attentions[0].path == "(model)" and attentions[0].to == "dlops.functional.scaled_dot_product_attention"
    assert model.config._attn_implementation == "dlops" and not report.kept, report
    with dlops.backend("dlops"):
        torch.testing.assert_close(outputs(model, given), expected, rtol=1e-5, atol=1e-5)
        for key, gradient in gradients(model, given).items():
            torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-4, atol=1e-4, msg=key)

    dlops.restore(model)
    assert model.config._attn_implementation == was
    assert not any("dlops" in key for module in model.modules() for key in vars(module))
    assert torch.equal(outputs(model, given), expected)


@pytest.mark.parametrize("name", ["GPT-2", "BERT", "Llama", "ViT"])
def test_explain(name):
    model = build(name)
    given = inputs(name)
    dlops.accelerate(model)
    plans = [plan for plan in dlops.explain(lambda **kwargs: model(**kwargs), **given) if plan.op == "attention"]
    assert len(plans) == 2 and all(plan.flops > 0 for plan in plans)


def test_idempotent_and_copied():
    model, given = build("GPT-2").eval(), inputs("GPT-2", padded=True)
    expected = outputs(model, given)
    dlops.accelerate(model)
    assert dlops.accelerate(model).entries == []
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(outputs(other, given), expected, rtol=1e-5, atol=1e-5)
        dlops.restore(other)
        assert other.config._attn_implementation == "sdpa"
        assert torch.equal(outputs(other, given), expected)
    assert model.config._attn_implementation == "dlops"
    dlops.restore(model.transformer)  # shares the configuration
    assert model.config._attn_implementation == "sdpa"
    dlops.restore(model)
    assert model.config._attn_implementation == "sdpa"


def test_unpickling_registers_our_attention():
    model = build("GPT-2")
    dlops.accelerate(model)
    assert b"dlops._transformers" in pickle.dumps(model)  # importing it registers


@pytest.mark.parametrize("name", ["GPT-2", "Mistral"])
def test_generate(name):
    model, given = build(name).eval(), inputs(name)
    given["attention_mask"] = torch.ones(B, L, dtype=torch.long)
    given["attention_mask"][1, :4] = 0  # as a batch of prompts is padded
    options = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    expected = model.generate(**given, **options)
    dlops.accelerate(model)
    ours = model.generate(**given, **options)
    assert torch.equal(ours.sequences, expected.sequences)
    for a, b in zip(ours.logits, expected.logits):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mistral"])
def test_packed_sequences(name):
    """Several sequences in one row, told apart by their position ids."""
    model = build(name).eval()
    given = {"input_ids": torch.randint(3, 99, (1, L)), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0]])}
    expected = model(**given, use_cache=False)[0]
    dlops.accelerate(model)
    ours = model(**given, use_cache=False)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    alone = model(input_ids=given["input_ids"][:, 4:10], use_cache=False)[0]
    torch.testing.assert_close(ours[:, 4:10], alone, rtol=1e-4, atol=1e-5)


def calls(monkeypatch):
    """The masks and windows that attention is called with."""
    seen, real = [], _transformers.functional.scaled_dot_product_attention

    def spy(query, key, value, mask, dropout, causal, scale, gqa, **options):
        seen.append((None if mask is None else tuple(mask.shape), causal, options.get("window"), gqa))
        return real(query, key, value, mask, dropout, causal, scale, gqa, **options)

    monkeypatch.setattr(_transformers.functional, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize(
    ("name", "padded", "expected"),
    [
        ("GPT-2", False, (None, True, None, False)),
        ("GPT-2", True, ((B, 1, 1, L), False, (None, 0), False)),
        ("Llama", False, (None, True, None, True)),
        ("Mistral", False, (None, False, (3, 0), True)),
        ("Mistral", True, ((B, 1, 1, L), False, (3, 0), True)),
        ("BERT", False, (None, False, None, False)),
        ("BERT", True, ((B, 1, L, L), False, None, False)),
    ],
)
def test_what_the_window_hides_is_not_read(name, padded, expected, monkeypatch):
    model = build(name).eval()
    dlops.accelerate(model)
    seen = calls(monkeypatch)
    model(**inputs(name, padded))
    assert seen == [expected] * 2


def test_a_mask_that_a_model_writes_to_is_read(monkeypatch):
    mask = _transformers.mask(
        batch_size=1, q_length=4, kv_length=4, attention_mask=torch.tensor([[True, True, True, False]]), device="cpu"
    )
    q = torch.randn(1, 2, 4, 8)
    seen = calls(monkeypatch)
    first, _ = _transformers.attention(nn.Module(), q, q, q, mask)
    whole, _ = _transformers.attention(nn.Module(), q, q, q, mask.clone())
    torch.testing.assert_close(first, whole, rtol=1e-5, atol=1e-6)
    mask[0, 0, 0, 2] = True
    changed, _ = _transformers.attention(nn.Module(), q, q, q, mask)
    assert [window for _, _, window, _ in seen] == [(None, 0), None, None]
    assert not torch.allclose(changed[0, 0], first[0, 0])


def test_dropout_in_training():
    model = gpt2(attn_pdrop=0.5).train()
    dlops.accelerate(model)
    given, outs = inputs("GPT-2"), []
    for _ in range(2):
        torch.manual_seed(0)
        outs.append(outputs(model, given))
    assert torch.equal(*outs) and not torch.equal(outs[0], outputs(model, given))


def test_gradient_checkpointing():
    model, given = build("Llama").train(), inputs("Llama", padded=True)
    expected = gradients(model, given)
    dlops.accelerate(model)
    for reentrant in (True, False):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for key, gradient in gradients(model, given).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("padded", [False, True])
def test_compiles(padded):
    model, given = build("Llama").eval(), inputs("Llama", padded)
    given["use_cache"] = False
    dlops.accelerate(model)
    with torch.no_grad():
        expected = model(**given)[0]
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(**given)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: setattr(model.config, "_attn_implementation", "flex_attention"), "is 'flex_attention'"),
        (lambda model: setattr(model.config, "output_attentions", True), "it returns attention weights"),
        (lambda model: setattr(model.config, "_attn_implementation", "dlops"), "it is dlops already"),
        (lambda model: setattr(type(model), "_can_set_attn_implementation_cached_value", False), "AttentionInterface"),
    ],
    ids=["flex", "weights", "dlops", "old"],
)
def test_left_alone_with_a_reason(change, reason):
    class Model(transformers.GPT2LMHeadModel):
        pass

    model = Model(build("GPT-2").config.__class__(**TEXT, n_embd=32, n_layer=1, n_head=4, attn_implementation="eager"))
    change(model)
    was = model.config._attn_implementation
    report = dlops.accelerate(model)
    (entry,) = [entry for entry in report.kept if entry.of == "the attention of Model"]
    assert reason in entry.reason and model.config._attn_implementation == was


def test_a_model_within_a_module():
    outer = nn.ModuleDict({"text": build("BERT"), "head": nn.LayerNorm(32)})
    report = dlops.accelerate(outer)
    assert report.swapped[0].path == "text" and outer["text"].config._attn_implementation == "dlops"
    assert report.swapped[-1].path == "head"
    dlops.restore(outer)
    assert outer["text"].config._attn_implementation == "sdpa"
