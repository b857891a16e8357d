"""The one solver step against its float64 twin: every option, dtype, layout, device and rung."""

from __future__ import annotations

import copy
import os

import pytest
import torch

import dlops
from dlops.functional import STEP_COLUMNS, add_noise, diffusion_step
from dlops.reference import diffusion as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OPTIONS = {
    "plain": {},
    "guided": dict(uncond=True, guidance=2.5),
    "rescaled": dict(uncond=True, guidance=2.5, rescale=0.7),
    "history": dict(history=3),
    "noise": dict(noise=True),
    "seeds": dict(seeds=True),
    "threshold": dict(threshold_ratio=0.9, threshold_max=1.8),
    "all": dict(uncond=True, guidance=1.5, rescale=0.5, history=2, seeds=True, threshold_ratio=0.99, threshold_max=3.0),
}


def make_table(on="cpu", rows=4, option=""):
    table = torch.rand(rows, 11, generator=torch.Generator().manual_seed(1)) + 0.1
    table[:, STEP_COLUMNS.index("clip")] = 1.2
    if "threshold_ratio" in OPTIONS.get(option, {}):
        table[:, STEP_COLUMNS.index("pn")] = 0  # the threshold is taken before the noise is known
    return table.to(on)


def make(option, shape, dtype, on):
    """Tensors for one case, and the keyword arguments of one option."""
    gen = torch.Generator().manual_seed(len(shape) + shape[-1])
    tensor = lambda: torch.randn(shape, generator=gen).to(dtype).to(on)  # noqa: E731
    kwargs = dict(OPTIONS[option])
    for name in ("uncond", "noise"):
        if name in kwargs:
            kwargs[name] = tensor()
    if "history" in kwargs:
        kwargs["history"] = [tensor() for _ in range(kwargs["history"])]
    if "seeds" in kwargs:
        kwargs["seeds"] = torch.arange(shape[0], device=on) + 100
    return tensor(), tensor(), kwargs


