"""Attention calls with every option, the same calls as a user of torch would write them, and the error rule of the package."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

import dlops
from dlops.functional import scaled_dot_product_attention
from dlops.functional._attention import draw_rng
from dlops.reference import attention as reference

# What a value that is rounded once to the type may be off by, relative to the largest value: the absolute term of the rule,
# for cases in which torch's own error happens to be almost nothing.
TINY = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check_rule(ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, what: str, dtype, terms=0.0, noise=0.0) -> None:
    """The maximum and the mean error against float64 are at most twice torch's own in the same dtype, plus a tiny absolute
    term: relative to the largest value, or to the largest term where terms cancel.

    dtype: of the inputs (lse and dmask are float32 whatever they come from). terms: as Call._terms; noise: as Call._noise."""
    assert exact.dtype == torch.float64 and ours.shape == exact.shape, (what, ours.shape, exact.shape)
    if ours.numel() == 0:
        return
    infinite = exact.isinf()
    assert torch.equal(ours.double()[infinite], exact[infinite]), what
    ours, torchs, exact = (t.double().masked_fill(infinite, 0.0) for t in (ours, torchs, exact))
    assert ours.isfinite().all(), f"{what}: {int((~ours.isfinite()).sum())} of {ours.numel()} values are not finite"
    torchs = torch.where(torchs.isfinite(), torchs, exact)  # rows that see no key are NaN in torch
    mine, yours = (ours - exact).abs(), (torchs - exact).abs()
    tiny = (TINY[dtype] + noise) * max(exact.abs().max(), terms)
    assert mine.max() <= 2 * yours.max() + tiny, (what, float(mine.max()), float(yours.max()), float(tiny))
    assert mine.mean() <= 2 * yours.mean() + tiny / 4, (what, float(mine.mean()), float(yours.mean()))


_specification = functools.partial(scaled_dot_product_attention, return_lse=True)


class Call:
    """One attention call: tensors, and the options as keywords of scaled_dot_product_attention.

    shape: (B, H, Hk, Lq, Lk, D, Dv). Options that are tensors come as functions of the shape. The tensors are on the CPU, and
    so are `exact` and `torchs`, which are computed once; `ours` runs on `device`.
    """

    DIFFERENTIABLE = ("query", "key", "value", "attn_mask", "sinks")

    def __init__(self, shape, dtype, device="cpu", spread=1.0, **options):
        b, h, hk, lq, lk, d, dv = self.shape = shape
        self.dtype, self.device = dtype, device
        torch.manual_seed(sum(shape))
        make = lambda *size: torch.randn(size).to(dtype)  # noqa: E731
        self.tensors = {"query": make(b, h, lq, d) * spread, "key": make(b, hk, lk, d), "value": make(b, hk, lk, dv)}
        self.options = {}
        for name, value in options.items():
            value = value(shape) if callable(value) else value
            if name in self.DIFFERENTIABLE and value.is_floating_point():
                self.tensors[name] = value.to(dtype)
            else:
                self.options[name] = value
        self.options["enable_gqa"] = h != hk
        self.dout, self.dlse = make(b, h, lq, dv), torch.randn(b, h, lq)
        self._known = {}

    def _run(self, fn, cast, with_lse, grad):
        torch.manual_seed(7)  # of the dropout mask
        leaves = {name: cast(t).detach().requires_grad_() for name, t in self.tensors.items()}
        move = lambda t: t.to(next(iter(leaves.values())).device) if isinstance(t, torch.Tensor) else t  # noqa: E731
        out, lse = fn(**leaves, **{name: move(value) for name, value in self.options.items()})
        results = {"out": out.detach(), "lse": lse.detach()}
        if grad:
            outputs, given = [out], [cast(self.dout)]
            if with_lse:
                rows = torch.isfinite(lse.detach())
                outputs, given = [*outputs, lse], [*given, torch.where(rows, move(self.dlse), 0.0).to(lse.dtype)]
            grads = torch.autograd.grad(outputs, list(leaves.values()), given)
            results |= {f"d{name}": g for name, g in zip(leaves, grads)}
        return {name: value.cpu() for name, value in results.items()}

    def _once(self, fn, cast, with_lse, grad):
        key = fn, with_lse, grad
        if key not in self._known:
            with dlops.backend("torch"):
                self._known[key] = self._run(fn, cast, with_lse, grad)
        return self._known[key]

    def ours(self, variant=None, with_lse=False, grad=True):
        fn = functools.partial(scaled_dot_product_attention, return_lse=True, variant=variant)
        return self._run(fn, lambda t: t.to(self.device), with_lse, grad)

    def exact(self, with_lse=False, grad=True):
        return self._once(_specification, torch.Tensor.double, with_lse, grad)

    def torchs(self, with_lse=False, grad=True):
        """In the inputs' own dtype: torch's fused function where it has the options, operation by operation elsewhere."""
        return self._once(eager, lambda t: t, with_lse, grad)

    def check(self, variant=None, with_lse=False, grad=True):
        with_lse = with_lse and grad
        mine = self.ours(variant, with_lse, grad)
        yours, exact = self.torchs(with_lse, grad), self.exact(with_lse, grad)
        for name in exact:
            noise = self._noise(exact["lse"]) if name.startswith("d") else 0.0
            what = f"{name} {self.shape} {self.dtype}"
            check_rule(mine[name], yours[name], exact[name], what, self.dtype, self._terms(name), noise)
        return mine

    @staticmethod
    def _noise(lse):
        """The backward makes P again from lse and the scores, both rounded to float32: a unit of their last place is an error
        of P, relative. Where torch keeps P itself (D != Dv, for one) it has no such error."""
        return 2.0**-23 * float(lse.masked_fill(lse.isinf(), 0.0).abs().max()) if lse.numel() else 0.0

    def _terms(self, name):
        """How large the terms are whose difference a gradient is, ds = p (dp - sum p dp) with dp = dout . v: three standard
        deviations."""
        rms = lambda t: float(t.double().square().mean().sqrt()) if t.numel() else 0.0  # noqa: E731
        dp = 3 * rms(self.dout) * rms(self.tensors["value"]) * math.sqrt(self.shape[6])
        scale = self.options.get("scale", 1 / math.sqrt(self.shape[5]))
        other = {"dquery": "key", "dkey": "query"}
        if name in other:
            return scale * dp * rms(self.tensors[other[name]])
        return dp if name in ("dattn_mask", "dsinks") else 0.0


def eager(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, dropout_p=0.0, window=None,
          softcap=0.0, alibi_slopes=None, sinks=None, key_lengths=None):  # fmt: skip
    """(out, lse) as a user of torch would compute them in the tensors' dtype."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    lq, lk, dtype = query.shape[2], key.shape[2], query.dtype
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    shift = 0 if key_lengths is None else (key_lengths.long() - lq).reshape(-1, 1, 1, 1)
    at, j = torch.arange(lq)[:, None] + shift, torch.arange(lk)
    seen = torch.ones(lq, lk, dtype=torch.bool)
    left, right = window if isinstance(window, tuple) else (window, window)
    right = 0 if is_causal else right
    seen = seen if left is None else seen & (j >= at - left)
    seen = seen if right is None else seen & (j <= at + right)
    seen = seen if key_lengths is None else seen & (j < key_lengths.reshape(-1, 1, 1, 1))
    bias = torch.zeros((), dtype=dtype)
    if alibi_slopes is not None:
        bias = bias - alibi_slopes.reshape(-1, query.shape[1], 1, 1).to(dtype) * (at - j).abs().to(dtype)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen = seen & attn_mask
    elif attn_mask is not None:
        bias = bias + attn_mask
    bias = bias.masked_fill(~seen, -math.inf)
    exact = reference.attention(
        query.float(), key.float(), value.float(), scale=scale, mask=bias.float().expand(*query.shape[:3], lk), softcap=softcap
    )[1]
    if lk and not softcap and sinks is None and not dropout_p:
        return F.scaled_dot_product_attention(query, key, value, bias.expand(*query.shape[:3], lk), scale=scale), exact
    s = query @ key.transpose(-1, -2) * scale
    s = (softcap * torch.tanh(s / softcap) if softcap else s) + bias
    if sinks is not None:
        s = torch.cat([s, sinks.reshape(1, -1, 1, 1).expand(*s.shape[:3], 1)], dim=-1)
    p = torch.softmax(s, dim=-1)[..., :lk]
    if dropout_p:
        rng = draw_rng(query.device)
        b, h = query.shape[:2]
        p = p * (reference.dropout_mask(rng, dropout_p, b, h, range(lq), lk) / (1 - dropout_p)).to(dtype)
    return p @ value, exact
