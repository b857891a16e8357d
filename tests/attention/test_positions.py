"""Sinusoidal, learned and rotary positions, and ALiBi's slopes, against their papers' definitions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from dlops import functional, nn


def test_sinusoidal_is_the_papers():
    """Vaswani et al. 2017, section 3.5."""
    table = nn.SinusoidalPositions(8)(torch.zeros(50, 8))
    for position in (0, 1, 7, 49):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def rotate(x, position, theta=10000.0, interleaved=True):
    """Su et al. 2021, equation 13: x [D] times a block-diagonal matrix of rotations."""
    d = x.shape[0]
    matrix = torch.zeros(d, d, dtype=torch.float64)
    for i in range(d // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
        angle = position * theta ** (-2 * i / d)
        matrix[a, a] = matrix[b, b] = math.cos(angle)
        matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return (matrix @ x.double()).float()


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_is_the_papers(interleaved):
    rotary = nn.RotaryPositions(8, base=500.0, scaling=2.0, interleaved=interleaved)
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 1, 5, 8)
    turned = rotary(q, k, offset=3)
    for x, y in zip((q, k), turned):
        for head in range(x.shape[1]):
            for row in range(5):
                expected = rotate(x[0, head, row], (3 + row) / 2, 500.0, interleaved)
                torch.testing.assert_close(y[0, head, row], expected, rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_only():
    rotary = nn.RotaryPositions(16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    scores = []
    for at in (0, 100, 5000):
        turned_q, _ = rotary(q, q, offset=at + 7)
        _, turned_k = rotary(k, k, offset=at)
        scores.append((turned_q * turned_k).sum())
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-3, atol=1e-3)


def test_rotary_turns_part_of_a_head():
    q = torch.randn(2, 3, 5, 12)
    turned, _ = nn.RotaryPositions(8)(q, q)
    assert torch.equal(turned[..., 8:], q[..., 8:])
    torch.testing.assert_close(turned[..., :8], nn.RotaryPositions(8)(q[..., :8].contiguous(), q[..., :8].contiguous())[0])


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (8, [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8]),
        (16, [2 ** (-(i + 1) / 2) for i in range(16)]),
        (12, [2 ** -(i + 1) for i in range(8)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
        (3, [2**-4, 2**-8, 2**-2]),
    ],
)
def test_alibi_slopes_are_the_papers(heads, slopes):
    """Press et al. 2022, section 3, and the authors' code for numbers of heads that are no power of two."""
    torch.testing.assert_close(nn.alibi_slopes(heads), torch.tensor(slopes))


def test_alibi():
    alibi = nn.ALiBi(6)
    bias = alibi.bias(4, 9, shift=5)
    assert bias.shape == (6, 4, 9)
    assert bias[2, 1, 0].item() == pytest.approx(-6 * alibi.slopes[2].item())
    assert torch.equal(bias[:, 3, 8], torch.zeros(6))
    q, k, v = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 9, 8), torch.randn(2, 6, 9, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, alibi.bias(4, 9))
    torch.testing.assert_close(alibi(q, k, v), expected, rtol=1e-5, atol=1e-5)
    assert list(alibi.state_dict()) == [] and "heads=6" in repr(alibi)
    causal = alibi.bias(9, 9).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(k, k, v, causal)
    torch.testing.assert_close(alibi(k, k, v, is_causal=True), expected, rtol=1e-5, atol=1e-5)


ADDED = {"sinusoidal": lambda: nn.SinusoidalPositions(8, 16), "learned": lambda: nn.LearnedPositions(64, 8)}


@pytest.mark.parametrize("kind", ADDED)
def test_offset_and_positions_agree(kind):
    module, x = ADDED[kind](), torch.randn(2, 5, 8)
    at = torch.arange(7, 12)
    expected = module(x, offset=7)
    for other in (
        module(x, positions=at),
        module(x, positions=at.expand(2, 5)),
        module(x, offset=torch.tensor(7)),
        module(x, offset=torch.tensor([7, 7], dtype=torch.int32)),
    ):
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-6)
    ragged = module(x, offset=torch.tensor([7, 30]))
    torch.testing.assert_close(ragged[0], expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ragged[1], module(x[1], offset=30), rtol=0, atol=1e-6)


def test_rotary_offset_and_positions_agree():
    module, q, k = nn.RotaryPositions(8, 16), torch.randn(2, 2, 5, 8), torch.randn(2, 1, 5, 8)
    expected = module(q, k, offset=30)  # past the table
    for other in (module(q, k, positions=torch.arange(30, 35)), module(q, k, offset=torch.tensor([30, 30]))):
        for a, b in zip(other, expected):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_rotary_gradients():
    module, q = nn.RotaryPositions(8), torch.randn(1, 2, 3, 8, requires_grad=True)
    turned, _ = module(q, q.detach())
    turned.square().sum().backward()
    torch.testing.assert_close(q.grad, 2 * q.detach(), rtol=1e-5, atol=1e-5)  # a rotation keeps lengths


