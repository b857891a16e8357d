"""Counter-based normals: the same bits everywhere, the right distribution, keyed by (seed, step, element) only."""

from __future__ import annotations

import hashlib

import pytest
import torch

from dlops import _C
from dlops.functional import add_noise, diffusion_step, randn
from dlops.reference import philox

SEEDS = [0, 1, -1, 2**63 - 1]

# SHA-256 of the float32 bytes (little endian) of randn([4, elements], seeds=SEEDS, step=step): a promise to users. A
# change of any bit on any device fails here. First 16 hexadecimal digits.
HASHES = {
    (-1, 4096): "33420ff8254eee58",
    (0, 4097): "8968898471f0d430",
    (7, 1): "74679f94fbde3229",
    (999, 100003): "7af3cc77f07fe0d7",
}


def digest(t: torch.Tensor) -> str:
    return hashlib.sha256(t.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("variant", ["naive", "fused"])
@pytest.mark.parametrize("step, elements", HASHES)
def test_bits_are_the_promised_ones(device, step, elements, variant):
    z = randn((4, elements), seeds=SEEDS, step=step, device=device.torch_device, variant=variant)
    assert digest(z) == HASHES[step, elements]


def test_philox_known_answers():
    # The vectors of the reference implementation (Random123, kat_vectors): counter and key all 0, all ones, digits of pi.
    cases = [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for counter, key, expected in cases:
        words = philox.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
        assert " ".join(f"{w.item():08x}" for w in words) == expected


def test_against_float64_box_muller(device):
    z = randn((4, 50001), seeds=SEEDS, step=3, device=device.torch_device).cpu().double()
    exact = philox.normals((4, 50001), seeds=SEEDS, step=3)
    # float32 through log, sqrt and sin: a few units in the last place of the radius (<= 6.7).
    assert (z - exact).abs().max() < 1.5e-6
    assert (z - exact).abs().mean() < 6e-8


def test_distribution(device):
    z = randn((2, 1 << 19), seeds=[11, 12], device=device.torch_device).cpu().double().flatten()
    n = z.numel()
    moments = [z.mean(), z.var() - 1, (z**3).mean(), (z**4).mean() - 3]
    for value, variance in zip(moments, (1, 2, 15, 96)):  # five standard errors of each sample moment
        assert abs(value) < 5 * (variance / n) ** 0.5
    ks = (torch.sort(z).values * 0.5**0.5).erf().mul(0.5).add(0.5) - (torch.arange(n) + 0.5) / n
    assert ks.abs().max() < 1.95 / n**0.5  # Kolmogorov-Smirnov, p = 0.001


def test_value_depends_on_seed_step_element_only(device):
    on = device.torch_device
    batch = randn((5, 3, 100), seeds=[9, 8, 7, 6, 5], step=4, device=on)
    assert torch.equal(batch[2:3], randn((1, 300), seeds=[7], step=4, device=on).view(1, 3, 100))
    assert torch.equal(batch[0].flatten()[:17], randn((1, 17), seeds=[9], step=4, device=on)[0])
    assert not torch.equal(batch, randn((5, 3, 100), seeds=[9, 8, 7, 6, 5], step=5, device=on))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(batch, randn((5, 3, 100), seeds=[9, 8, 7, 6, 5], step=4, device=on))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_once(device, dtype):
    z = randn((3, 1001), seeds=[1, 2, 3], device=device.torch_device)
    assert torch.equal(randn((3, 1001), seeds=[1, 2, 3], device=device.torch_device, dtype=dtype), z.to(dtype))


def test_step_and_add_noise_draw_the_same_stream(device):
    on = device.torch_device
    x = torch.randn(3, 5, 7, device=on)
    seeds = torch.tensor([4, 5, 6], device=on)
    z = randn((3, 5, 7), seeds=seeds, step=2)
    table = torch.zeros(4, 11, device=on)
    table[:, 3], table[:, 10] = float("inf"), 1.0  # prev = noise
    table[:, 4] = 0.0
    assert torch.equal(diffusion_step(x, x, table, 2, seeds=seeds)[0], z)
    assert torch.equal(add_noise(x, None, torch.tensor([[0.0, 1.0]], device=on), 0, seeds=seeds, step=2), z)


def test_element_is_the_logical_index_whatever_the_layout(device):
    x = torch.randn(2, 4, 6, 5, device=device.torch_device)
    table = torch.tensor([[1.0, 0.0]], device=device.torch_device)
    table[0, 1] = 2.0
    plain = add_noise(x, None, table, 0, seeds=[1, 2])
    assert torch.equal(plain, add_noise(x.to(memory_format=torch.channels_last), None, table, 0, seeds=[1, 2]))


def test_direct_kernel_call(device):
    if device.isa is None:
        pytest.skip("dlops._C calls the CPU kernels; the op tests cover CUDA")
    out = torch.empty(4, 4097)
    _C.randn(out, torch.tensor(SEEDS), 0)
    assert digest(out) == HASHES[0, 4097]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(shape=(3, 4), seeds=[1, 2]), ValueError, "seeds must have one entry per sample"),
        (dict(shape=(2, 4), seeds=[1.5, 2]), TypeError, "seeds must be ints"),
        (dict(shape=(2, 4), seeds=torch.tensor([1.0, 2.0])), TypeError, "seeds must be int64"),
        (dict(shape=(2, 4), seeds=[1, 2], step=-2), ValueError, "step must be in"),
        (dict(shape=(2, 4), seeds=[1, 2], variant="best"), ValueError, "unknown variant 'best': this device has naive, fused"),
        (dict(shape=(2, -4), seeds=[1, 2]), ValueError, "shape must be"),
        (dict(shape=(2, 4), seeds=[1, 2], out=torch.empty(3, 4)), ValueError, "out has shape"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        randn(arguments.pop("shape"), **arguments)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2,)])
def test_empty_and_tiny(device, shape):
    assert randn(shape, seeds=list(range(shape[0])), device=device.torch_device).shape == shape
