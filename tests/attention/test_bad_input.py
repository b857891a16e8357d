"""Every kind of bad input gives an error that names the argument, what came and what is allowed."""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops.functional import attention_decode, merge_attention, scaled_dot_product_attention

ops = torch.ops.dlops


def t(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


Q, K = t(2, 4, 5, 8), t(2, 4, 7, 8)

CASES = {
    "not a tensor": (([1.0], K, K), {}, TypeError, "query must be a tensor: got list"),
    "none": ((None, K, K), {}, TypeError, "query must be a tensor: got NoneType"),
    "one dimension": ((t(8), K, K), {}, ValueError, r"query must be \[..., length, d\]: got shape \[8\]"),
    "dtypes": ((Q, K.bfloat16(), K), {}, RuntimeError, "key must have query's dtype torch.float32: got torch.bfloat16"),
    "head dimension": ((Q, t(2, 4, 7, 9), K), {}, ValueError, "key has head dimension 9, expected that of query, 8"),
    "lengths": ((Q, K, t(2, 4, 6, 8)), {}, ValueError, "value has length 6, expected that of key, 7"),
    "batch": ((Q, t(3, 4, 7, 8), t(3, 4, 7, 8)), {}, ValueError, "batch dimensions of query .* do not fit"),
    "heads": ((Q, t(2, 3, 7, 8), t(2, 3, 7, 8)), {}, ValueError, "have 4, 3, 3 heads"),
    "gqa without asking": ((Q, t(2, 2, 7, 8), t(2, 2, 7, 8)), {}, ValueError, "only with enable_gqa=True"),
    "gqa": ((Q, t(2, 3, 7, 8), t(2, 3, 7, 8)), {"enable_gqa": True}, ValueError, "multiple of the heads .*: got 4, 3 and 3"),
    "mask shape": ((Q, K, K, t(5, 6)), {}, ValueError, r"attn_mask has shape .* does not broadcast to \[2, 4, 5, 7\]"),
    "mask dtype": ((Q, K, K, t(5, 7).double()), {}, RuntimeError, "attn_mask must be bool, float32 or .*: got torch.float64"),
    "mask and causal": ((Q, K, K, t(5, 7), 0.0, True), {}, RuntimeError, "attn_mask and is_causal exclude each other"),
    "window": ((Q, K, K), {"window": (-1, 2)}, ValueError, r"window must be \(left, right\), .*: got \(-1, 2\)"),
    "window of floats": ((Q, K, K), {"window": 2.5}, ValueError, "window must be .*: got 2.5"),
    "window of one": ((Q, K, K), {"window": -3}, ValueError, "window must be .*: got -3"),
    "softcap": ((Q, K, K), {"softcap": -1.0}, ValueError, r"softcap must be 0 \(none\) or positive: got -1"),
    "dropout": ((Q, K, K), {"dropout_p": 1.5}, ValueError, r"dropout_p must be in \[0, 1\]: got 1.5"),
    "slopes": ((Q, K, K), {"alibi_slopes": t(3)}, ValueError, r"alibi_slopes has shape \[3\], expected \[4\] or \[2, 4\]"),
    "sinks": ((Q, K, K), {"sinks": t(2, 4)}, ValueError, r"sinks has shape \[2, 4\], expected \[4\]"),
    "key_lengths": ((Q, K, K), {"key_lengths": torch.tensor([1, 8])}, ValueError, "key_lengths must be 0 to 7: got 8"),
    "key_lengths shape": ((Q, K, K), {"key_lengths": torch.tensor([1])}, ValueError, r"key_lengths has shape \[1\]"),
    "variant": ((Q, K, K), {"variant": "fast"}, ValueError, "unknown variant 'fast': this device has naive, tiled, split"),
    "split": ((Q, K, K), {"variant": "split", "dropout_p": 0.5}, ValueError, "variant 'split' has no dropout: got dropout_p 0.5"),
}


@pytest.mark.parametrize("case", CASES)
def test_function(case):
    arguments, options, error, message = CASES[case]
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(*arguments, **options)


@pytest.mark.parametrize("case", ["softcap", "slopes", "sinks", "key_lengths", "dropout", "window", "gqa without asking"])
def test_the_composition_checks_the_same(case):
    """float64, and whatever else does not reach the op."""
    arguments, options, error, message = CASES[case]
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    with dlops.backend("torch"), pytest.raises(error, match=message):
        scaled_dot_product_attention(*double, **{"softcap": 1.0} | options)


def test_merge():
    for outs, lses in ((t(2, 3, 4), t(2, 4)), ([], []), ([t(3, 4)], [t(3), t(3)])):
        with pytest.raises(ValueError, match=r"outs must be \[N, ..., D\] and lses \[N, ...\]: got "):
            merge_attention(outs, lses)
    with pytest.raises(ValueError, match="outs must have one shape"):
        merge_attention([t(3, 4), t(2, 4)], [t(3), t(2)])


def test_decode():
    with pytest.raises(TypeError, match="attention_decode: lengths must be a tensor: got NoneType"):
        attention_decode(Q, K, K, None)


def call(q=Q, k=K, v=K, mask=None, cu_q=None, cu_k=None, rng=None, dropout_p=0.0):
    return ops.attention.default(
        q, k, v, mask, None, None, None, cu_q, cu_k, rng, 5, 7, 1.0, -1, -1, False, 0.0, dropout_p, ""
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"q": t(2, 4, 5)}, r"query must be \[batch, heads, length, d\]: got shape \[2, 4, 5\]"),
        ({"q": Q.double()}, "query must be float32, float16 or bfloat16: got Double"),
        ({"q": t(2, 4, 5, 300)}, "query must have a head dimension of 1 to 256: got 300"),
        ({"k": t(1, 4, 7, 8)}, "key has batch size 1, expected 2"),
        ({"v": t(2, 2, 7, 8)}, "value has 2 heads, expected those of key, 4"),
        ({"k": t(2, 3, 7, 8), "v": t(2, 3, 7, 8)}, "query must have a multiple of the 3 heads of key: got 4"),
        ({"mask": t(5, 7)}, r"attn_mask has shape \[5, 7\], which does not broadcast to \[2, 4, 5, 7\]"),
        ({"dropout_p": 0.5}, "rng must be given where dropout_p > 0"),
        ({"dropout_p": 0.5, "rng": torch.tensor([1])}, r"rng must hold seed and offset: got shape \[1\]"),
        ({"cu_q": torch.tensor([0, 5])}, "cu_seqlens_q and cu_seqlens_k go together: got one of them"),
    ],
)
def test_op(options, message):
    """The op checks for itself: it can be called without the function."""
    with pytest.raises(ValueError, match=message):
        call(**options)


def test_backward_op():
    out, lse = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 5)

    def backward(dout=out, lse=lse, needs=(1, 1, 1, 0, 0), mask=None):
        options = (mask, None, None, None, None, None, None, 5, 7, 1.0, -1, -1, False, 0.0, 0.0)
        return ops.attention_backward.default(dout, None, Q, K, K, out, lse, *options, needs, True, "")

    for options, message in [
        ({"dout": t(2, 4, 5, 9)}, r"grad of out has shape \[2, 4, 5, 9\]"),
        ({"lse": t(2, 4)}, r"lse has shape \[2, 4\]"),
        ({"needs": (1, 1)}, "needs must have 5 flags: got 2"),
        ({"needs": (0, 0, 0, 1, 0)}, "needs asks for the gradient of an absent attn_mask"),
        ({"needs": (0, 0, 0, 1, 0), "mask": torch.ones(1, 1, 5, 7, dtype=torch.bool)}, "a boolean attn_mask has no gradient"),
        ({"needs": (0, 0, 0, 0, 1)}, "needs asks for the gradient of absent sinks"),
    ]:
        with pytest.raises(ValueError, match=message):
            backward(**options)
