"""What torch does to attention besides calling it: second derivatives, forward mode, vmap, compile, fake tensors, autocast,
checkpointing, export."""

from __future__ import annotations

import math
import resource

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import dlops
from dlops.functional import attention_varlen, scaled_dot_product_attention
from dlops.reference import attention as reference

ops = torch.ops.dlops


@pytest.fixture(autouse=True)
def _ours():
    """`auto`: a transform must find its way to torch's operations. Small calls take our kernel all the same."""
    with dlops.backend("auto"):
        yield


def sdpa(*args, **options):
    """Through our kernel, where there is a choice."""
    with dlops.backend("dlops"):
        return scaled_dot_product_attention(*args, **options)


def inputs(dtype=torch.float32, b=2, h=2, hk=1, lq=6, lk=7, d=4):
    q, k, v = (torch.randn(b, n, rows, d, dtype=dtype, requires_grad=True) for n, rows in ((h, lq), (hk, lk), (hk, lk)))
    bias = torch.randn(1, h, lq, lk, dtype=dtype)
    bias[:, :, 2] = -math.inf
    return q, k, v, bias.requires_grad_(), torch.randn(h, dtype=dtype, requires_grad=True)


OPTIONS = dict(softcap=2.0, window=(4, 3), enable_gqa=True)


def everything(q, k, v, bias, sinks, **more):
    return sdpa(q, k, v, bias, sinks=sinks, return_lse=True, **OPTIONS, **more)


def total(outputs):
    out, lse = outputs
    return out.pow(3).sum() + lse.masked_fill(lse.isinf(), 0.0).pow(2).sum()


def exactly(*tensors, **more):
    with dlops.backend("torch"):
        q, k, v, bias, sinks = (t.detach().double().requires_grad_() for t in tensors)
        leaves = (q, k, v, bias, sinks)
        outputs = scaled_dot_product_attention(q, k, v, bias, sinks=sinks, return_lse=True, **OPTIONS, **more)
        firsts = torch.autograd.grad(total(outputs), leaves, create_graph=True)
        return firsts, torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_second_derivative(dropout_p):
    """Of every input, dlse and sinks among them, in pieces of one row and whole."""
    from dlops._ops import attention

    leaves = inputs()
    torch.manual_seed(1)
    want_first, want = exactly(*leaves, dropout_p=dropout_p)
    for size in (1, attention.PIECE):
        before, attention.PIECE = attention.PIECE, size
        try:
            torch.manual_seed(1)
            firsts = torch.autograd.grad(total(everything(*leaves, dropout_p=dropout_p)), leaves, create_graph=True)
            seconds = torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)
        finally:
            attention.PIECE = before
        for ours, exact in (*zip(firsts, want_first), *zip(seconds, want)):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=2e-4)


def test_third_derivative():
    q, k, v, *_ = inputs(b=1, h=1, lq=3, lk=3, d=2)

    def third(q, run):
        x = run(q, k.to(q.dtype), v.to(q.dtype)).pow(2).sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(x, q, create_graph=True)
            x = g.pow(2).sum()
        return torch.autograd.grad(x, q)[0]

    exact = third(q.detach().double().requires_grad_(), lambda *t: reference.attention(*t, scale=2**-0.5)[0])
    torch.testing.assert_close(third(q, sdpa).double(), exact, rtol=1e-3, atol=1e-4)


def test_second_derivative_of_packed_sequences():
    q, k, v = (torch.randn(n, h, 4, requires_grad=True) for n, h in ((9, 2), (11, 1), (11, 1)))
    cu_q, cu_k = torch.tensor([0, 4, 4, 9]), torch.tensor([0, 5, 8, 11])

    def seconds(leaves, backend):
        with dlops.backend(backend):
            out = attention_varlen(*leaves, cu_q, cu_k, is_causal=True)
        firsts = torch.autograd.grad(out.pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)

    exact = seconds([t.detach().double().requires_grad_() for t in (q, k, v)], "torch")
    for ours, want in zip(seconds((q, k, v), "dlops"), exact):
        torch.testing.assert_close(ours.double(), want, rtol=1e-3, atol=2e-4)


@pytest.mark.full
def test_memory_of_the_second_derivative():
    """L = 8k needs at most 1 GB, where the score matrices would need several times 0.27 GB per head."""
    q, k, v = (torch.randn(1, 1, 8192, 64, requires_grad=True) for _ in range(3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (dq,) = torch.autograd.grad(sdpa(q, k, v).square().sum(), q, create_graph=True)
    dq.square().sum().backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


def test_forward_mode():
    q, k, v, bias, sinks = (t.detach() for t in inputs())
    tangents = tuple(torch.randn_like(t) for t in (q, k, v))
    fn = lambda q, k, v: scaled_dot_product_attention(q, k, v, bias, sinks=sinks, **OPTIONS)  # noqa: E731
    ours = torch.func.jvp(fn, (q, k, v), tangents)
    double = torch.func.jvp(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, bias.double(), sinks=sinks.double(), **OPTIONS),
        tuple(t.double() for t in (q, k, v)), tuple(t.double() for t in tangents),
    )  # fmt: skip
    for a, b in zip(ours, double):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def plain_inputs(dtype=torch.float32):
    return [torch.randn(1, 2, 5, 4, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.tensor([True, False, True, True, True])}])
