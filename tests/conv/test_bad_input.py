"""Every error that torch raises is raised, with the same type and like words; what torch does not know has errors of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops import functional
from dlops.functional import conv1d, conv2d, conv3d, conv_transpose2d

X, W, T = (1, 3, 5, 5), (4, 3, 3, 3), (3, 4, 3, 3)  # input, weight, weight of a transposed convolution


def t(*size, **kwargs):
    return torch.ones(size, **kwargs)


# name: (function, arguments, keywords, words that torch's message and ours have in common)
LIKE_TORCH = {
    "input of 2 dimensions": ("conv2d", (t(5, 5), t(*W)), {}, ["5, 5"]),
    "input of 5 dimensions": ("conv2d", (t(1, *X), t(*W)), {}, ["1, 1, 3, 5, 5"]),
    "1-D input of 4 dimensions": ("conv1d", (t(*X), t(4, 3, 3)), {}, ["1, 3, 5, 5"]),
    "3-D input of 3 dimensions": ("conv3d", (t(3, 5, 5), t(4, 3, 3, 3, 3)), {}, ["3, 5, 5"]),
    "weight of 3 dimensions": ("conv2d", (t(*X), t(4, 3, 3)), {}, []),
    "weight of 5 dimensions": ("conv2d", (t(*X), t(4, 3, 3, 3, 3)), {}, []),
    "channels": ("conv2d", (t(1, 2, 5, 5), t(*W)), {}, ["channels", "2", "3"]),
    "channels of groups": ("conv2d", (t(1, 4, 5, 5), t(4, 4, 3, 3)), {"groups": 2}, ["channels", "4", "8"]),
    "filters of groups": ("conv2d", (t(1, 4, 5, 5), t(3, 2, 3, 3)), {"groups": 2}, ["3", "2", "groups"]),
    "groups 0": ("conv2d", (t(*X), t(*W)), {"groups": 0}, ["groups"]),
    "groups -1": ("conv2d", (t(*X), t(*W)), {"groups": -1}, ["groups"]),
    "groups 1.5": ("conv2d", (t(*X), t(*W)), {"groups": 1.5}, ["groups"]),
    "stride 0": ("conv2d", (t(*X), t(*W)), {"stride": 0}, ["stride"]),
    "stride (1, -1)": ("conv2d", (t(*X), t(*W)), {"stride": (1, -1)}, ["stride"]),
    "stride 1.5": ("conv2d", (t(*X), t(*W)), {"stride": 1.5}, ["stride"]),
    "stride None": ("conv2d", (t(*X), t(*W)), {"stride": None}, ["stride"]),
    "stride of 3 values": ("conv2d", (t(*X), t(*W)), {"stride": (1, 1, 1)}, ["stride", "1, 1, 1"]),
    "padding -1": ("conv2d", (t(*X), t(*W)), {"padding": -1}, ["padding"]),
    "padding of 3 values": ("conv2d", (t(*X), t(*W)), {"padding": (1, 1, 1)}, ["padding", "1, 1, 1"]),
    "padding half": ("conv2d", (t(*X), t(*W)), {"padding": "half"}, ["padding", "half"]),
    "padding None": ("conv2d", (t(*X), t(*W)), {"padding": None}, ["padding"]),
    "same and stride": ("conv2d", (t(*X), t(*W)), {"padding": "same", "stride": 2}, ["same"]),
    "dilation 0": ("conv2d", (t(*X), t(*W)), {"dilation": 0}, ["dilation"]),
    "dilation of 3 values": ("conv2d", (t(*X), t(*W)), {"dilation": (1, 1, 1)}, ["dilation", "1, 1, 1"]),
    "bias of 3 values": ("conv2d", (t(*X), t(*W), t(3)), {}, ["bias", "4", "3"]),
    "bias of 2 dimensions": ("conv2d", (t(*X), t(*W), t(1, 4)), {}, ["bias", "1, 4"]),
    "kernel too large": ("conv2d", (t(*X), t(4, 3, 6, 6)), {}, ["6", "ernel"]),
    "kernel too large once padded": ("conv2d", (t(*X), t(4, 3, 8, 3)), {"padding": 1}, ["8", "ernel"]),
    "kernel of size 0": ("conv2d", (t(*X), t(4, 3, 0, 3)), {}, ["ernel"]),
    "no filters": ("conv2d", (t(*X), t(0, 3, 3, 3)), {}, ["weight"]),
    "empty image": ("conv2d", (t(1, 3, 0, 5), t(*W)), {}, ["0"]),
    "empty padded image": ("conv2d", (t(1, 3, 0, 5), t(4, 3, 1, 1)), {"padding": 1}, []),
    "weight of another type": ("conv2d", (t(*X), t(*W, dtype=torch.float64)), {}, ["ouble|float64"]),
    "bias of another type": ("conv2d", (t(*X), t(*W), t(4, dtype=torch.float64)), {}, ["ouble|float64"]),
    "no input": ("conv2d", (None, t(*W)), {}, []),
    "no weight": ("conv2d", (t(*X), None), {}, []),
    "a list": ("conv2d", ([1.0], t(*W)), {}, []),
    "bias is a number": ("conv2d", (t(*X), t(*W), 1.0), {}, []),
    "transposed: input of 2 dimensions": ("conv_transpose2d", (t(5, 5), t(*T)), {}, ["5, 5"]),
    "transposed: channels": ("conv_transpose2d", (t(1, 2, 5, 5), t(*T)), {}, ["channels", "2", "3"]),
    "transposed: channels of groups": ("conv_transpose2d", (t(*X), t(*T)), {"groups": 2}, ["3", "2"]),
    "transposed: bias": ("conv_transpose2d", (t(*X), t(*T), t(3)), {}, ["bias", "4", "3"]),
    "transposed: output_padding": ("conv_transpose2d", (t(*X), t(*T)), {"output_padding": 1}, ["output.padding"]),
    "transposed: output_padding -1": (
        "conv_transpose2d",
        (t(*X), t(*T)),
        {"output_padding": -1, "stride": 2},
        ["output_padding"],
    ),
    "transposed: output_padding of 3 values": (
        "conv_transpose2d",
        (t(*X), t(*T)),
        {"output_padding": (0, 0, 0)},
        ["output_padding"],
    ),
    "transposed: nothing left": ("conv_transpose2d", (t(1, 3, 1, 1), t(*T)), {"padding": 2}, ["-1"]),
    "transposed: just nothing left": ("conv_transpose2d", (t(1, 3, 1, 1), t(3, 4, 2, 2)), {"padding": 1}, ["0"]),
    "transposed: padding same": ("conv_transpose2d", (t(*X), t(*T)), {"padding": "same"}, ["padding"]),
    "transposed: stride 0": ("conv_transpose2d", (t(*X), t(*T)), {"stride": 0}, ["stride"]),
    "transposed: dilation 0": ("conv_transpose2d", (t(*X), t(*T)), {"dilation": 0}, ["dilation"]),
    "transposed: no weight": ("conv_transpose2d", (t(*X), None), {}, []),
}


@pytest.mark.parametrize("backend", ["auto", "dlops"])
@pytest.mark.parametrize("name", LIKE_TORCH)
def test_errors_are_torchs(name, backend):
    fn, args, kwargs, words = LIKE_TORCH[name]
    with pytest.raises(Exception) as theirs:
        getattr(F, fn)(*args, **kwargs)
    for activation in (None, "relu"):
        with dlops.backend(backend), pytest.raises(type(theirs.value)) as ours:
            getattr(functional, fn)(*args, **kwargs, activation=activation)
        for word in words:
            assert ours.match(word) and theirs.match(word)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_beyond_what_the_mode_can_give(mode):
    """The module pads with F.pad, whose error it is."""
    x, w = t(*X), t(4, 3, 7, 7)
    padding = 5 if mode == "reflect" else 6
    with pytest.raises(RuntimeError):
        torch.nn.Conv2d(3, 4, 7, padding=padding, padding_mode=mode)(x)
    with pytest.raises(RuntimeError):
        conv2d(x, w, padding=padding, padding_mode=mode)
    most = {"reflect": 4, "circular": 5}[mode]
    want = F.conv2d(F.pad(x, [most] * 4, mode), w)
    torch.testing.assert_close(conv2d(x, w, padding=most, padding_mode=mode), want)


@pytest.mark.parametrize("fn", [conv1d, conv2d, conv3d])
def test_our_own_arguments(fn):
    dims = {conv1d: 1, conv2d: 2, conv3d: 3}[fn]
    op = f"conv{dims}d"
    x, w = t(2, 3, *[5] * dims), t(4, 3, *[3] * dims)
    result = [2, 4, *[3] * dims]
    with pytest.raises(ValueError, match=f"{op}: activation must be .*'swish'"):
        fn(x, w, activation="swish")
    with pytest.raises(ValueError, match=f"{op}: padding_mode must be .*'mirror'"):
        fn(x, w, padding_mode="mirror")
    with pytest.raises(ValueError) as error:
        fn(x, w, residual=t(2, 4, *[5] * dims))
    assert f"{op}: residual has shape {[2, 4, *[5] * dims]}, expected {result}" in str(error.value)
    with pytest.raises(ValueError) as error:
        fn(x, w, out=t(2, 3, *[3] * dims))
    assert f"{op}: out has shape {[2, 3, *[3] * dims]}, expected {result}" in str(error.value)
    for name in ("residual", "out"):
        with pytest.raises(TypeError, match=f"{op}: {name} must be a tensor: got float"):
            fn(x, w, **{name: 1.0})
    with pytest.raises(RuntimeError, match=f"{op}: out= is not differentiable"):
        fn(x.clone().requires_grad_(), w, out=t(*result))
    with pytest.raises(ValueError, match="'warp'"):
        fn(x, w, variant="warp")


def test_types_that_do_not_fit():
    x, w = t(*X), t(*W)
    half = {name: t(1, 4, 3, 3, dtype=torch.float16) for name in ("residual", "out")}
    with pytest.raises((ValueError, RuntimeError), match="float16|Half|residual"):
        conv2d(x, w, residual=half["residual"])
    with pytest.raises((ValueError, RuntimeError), match="float16|Half|out"):
        conv2d(x, w, out=half["out"])


def test_an_out_without_a_layout():
    x, w = t(*X), t(*W)
    out = t(1, 4, 6, 6)[..., ::2, ::2]
    with pytest.raises(ValueError, match="out must be contiguous or channels_last"):
        conv2d(x, w, out=out)


@pytest.mark.parametrize(
    ("variant", "kwargs", "words"),
    [
        ("winograd", {"stride": 2}, "3x3|stride"),
        ("winograd", {"dilation": 2}, "3x3|dilation"),
        ("winograd_f2", {"stride": 2}, "3x3|stride"),
        ("gemm", {}, "1x1"),
        ("depthwise", {}, "channel"),
        ("shared", {}, "not there on this device, which has .*direct"),
    ],
)
def test_a_variant_says_what_it_is_for(variant, kwargs, words):
    with pytest.raises(ValueError, match=f"conv2d: variant '{variant}' .*({words})"):
        conv2d(t(*X), t(*W), variant=variant, **kwargs)


def test_what_our_kernels_do_not_take():
    x, w = t(*X, dtype=torch.float64), t(*W, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="conv2d: torch.float64 has no kernel"):
        conv2d(x, w)
    with dlops.backend("auto"):
        torch.testing.assert_close(conv2d(x, w), F.conv2d(x, w))
        integers = x.long(), w.long()
        assert torch.equal(conv2d(*integers), F.conv2d(*integers))
        complex_ = x + 1j, w - 1j
        torch.testing.assert_close(conv2d(*complex_), F.conv2d(*complex_))
        torch.testing.assert_close(conv2d(x, w, activation="silu"), F.silu(F.conv2d(x, w)))


def test_winograd_switch():
    with pytest.raises(ValueError, match="winograd: got 'always', expected one of auto, f2, off"):
        dlops.winograd("always")
    assert dlops.winograd.current() == "auto"
    with dlops.winograd("f2"):
        assert dlops.winograd.current() == "f2"
        with dlops.winograd("off"):
            assert dlops.winograd.current() == "off"
        assert dlops.winograd.current() == "f2"
    assert dlops.winograd.current() == "auto"


def test_ops_check_for_themselves():
    """A call past the functional layer is refused in words, never with a crash."""
    ops = torch.ops.dlops
    x, w, one, zero = t(2, 3, 5, 5), t(4, 3, 3, 3), [1, 1], [0, 0, 0, 0]
    forward = lambda x=x, w=w, bias=None, residual=None, stride=one, padding=zero, dilation=one, groups=1, mode="zeros", act="none", kernel="naive": (  # noqa: E731, E501
        ops.conv(x, w, None, bias, residual, stride, padding, dilation, groups, mode, act, False, kernel)
    )
    assert forward().shape == (2, 4, 3, 3)
    for bad in (
        {"x": t(5, 5)}, {"x": t(2, 2, 5, 5)}, {"w": t(4, 3, 3)}, {"w": t(4, 3, 7, 7)}, {"w": t(4, 3, 0, 3)}, {"bias": t(3)},
        {"bias": t(4).double()}, {"residual": t(2, 4, 5, 5)}, {"residual": t(2, 4, 3, 3).half()}, {"stride": [0, 1]},
        {"stride": [1]}, {"padding": [0, 0]}, {"padding": [-1, 0, 0, 0]}, {"dilation": [0, 1]}, {"groups": 0}, {"groups": 2},
        {"mode": "mirror"}, {"act": "swish"}, {"kernel": "warp"}, {"x": t(2, 3, 5, 5).double()}, {"w": t(4, 3, 3, 3).half()},
        {"mode": "reflect", "padding": [5, 5, 5, 5]}, {"mode": "circular", "padding": [6, 6, 0, 0]},
        {"padding": [2**62, 2**62, 0, 0]}, {"stride": [2**62, 1], "padding": [2**62, 2**62, 0, 0]}, {"groups": -1},
    ):  # fmt: skip
        with pytest.raises((ValueError, RuntimeError), match="conv"):
            forward(**bad)
    dy = t(2, 4, 3, 3)
    data = lambda dy=dy, w=w, size=(5, 5), stride=one, groups=1: (  # noqa: E731
        ops.conv_data(dy, w, None, None, None, size, stride, zero, one, groups, "none", False, "naive")
    )
    assert data().shape == (2, 3, 5, 5)
    for bad in ({"dy": t(2, 3, 3, 3)}, {"dy": t(3, 3)}, {"size": (5,)}, {"size": (-1, 5)}, {"groups": 3}):
        with pytest.raises((ValueError, RuntimeError), match="conv_data"):
            data(**bad)
    weight = lambda x=x, dy=dy, kernel=(3, 3), groups=1: (  # noqa: E731
        ops.conv_weight(x, dy, kernel, one, zero, one, groups, False, "naive")
    )
    assert weight().shape == (4, 3, 3, 3)
    for bad in ({"x": t(1, 3, 5, 5)}, {"dy": t(2, 4, 3)}, {"kernel": (3,)}, {"kernel": (0, 3)}, {"groups": 2}, {"groups": 0}):
        with pytest.raises((ValueError, RuntimeError), match="conv_weight"):
            weight(**bad)


def test_bad_packed_weights_are_refused():
    ops = torch.ops.dlops
    x, w = t(2, 3, 5, 5), t(4, 3, 3, 3)
    arguments = None, None, [1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros", "none", False, "direct"
    good = ops.conv_pack(w, [5, 5], [1, 1], [1, 1, 1, 1], [1, 1], 1, False, "direct")
    torch.testing.assert_close(ops.conv(x, w, good, *arguments), F.conv2d(x, w, padding=1))
    for bad in (good[:1], good.double(), good[::2]):
        with pytest.raises((ValueError, RuntimeError), match="packed"):
            ops.conv(x, w, bad, *arguments)


def test_explain_tells_of_a_transposed_convolution():
    (plan,) = dlops.explain(conv_transpose2d, t(1, 3, 5, 5), t(3, 4, 4, 4), stride=2)
    assert plan.uses == "dlops" and plan.op == "conv_data" and plan.flops == 2 * 5 * 5 * 3 * 4 * 16