@pytest.mark.parametrize("make", [lambda: nn.SinusoidalPositions(8, 4), lambda: nn.RotaryPositions(8, 4)])
def test_tables(make):
    module = make()
    assert list(module.state_dict()) == [] and module.sin.dtype is torch.float32
    module.bfloat16()
    assert module.sin.dtype is torch.float32  # positions of 1000 are not for bfloat16
    with torch.inference_mode():
        module._look_up(slice(0, 20))
    assert not module.sin.is_inference() and module.sin.shape[0] >= 20
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other.sin, module.sin)
    assert torch.equal(make().to("meta").to_empty(device="cpu").sin, make().sin)


def test_dtypes():
    x = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    assert nn.SinusoidalPositions(8)(x).dtype is torch.bfloat16
    q = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    assert [t.dtype for t in nn.RotaryPositions(8)(q, q)] == [torch.bfloat16] * 2


def test_learned_drops_into_a_model():
    torch.manual_seed(0)
    module = nn.LearnedPositions(10, 8)
    assert list(module.state_dict()) == ["weight"] and module.weight.std().item() == pytest.approx(0.02, rel=0.3)
    module(torch.randn(2, 5, 8)).sum().backward()
    assert torch.equal(module.weight.grad[:, 0], torch.tensor([2.0] * 5 + [0.0] * 5))


def test_compiles():
    q, k = torch.randn(2, 2, 5, 8), torch.randn(2, 1, 5, 8)
    rotary = nn.RotaryPositions(8)
    compiled = torch.compile(rotary, fullgraph=True, backend="aot_eager")
    for offset in (0, torch.tensor([3, 9])):
        for a, b in zip(compiled(q, k, offset), rotary(q, k, offset)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    added = nn.SinusoidalPositions(8)
    torch.testing.assert_close(torch.compile(added, fullgraph=True, backend="aot_eager")(q[0]), added(q[0]))


def test_a_decoder_step_by_step():
    """Rotary positions and a cache, one row at a time, against the whole sequence at once."""
    rotary, cache = nn.RotaryPositions(8), nn.KVCache(2, 2, 6, 8)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    whole_q, whole_k = rotary(q, k)
    expected = functional.scaled_dot_product_attention(whole_q, whole_k, v, is_causal=True, enable_gqa=True)
    for t in range(6):
        row_q, row_k = rotary(q[:, :, t : t + 1], k[:, :, t : t + 1], offset=cache.lengths)
        keys, values = cache.append(row_k, v[:, :, t : t + 1])
        out = functional.attention_decode(row_q, keys, values, cache.lengths)
        torch.testing.assert_close(out, expected[:, :, t : t + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.SinusoidalPositions(7), "dim must be even and positive: got 7"),
        (lambda: nn.RotaryPositions(8, base=0.0), "base, scaling and max_length must be positive"),
        (lambda: nn.LearnedPositions(0, 8), "max_length and dim must be positive: got 0 and 8"),
        (lambda: nn.alibi_slopes(0), "heads must be positive: got 0"),
        (lambda: nn.SinusoidalPositions(8)(torch.zeros(2, 5, 6)), r"x must be \[..., L, 8\]: got shape \[2, 5, 6\]"),
        (lambda: nn.SinusoidalPositions(8)(torch.zeros(5, 8), offset=-1), "offset must not be negative: got -1"),
        (lambda: nn.SinusoidalPositions(8)(torch.zeros(5, 8), 1, torch.arange(5)), "offset and positions exclude each other"),
        (lambda: nn.SinusoidalPositions(8)(torch.zeros(5, 8), positions=torch.zeros(5)), "positions must be integers"),
        (lambda: nn.SinusoidalPositions(8)(torch.zeros(5, 8), positions=torch.arange(4)), r"or \[B, 5\]: got torch.int64 \[4\]"),
        (lambda: nn.SinusoidalPositions(8)(torch.zeros(5, 8), torch.zeros(2)), "offset must be an integer"),
        (lambda: nn.LearnedPositions(4, 8)(torch.zeros(5, 8)), "position 4 does not exist: max_length is 4"),
        (lambda: nn.RotaryPositions(8)(torch.zeros(5, 8), torch.zeros(5, 8)), r"must be \[B, H, L, D\]"),
    ],
    ids=range(12),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