def test_a_plain_call_has_every_derivative(options):
    """At sizes and types that go to torch's own function, which has the first in reverse mode only."""
    fn = lambda *t: scaled_dot_product_attention(*t, **options)  # noqa: E731
    assert torch.autograd.gradcheck(fn, plain_inputs(torch.float64), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fn, plain_inputs(torch.float64))
    leaves = plain_inputs()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    seconds = []
    for inputs in (leaves, exact):
        (dq,) = torch.autograd.grad(fn(*inputs).pow(3).sum(), inputs[0], create_graph=True)
        seconds.append(torch.autograd.grad(dq.square().sum(), inputs))
    for ours, want in zip(*seconds):
        torch.testing.assert_close(ours.double(), want, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        primals = tuple(t.detach() for t in leaves)
        torch.func.jvp(fn, primals, primals)


def test_duplicates_compile():
    """The same tensor as query, key and value, and one cu_seqlens for both."""
    x = torch.randn(1, 2, 6, 4, requires_grad=True)
    cu = torch.tensor([0, 2, 6], dtype=torch.int32)
    packed = torch.randn(6, 2, 4, requires_grad=True)
    for fn, leaf in (
        (lambda t: scaled_dot_product_attention(t, t, t, window=4), x),
        (lambda t: attention_varlen(t, t, t, cu, cu, 4, 4), packed),
    ):
        want = torch.autograd.grad(fn(leaf).square().sum(), leaf)
        ours = torch.autograd.grad(torch.compile(fn, fullgraph=True, backend="aot_eager")(leaf).square().sum(), leaf)
        torch.testing.assert_close(ours, want)


def test_export_with_symbolic_lengths():
    class Model(torch.nn.Module):
        def forward(self, q):
            return scaled_dot_product_attention(q, q, q)

    length = torch.export.Dim("length", min=2, max=4000)
    program = torch.export.export(Model(), (torch.randn(1, 2, 8, 4),), dynamic_shapes=({2: length},))
    for n in (5, 300):
        q = torch.randn(1, 2, n, 4)
        torch.testing.assert_close(program.module()(q), sdpa(q, q, q))


def test_meta_device():
    q = torch.randn(1, 2, 8, 4, device="meta")
    assert scaled_dot_product_attention(q, q, q).shape == q.shape
    assert scaled_dot_product_attention(q, q, q, softcap=1.0).device.type == "meta"


def test_vmap_and_grad():
    q, k, v = (torch.randn(3, 2, 2, 5, 4) for _ in range(3))
    torch.testing.assert_close(
        torch.func.vmap(lambda q, k, v: scaled_dot_product_attention(q, k, v, softcap=2.0))(q, k, v),
        torch.stack([sdpa(*t, softcap=2.0) for t in zip(q, k, v)]),
    )
    per_sample = torch.func.vmap(torch.func.grad(lambda q, k, v: scaled_dot_product_attention(q, k, v, window=1).square().sum()))
    for ours, one in zip(per_sample(q, k, v), zip(q, k, v)):
        leaf = one[0].clone().requires_grad_()
        torch.testing.assert_close(ours, torch.autograd.grad(sdpa(leaf, *one[1:], window=1).square().sum(), leaf)[0])


def test_batched_gradients():
    """torch.autograd.grad(is_grads_batched=True), as torch.autograd.functional.jacobian(vectorize=True) uses it."""
    q, k, v, *_ = inputs(b=1, lq=3, lk=4)
    out = sdpa(q, k, v, enable_gqa=True)
    basis = torch.eye(out.numel()).reshape(-1, *out.shape)
    (rows,) = torch.autograd.grad(out, q, basis, retain_graph=True, is_grads_batched=True)
    for row, vector in zip(rows, basis):
        torch.testing.assert_close(row, torch.autograd.grad(out, q, vector, retain_graph=True)[0])


def samples():
    q, k, v, bias, sinks = (t.detach() for t in inputs())
    rng = torch.tensor([1, 2])
    slopes, lengths = torch.rand(2), torch.tensor([7, 4], dtype=torch.int32)
    cu_q, cu_k = (torch.tensor(c, dtype=torch.int32) for c in ([0, 4, 9], [0, 5, 11]))
    return {
        "plain": (q, k, v, None, None, None, None, None, None, None, 6, 7, 0.5, -1, -1, False, 0.0, 0.0),
        "all": (q, k, v, bias, slopes, sinks, lengths, None, None, rng, 6, 7, 0.5, 4, 3, True, 2.0, 0.2),
        "packed": (torch.randn(9, 2, 4), *torch.randn(2, 11, 1, 4), None, slopes, sinks, None, cu_q, cu_k, rng, 5, 6, 0.5, -1, 0,
                   True, 0.0, 0.2),
    }  # fmt: skip


@pytest.mark.parametrize("sample", ["plain", "all", "packed"])
def test_opcheck(sample):
    arguments = samples()[sample]
    q = arguments[0]
    torch.library.opcheck(ops.attention.default, (*arguments, ""))
    out, lse = ops.attention.default(*arguments, "")
    needs = [1, 1, 1, int(arguments[3] is not None), int(arguments[5] is not None)]
    tensors = (torch.randn_like(out), torch.randn_like(lse), *arguments[:3], out, lse, *arguments[3:])
    torch.library.opcheck(ops.attention_backward.default, (*tensors, needs, True, ""))
    if q.dim() == 4:
        transposed = q.transpose(1, 2).contiguous().transpose(1, 2)
        torch.library.opcheck(ops.attention.default, (transposed, *arguments[1:], ""))
        torch.library.opcheck(ops.rotary.default, (q, torch.rand(1, 6, 2), torch.rand(1, 6, 2), False, True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    """One graph, forward and backward, also where sizes are symbols."""
    def fn(q, k, v, bias, sinks):
        out, lse = scaled_dot_product_attention(q, k, v, bias, sinks=sinks, return_lse=True, **OPTIONS)
        return out * 2, lse

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for lk in (7, 9):
        leaves = inputs(lk=lk)
        want = torch.autograd.grad(total(fn(*leaves)), leaves)
        ours = torch.autograd.grad(total(compiled(*leaves)), leaves)
        for a, b in zip(ours, want):
            torch.testing.assert_close(a, b)


def test_compiled_dropout_and_checkpoint():
    """The mask is drawn once, and the recomputation of a checkpoint draws the same."""
    q, k, v, *_ = inputs()
    fn = lambda q, k, v: sdpa(q, k, v, dropout_p=0.5, enable_gqa=True)  # noqa: E731
    torch.manual_seed(2)
    want = torch.autograd.grad(fn(q, k, v).square().sum(), (q, k, v))
    torch.manual_seed(2)
    ours = torch.autograd.grad(checkpoint(fn, q, k, v, use_reentrant=False).square().sum(), (q, k, v))
    for a, b in zip(ours, want):
        assert torch.equal(a, b)
    fn = lambda q, k, v: scaled_dot_product_attention(q, k, v, dropout_p=0.5, enable_gqa=True, softcap=1.0)  # noqa: E731
    out = torch.compile(fn, fullgraph=True, backend="aot_eager")(q, k, v)
    out.square().sum().backward()
    assert out.isfinite().all() and q.grad.isfinite().all()


def test_export():
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return scaled_dot_product_attention(q, k, v, softcap=2.0)

    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    program = torch.export.export(Model(), (q, k, v))
    torch.testing.assert_close(program.module()(q, k, v), sdpa(q, k, v, softcap=2.0))
    assert any("dlops.attention" in str(node.target) for node in program.graph.nodes)


def test_autocast():
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = sdpa(q, k, v)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, sdpa(*(t.bfloat16() for t in (q, k, v))))
    assert torch.autograd.grad(out.float().sum(), q)[0].dtype == torch.float32


def test_float64_and_other_calls_go_to_torch():
    q = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    plans = dlops.explain(scaled_dot_product_attention, q, q, q)
    assert [p.uses for p in plans] == ["torch"] and "float64 has no kernel" in plans[0].reason
    big = torch.randn(1, 1, 3, 300)
    assert torch.equal(scaled_dot_product_attention(big, big, big), F.scaled_dot_product_attention(big, big, big))
    out = scaled_dot_product_attention(big, big, big, softcap=2.0)
    torch.testing.assert_close(out, reference.attention(big, big, big, scale=300**-0.5, softcap=2.0)[0])
    with dlops.backend("dlops"), pytest.raises(RuntimeError, match=r"a head dimension of 300 in query has no kernel"):
        scaled_dot_product_attention(big, big, big)


def test_explain():
    q = torch.randn(2, 4, 512, 64)
    (plan,) = dlops.explain(scaled_dot_product_attention, q, q, q, is_causal=True, softcap=1.0)
    assert plan.uses == "dlops" and plan.kernel and plan.flops == 4 * 64 * 8 * 512 * 513 // 2


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 2, 5, 4)])
def test_other_numbers_of_dimensions(shape):
    q, k, v = (torch.randn(shape) for _ in range(3))
    torch.testing.assert_close(sdpa(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    mask = torch.rand(shape[-2], shape[-2]) < 0.8
    mask[:, 0] = True
    torch.testing.assert_close(sdpa(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))


def test_broadcast_batch_and_heads():
    q, k = torch.randn(3, 4, 5, 8), torch.randn(1, 1, 6, 8)
    torch.testing.assert_close(sdpa(q, k, k), F.scaled_dot_product_attention(q, k.expand(3, 4, 6, 8), k.expand(3, 4, 6, 8)))