def in_float64(value):
    if isinstance(value, list):
        return [in_float64(v) for v in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_close(ours, exact, dtype):
    """Half types: that value rounded once. float32: the rounding of a dozen operations on values of order 10."""
    unit = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    bound = exact.abs() * unit * (8 if dtype is torch.float32 else 1.01) + 2e-6
    assert ((ours.double() - exact).abs() <= bound).all(), ((ours.double() - exact).abs() - bound).max()


@pytest.mark.parametrize("variant", ["naive", "fused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_against_float64(device, option, dtype, variant):
    for shape in [(1, 4, 64, 64), (3, 5, 37), (7, 1), (2, 20011)]:
        if "rescale" in OPTIONS[option] and shape[1:] == (1,):
            continue  # the deviation of one element is undefined
        x, m, kwargs = make(option, shape, dtype, device.torch_device)
        table = make_table(device.torch_device, option=option)
        prev, x0 = diffusion_step(x, m, table, 2, **kwargs, variant=variant)
        exact = reference.diffusion_step(
            x.double(), m.double(), table, 2, **{k: in_float64(v) for k, v in kwargs.items()}
        )
        assert_close(prev, exact[0], dtype)
        assert_close(x0, exact[1], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_every_level_and_rung(dtype):
    before = dlops.cpu_isa()
    x, m, kwargs = make("all", (3, 3, 101), dtype, "cpu")
    results = []
    for isa in dlops.cpu_isas():
        dlops.cpu_isa(isa)
        for variant in ("naive", "fused"):
            results.append(diffusion_step(x, m, make_table(), 1, **kwargs, variant=variant))
    dlops.cpu_isa(before)
    for prev, x0 in results[1:]:
        assert torch.equal(prev, results[0][0])
        assert torch.equal(x0, results[0][1])


def test_rows_per_sample_and_on_the_device(device):
    on = device.torch_device
    x, m, kwargs = make("seeds", (4, 3, 33), torch.float32, on)
    table = make_table(on)
    rows = torch.tensor([3, 0, 2, 9], device=on)  # 9 is clamped to 3
    prev, x0 = diffusion_step(x, m, table, rows, **kwargs)
    for i, row in enumerate([3, 0, 2, 3]):
        one = diffusion_step(x[i : i + 1], m[i : i + 1], table, row, seeds=kwargs["seeds"][i : i + 1])
        assert torch.equal(prev[i : i + 1], one[0])
        assert torch.equal(x0[i : i + 1], one[1])
    shared = diffusion_step(x, m, table, torch.tensor([1], device=on), **kwargs)
    assert torch.equal(shared[0], diffusion_step(x, m, table, 1, **kwargs)[0])


LAYOUTS = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch_innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "sliced": lambda t: torch.cat([t, t], 3)[..., : t.shape[3]],
    "strided": lambda t: t.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout, option):
    x, m, kwargs = make(option, (3, 4, 6, 5), torch.float32, device.torch_device)
    table = make_table(device.torch_device)
    plain = diffusion_step(x, m, table, 1, **kwargs)
    change = LAYOUTS[layout]
    for args in [(change(x), m), (x, change(m)), (change(x), change(m))]:
        for ours, expected in zip(diffusion_step(*args, table, 1, **kwargs), plain):
            assert torch.equal(ours, expected)
    expanded = diffusion_step(x, m[:1].expand_as(m), table, 1, **kwargs)[0]
    assert torch.equal(expanded, diffusion_step(x, m[:1].repeat(3, 1, 1, 1), table, 1, **kwargs)[0])


def test_out_and_in_place(device):
    x, m, kwargs = make("history", (2, 4, 100), torch.float32, device.torch_device)
    table = make_table(device.torch_device)
    prev, x0 = diffusion_step(x, m, table, 0, **kwargs)
    out, out_x0 = torch.full_like(x, float("nan")), torch.full_like(x, float("nan"))
    result = diffusion_step(x, m, table, 0, **kwargs, out=out, out_x0=out_x0)
    assert result[0] is out and result[1] is out_x0
    assert torch.equal(out, prev) and torch.equal(out_x0, x0)
    y = x.clone()
    diffusion_step(y, m, table, 0, **kwargs, out=y, return_x0=False)
    assert torch.equal(y, prev)
    assert diffusion_step(x, m, table, 0, return_x0=False)[1] is None


def test_unused_terms_do_not_leak_nan(device):
    on = device.torch_device
    x, m, _ = make("plain", (2, 40), torch.float32, on)
    table = make_table(on)
    table[:, STEP_COLUMNS.index("h1")] = 0
    table[:, STEP_COLUMNS.index("pn")] = 0
    table[:, STEP_COLUMNS.index("d")] = 0
    nan = torch.full_like(x, float("nan"))
    assert torch.equal(
        diffusion_step(x, m, table, 0, history=[nan], noise=nan)[0], diffusion_step(x, m, table, 0)[0]
    )
    m[0, 3] = float("nan")
    prev, x0 = diffusion_step(x, m, table, 0)
    assert x0[0, 3].isnan() and prev[0, 3].isnan()  # NaN is not clipped away
    assert x0.isnan().sum() == 1


def test_threads_and_batch_change_no_bit(device):
    x, m, kwargs = make("all", (6, 3, 5000), torch.bfloat16, device.torch_device)
    table = make_table(device.torch_device)
    expected = diffusion_step(x, m, table, 1, **kwargs)[0]
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(diffusion_step(x, m, table, 1, **kwargs)[0], expected)
    half = {k: v[:2] if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    half["history"] = [h[:2] for h in kwargs["history"]]
    assert torch.equal(diffusion_step(x[:2], m[:2], table, 1, **half)[0], expected[:2])


def test_gradient_and_float64_go_through_torch():
    x, m, kwargs = make("guided", (2, 3, 4), torch.float64, "cpu")
    x.requires_grad_()
    m.requires_grad_()
    table = make_table()
    table[:, STEP_COLUMNS.index("clip")] = 100.0
    assert torch.autograd.gradcheck(lambda a, b: diffusion_step(a, b, table, 1, **kwargs), (x, m))
    assert torch.func.vmap(lambda a: diffusion_step(a, a, table, 1)[0])(x.detach()[None]).shape == (1, 2, 3, 4)
    plan = dlops.explain(diffusion_step, x, m, table, 1)[0]
    assert plan.uses == "torch" and "float64" in plan.reason


def test_compile_and_opcheck():
    x, m, kwargs = make("all", (2, 3, 8, 8), torch.float32, "cpu")
    table = make_table()
    row = torch.tensor([1])
    step = torch.compile(lambda a, b: diffusion_step(a, b, table, row, **kwargs), fullgraph=True, backend="aot_eager")
    assert torch.equal(step(x, m)[0], diffusion_step(x, m, table, row, **kwargs)[0])
    args = (x, m, None, [m], None, None, table, row, 0, 1.0, 0.0, 0.0, 1.0, True, "")
    torch.library.opcheck(torch.ops.dlops.diffusion_step.default, args)
    nhwc = x.to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.dlops.diffusion_step.default, (nhwc, m, *args[2:]))
    torch.library.opcheck(torch.ops.dlops.diffusion_step_out.default, (*args[:13], "", x.clone(), None))
    torch.library.opcheck(torch.ops.dlops.add_noise.default, (x, m, None, torch.ones(1, 2), None, 0, -1))
    torch.library.opcheck(torch.ops.dlops.randn.default, (x.clone(), torch.tensor([1, 2]), 0, ""))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_noise(device, dtype):
    on = device.torch_device
    x, n, _ = make("plain", (3, 4, 50), dtype, on)
    table = torch.tensor([[0.9, 0.1], [0.3, 0.7]], device=on)
    rows = torch.tensor([1, 0, 1], device=on)
    exact = reference.add_noise(x.double(), n.double(), table, rows)
    assert_close(add_noise(x, n, table, rows), exact, dtype)
    assert add_noise(x.to(on)[:0], n[:0], table, 0).shape == (0, 4, 50)


def call(**changes):
    """A good call with some arguments replaced."""
    x = torch.randn(2, 3, 4)
    arguments = dict(sample=x, model_output=x.clone(), table=make_table(), row=0)
    arguments.update(changes)
    return diffusion_step(**arguments)


BAD = {
    "shape": (dict(model_output=torch.randn(2, 3, 5)), ValueError, r"model_output has shape \[2, 3, 5\], expected \[2, 3, 4\]"),
    "dtype": (dict(model_output=torch.randn(2, 3, 4).half()), ValueError, "model_output must be Float: got Half"),
    "integer": (dict(sample=torch.ones(2, 3, 4).long(), model_output=torch.ones(2, 3, 4).long()), Exception, "."),
    "no tensor": (dict(sample=[1.0]), TypeError, "sample must be a tensor: got list"),
    "table": (dict(table=torch.ones(4, 10)), ValueError, r"table must be a contiguous \[rows >= 1, 11\]"),
    "table dtype": (dict(table=make_table().double()), ValueError, "table must be Float"),
    "row": (dict(row=4), ValueError, "row 4 is outside the table's 4 rows"),
    "rows": (dict(row=torch.tensor([0, 1, 2])), ValueError, "row must be an integer, or"),
    "rows dtype": (dict(row=torch.tensor([0], dtype=torch.int32)), ValueError, "row must be Long"),
    "seeds": (dict(seeds=[1]), ValueError, "seeds must have one entry per sample"),
    "both": (dict(seeds=[1, 2], noise=torch.randn(2, 3, 4)), ValueError, "noise or seeds, not both"),
    "history": (dict(history=[torch.randn(2, 3, 4)] * 4), ValueError, "history holds at most 3 tensors: got 4"),
    "variant": (dict(variant="quick"), ValueError, "unknown variant 'quick'"),
    "ratio": (dict(threshold_ratio=1.5), ValueError, r"threshold_ratio must be in \[0, 1\]"),
    "out": (dict(out=torch.empty(2, 3, 5)), ValueError, "out has shape"),
    "scalar": (dict(sample=torch.tensor(1.0), model_output=torch.tensor(1.0)), ValueError, "batch dimension"),
    "meta": (dict(model_output=torch.randn(2, 3, 4, device="meta")), ValueError, "a tensor is on meta, expected cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_argument(case):
    changes, error, message = BAD[case]
    with dlops.backend("dlops"), pytest.raises(error, match=message):
        call(**changes)


def test_overlapping_out_is_refused():
    base = torch.randn(2 * 12 + 5)
    x, out = base[:24].view(2, 12), base[5:29].view(2, 12)
    with pytest.raises(ValueError, match="out overlaps an input"):
        diffusion_step(x, torch.randn(2, 12), make_table(), 0, out=out, return_x0=False)


def test_fake_and_empty_tensors(device):
    empty = torch.empty(0, 3, 4, device=device.torch_device)
    assert diffusion_step(empty, empty, make_table(device.torch_device), 0)[0].shape == (0, 3, 4)
    none = torch.empty(2, 0, device=device.torch_device)
    assert diffusion_step(none, none, make_table(device.torch_device), 0)[0].shape == (2, 0)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 3, 4)
        assert diffusion_step(x, x, torch.empty(4, 11), 0)[1].shape == (2, 3, 4)


def test_forked_child_does_not_hang():
    x, m, _ = make("plain", (4, 50000), torch.float32, "cpu")
    table = make_table()
    torch.set_num_threads(2)
    expected = diffusion_step(x, m, table, 0)[0]  # the parent has entered a parallel region
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(diffusion_step(x, m, table, 0)[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_calling_at_once():
    from concurrent.futures import ThreadPoolExecutor

    x, m, kwargs = make("all", (2, 20000), torch.float32, "cpu")
    table = make_table()
    expected = diffusion_step(x, m, table, 0, **kwargs)[0]

    def work(_):
        torch.set_num_threads(2)
        return diffusion_step(x, m, table, 0, **copy.copy(kwargs))[0]

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(work, range(16)):
            assert torch.equal(result, expected)
    dlops.empty_cache()
