"""Bugs for tests/simt/test_planted.py: every barrier, wait and commit of the attention kernels, their swizzles, and edges that
matter."""

from __future__ import annotations

import math

import torch

from dlops.functional import scaled_dot_product_attention
from dlops.study._runner import _installed
from dlops.study.planting import Edit
from tests.simt.bugs import Bug

FRAGMENT, SCORES, CAREFUL = (f"csrc/attention/{name}.cuh" for name in ("fragment", "scores", "careful"))
PIPELINED, TILED, ONLINE = (f"csrc/attention/{name}.cuh" for name in ("pipelined", "tiled", "online"))
SPLIT, NAIVE = (f"csrc/attention/{name}.cuh" for name in ("split", "naive"))


def _attend(shape, dtype=torch.float32, variant=None, growth=1.0, poison=(), **options):
    """shape: (B, H, Hk, Lq, Lk, D, Dv). growth: how much longer the last key is than the first. poison: keys that no row
    sees, of whose values one is NaN in the runner. The CPU, which it is compared with, has rungs of its own: there the
    variant is the default."""
    b, h, hk, lq, lk, d, dv = shape
    generator = torch.Generator().manual_seed(sum(shape))
    randn = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    q, v = randn(b, h, lq, d), randn(b, hk, lk, dv)
    k = randn(b, hk, lk, d) * torch.linspace(1, growth, lk)[:, None]
    emulated = getattr(_installed, "tables", None) is not None
    for key in poison if emulated else ():
        v[:, :, key, 5] = math.nan
    options = {name: option(randn) if callable(option) else option for name, option in options.items()}
    torch.manual_seed(5)  # of the dropout mask
    out, lse = scaled_dot_product_attention(
        q.to(dtype), k.to(dtype), v.to(dtype), enable_gqa=h != hk, return_lse=True, variant=variant if emulated else None,
        **options,
    )  # fmt: skip
    return [out.float(), lse]


HALF = torch.float16
# Keys: three stages and one key more. Windows: such that a tile ends where one row's keys end, and another begins one key
# before a tile ends. The head dimension is no multiple of a tile's.
LONG = (1, 2, 1, 130, 193, 40, 24)


def _masked(randn):
    mask = randn(1, 2, 130, 193) > -1
    mask[..., 0] = True
    mask[..., [3, 190]] = False
    return mask


def pipelined():
    return [
        *_attend(LONG, HALF, growth=8.0),
        *_attend(LONG, HALF, window=(65, 62)),
        *_attend((1, 1, 1, 20, 70, 20, 20), HALF, is_causal=True),  # rows that are no multiple of 16 bytes
    ]


def pipelined_extras():
    return [
        *_attend(LONG, HALF, softcap=3.0, attn_mask=_masked, dropout_p=0.3),
        *_attend(
            LONG, HALF, alibi_slopes=lambda randn: randn(2).abs(), key_lengths=torch.tensor([150], dtype=torch.int32)
        ),
    ]


def pipelined_poison():
    return _attend(LONG, HALF, attn_mask=_masked, poison=(3, 190))


def pipelined_no_keys():
    return _attend((2, 1, 1, 70, 64, 40, 40), HALF, key_lengths=torch.tensor([0, 5], dtype=torch.int32))


def tiled():
    return [*_attend(LONG, HALF, "tiled", growth=8.0), *_attend(LONG, HALF, "tiled", window=(65, 62))]


def tiled_no_keys():
    return _attend((2, 1, 1, 70, 64, 40, 40), HALF, "tiled", key_lengths=torch.tensor([0, 5], dtype=torch.int32))


def online():
    return [
        *_attend((1, 2, 1, 70, 129, 40, 72), growth=8.0, variant="online"),
        *_attend((1, 1, 1, 70, 129, 35, 72), window=(65, 62), variant="online", dropout_p=0.3),
    ]


def split():
    return [
        *_attend((2, 4, 2, 2, 257, 40, 24), variant="split", growth=8.0),
        *_attend((1, 3, 1, 3, 257, 40, 140), variant="split", window=(3, 2), sinks=lambda randn: randn(3)),
    ]


def naive():
    return [
        *_attend((1, 2, 1, 9, 70, 24, 16), variant="naive", window=(20, 5), dropout_p=0.3),
        *_attend((1, 1, 1, 9, 40, 24, 16), variant="naive", sinks=lambda randn: randn(1)),
    ]


CALLS = [pipelined, pipelined_extras, pipelined_poison, pipelined_no_keys, tiled, tiled_no_keys, online, split, naive]
_HALVES = (pipelined, pipelined_extras, pipelined_poison, pipelined_no_keys, tiled, tiled_no_keys)
TOLERANCES = dict.fromkeys(_HALVES, 5e-3)

# Fewer instances to compile.
PIPELINED_64 = [
    Edit(
        "csrc/attention/launch_pipelined.h",
        "if (has_extras(p)) return d <= 64 ? pipelined<T, 64, true>(p, s) : pipelined<T, 128, true>(p, s);",
        "return has_extras(p) ? pipelined<T, 64, true>(p, s) : pipelined<T, 64, false>(p, s);",
    ),
    Edit("csrc/attention/launch_pipelined.h", "  if (d <= 32) return pipelined<T, 32, false>(p, s);\n", ""),
    Edit("csrc/attention/launch_pipelined.h", "return pipelined<T, 96, false>(p, s);", "return 1;"),
]
TILED_64 = [
    Edit("csrc/attention/launch_tiled.h", ": d <= 128 ? tiled<T, 128>(p, s) : tiled<T, 256>(p, s)", ": 1"),
]
UNITS = {
    pipelined: ("csrc/attention/launch_pipelined_narrow_f16.cu", PIPELINED_64),
    pipelined_extras: ("csrc/attention/launch_pipelined_narrow_f16.cu", PIPELINED_64),
    pipelined_poison: ("csrc/attention/launch_pipelined_narrow_f16.cu", PIPELINED_64),
    pipelined_no_keys: ("csrc/attention/launch_pipelined_narrow_f16.cu", PIPELINED_64),
    tiled: ("csrc/attention/launch_tiled_f16.cu", TILED_64),
    tiled_no_keys: ("csrc/attention/launch_tiled_f16.cu", TILED_64),
    online: ("csrc/attention/launch_online.cu", []),
    split: ("csrc/attention/launch_split.cu", []),
    naive: ("csrc/attention/launch_naive.cu", []),
}


def _bug(name, call, file, old, new, count=1):
    unit, fewer = UNITS[call]
    return Bug(f"attention_{name}", [Edit(file, old, new, count), *fewer], call, [unit], TOLERANCES.get(call, 1e-3))


def _without(name, call, file, old, count=1):
    return _bug(name, call, file, old, "", count)


BUGS = [
    # pipelined: the pipeline
    _without("head_unwritten", pipelined, PIPELINED, "  __syncthreads();  // the head is there\n"),
    _without("wait", pipelined, PIPELINED, "    ptx::cp_async_wait<0>();  // this stage\n"),
    _without(
        "stage", pipelined, PIPELINED, "    __syncthreads();          // all of it, and nobody reads the other one any more\n"
    ),
    _without("commit_first", pipelined, PIPELINED, "  ptx::cp_async_commit();\n\n"),
    _bug("commit", pipelined, PIPELINED, "    ptx::cp_async_commit();\n    if (!mine", "    if (!mine"),
    _bug("stages_swapped", pipelined, PIPELINED, "k_at + stage * N", "k_at + (stage ^ 1) * N"),
    _bug("one_stage", pipelined, PIPELINED, "load_keys(n0 + N, stage ^ 1)", "load_keys(n0 + N, stage)"),
    _without("no_keys_wait", pipelined_no_keys, PIPELINED, "    ptx::cp_async_wait<0>();  // Q\n"),
    _without("no_keys_barrier", pipelined_no_keys, PIPELINED, "    __syncthreads();          // all of Q\n"),
    _without("rows_read", pipelined, FRAGMENT, "  __syncwarp();  // all lanes have read their rows of the tile\n"),
    _without("rows_written", pipelined, FRAGMENT, "  __syncwarp();  // all lanes have written theirs\n"),
    # pipelined: layout and fragments
    _bug("swizzle", pipelined, PIPELINED, "place<Swizzled<D>>(row, chunk),", "row * D + chunk * 8,"),
    _bug("swizzle_narrow", pipelined, PIPELINED, "place<Swizzled<D>>(row, chunk)) =", "row * D + chunk * 8) ="),
    _bug("v_not_transposed", pipelined, FRAGMENT, "ptx::ldmatrix_trans(", "ptx::ldmatrix("),
    _bug("halves_swapped", pipelined, FRAGMENT, "kk * 2 + lane / 8 % 2", "kk * 2 + lane / 16"),
    # the online softmax
    _without("quad_max", pipelined, FRAGMENT, "  x = fmaxf(x, __shfl_xor_sync(kWarp, x, 1));\n"),
    _without("quad_sum", pipelined, FRAGMENT, "      sum += __shfl_xor_sync(kWarp, sum, 2);\n"),
    _without("sum_not_corrected", pipelined, FRAGMENT, "      state.sum[r][i] *= correction[i];\n"),
    _bug("output_not_corrected", pipelined, FRAGMENT, "if (__any_sync(kWarp, changed))", "if (__all_sync(kWarp, changed))"),
    # edges
    _bug("last_tile", pipelined, PIPELINED, "if (n0 + N < end) load_keys", "if (n0 + N < end - 1) load_keys"),
    _bug("first_tile", pipelined, PIPELINED, "(seen.begin) / N * N", "(seen.begin + N - 1) / N * N"),
    _bug("hidden_key", pipelined, FRAGMENT, "column >= see.end", "column > see.end"),
    _bug("hidden_first_key", pipelined, FRAGMENT, "column < see.begin", "column < see.begin - 1"),
    _bug("not_masked", pipelined, FRAGMENT, "to <= all_end;", "to <= all_end + 1;"),
    _bug("tile_skipped", pipelined, FRAGMENT, "from < end &&", "from < end - 1 &&"),
    _bug("tile_skipped_early", pipelined, FRAGMENT, "&& begin < to;", "&& begin < to - 1;"),
    # extras
    _bug("dropout_exchange", pipelined_extras, SCORES, "odd ? other >> 2", "odd ? other"),
    _bug("dropout_row", pipelined_extras, SCORES, "lane / 4 + 8 * odd, key0", "lane / 4 + 8 * (odd ^ 1), key0"),
    _bug("alibi_shift", pipelined_extras, SCORES, "static_cast<float>(i + h.shift - j)", "static_cast<float>(i - j)"),
    _bug("poison", pipelined_poison, FRAGMENT, "again[r][i] = !good &&", "again[r][i] = false &&"),
    _bug("poison_lane", pipelined_poison, CAREFUL, "from = __ffs(static_cast<int>(left)) - 1", "from = 0"),
    _without("poison_quad", pipelined_poison, FRAGMENT, "      any |= __shfl_xor_sync(kWarp, any, 2);\n"),
    # tiled
    _without("tile_in_use", tiled, TILED, "    __syncthreads();  // the last tile is done with\n"),
    _without("tile_unwritten", tiled, TILED, "    __syncthreads();  // the tile is there\n"),
    _without("tiled_no_keys", tiled_no_keys, TILED, "  if (first >= end) __syncthreads();  // nobody sees a key; Q is there\n"),
    _bug("tile_place", tiled, TILED, "place<Padded<D>>(row, chunk)", "row * D + chunk * 8"),
    _bug("tile_last", tiled, TILED, "n0 < end; n0 += N", "n0 < end - 1; n0 += N"),
    # online
    _without("online_head", online, ONLINE, "  __syncthreads();  // the head is there\n"),
    _without("slice_in_use", online, ONLINE, "      __syncthreads();  // the last slice is done with\n"),
    _without("slice_unwritten", online, ONLINE, "      __syncthreads();  // the slices are there\n"),
    _without("values_in_use", online, ONLINE, "      __syncthreads();  // K, or the last slice of V, is done with\n"),
    _without("values_unwritten", online, ONLINE, "      __syncthreads();  // V is there, and so are the probabilities\n"),
    _bug("online_half_warp", online, ONLINE, "lanes < 16; lanes *= 2) sum[a]", "lanes < 8; lanes *= 2) sum[a]"),
    _bug("online_columns", online, ONLINE, "column < left;", "column <= left;"),
    _bug("online_hidden", online, ONLINE, "j >= see.begin && j < see.end", "j > see.begin && j < see.end"),
    _bug("online_correction", online, ONLINE, "      sum[a] *= correction;\n", ""),
    # split
    _without("split_rows", split, SPLIT, "  __syncthreads();  // the rows are there\n"),
    _without("split_q", split, SPLIT, "  __syncthreads();  // Q is there\n"),
    _without("split_scores", split, SPLIT, "  __syncthreads();  // the scores are there, and Q is done with\n"),
    _without("split_probabilities", split, SPLIT, "  __syncthreads();  // the probabilities are there, and O is 0\n"),
    _without("split_turns", split, SPLIT, "    __syncthreads();  // the next threads add to it\n"),
    _bug("split_last_key", split, SPLIT, "n0 >= seen.end ||", "n0 >= seen.end - 1 ||"),
    _bug("split_last_chunk", split, SPLIT, "(seen.end + kChunkKeys - 1) / kChunkKeys", "seen.end / kChunkKeys"),
    _bug("split_weight", split, SPLIT, "expf(state.x - base)", "1.f"),
    _bug("split_row", split, SPLIT, "kv_head * tasks.group + r % tasks.group", "kv_head * tasks.group"),
    _bug("split_hidden", split, SPLIT, "at >= see.begin && at < see.end", "at >= see.begin && at <= see.end"),
    # naive
    _bug("naive_hidden", naive, NAIVE, "x.column < seen.end", "x.column <= seen.end"),
    _bug("naive_dropout", naive, SCORES, ">> (j % 4) & 1", ">> (j % 2) & 1"),
    _bug("naive_sink", naive, NAIVE, "(total + sink)", "(total)"),
]  # fmt: skip


# ---- backward ----

PASS, MMA, FP32 = (f"csrc/attention/backward_{name}.cuh" for name in ("pass", "mma", "fp32"))
ROWS, NAIVE_BACKWARD, MASK = (f"csrc/attention/{name}.cuh" for name in ("backward", "naive_backward", "mask_gradient"))


def _gradients(shape, dtype=torch.float32, variant=None, mask=None, sinks=None, poison=(), far=False, **options):
    """far: all scores are far below 0."""
    b, h, hk, lq, lk, d, dv = shape
    generator = torch.Generator().manual_seed(sum(shape))
    randn = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    leaves = [randn(b, h, lq, d).to(dtype), randn(b, hk, lk, d).to(dtype), randn(b, hk, lk, dv).to(dtype)]
    for key in poison:
        leaves[1][:, :, key] = math.nan
    if far:
        leaves[0], leaves[1] = leaves[0].abs(), leaves[1] * 0.05 - 1
    if mask is not None:
        options["attn_mask"] = mask(randn)
        if options["attn_mask"].is_floating_point():
            leaves.append(options["attn_mask"])
    if sinks is not None:
        options["sinks"] = sinks(randn)
        leaves.append(options["sinks"])
    for leaf in leaves:
        leaf.requires_grad_()
    torch.manual_seed(5)  # of the dropout mask
    emulated = getattr(_installed, "tables", None) is not None
    out = scaled_dot_product_attention(
        *leaves[:3], enable_gqa=h != hk, variant=variant if emulated else None, **options
    )
    return [g.float() for g in torch.autograd.grad(out, leaves, randn(b, h, lq, dv).to(dtype))]


# Rows and keys: more than a tile of a block and several of the ring of stages, none whole.
BOTH = (1, 4, 2, 137, 150, 40, 24)


def backward_mma():
    return [*_gradients(BOTH, HALF, window=(65, 30)), *_gradients(BOTH, HALF)]


def backward_mma_extras():
    return [
        *_gradients(BOTH, HALF, softcap=3.0, mask=lambda randn: randn(1, 4, 137, 150) > -1, dropout_p=0.3),
        *_gradients((1, 2, 2, 40, 70, 20, 23), HALF, is_causal=True),  # rows that are no multiple of 16 bytes
    ]


def backward_mma_atomic():
    return [
        *_gradients(BOTH, HALF, window=(65, 30), deterministic=False),
        *_gradients((1, 1, 1, 40, 150, 40, 24), HALF, scale=4.0, far=True, deterministic=False),
    ]


def backward_mma_large():
    return _gradients((1, 2, 1, 70, 100, 160, 136), HALF, is_causal=True)


def backward_fp32():
    return [
        *_gradients((1, 4, 2, 70, 130, 40, 72), window=(65, 30)),
        *_gradients((2, 1, 1, 9, 70, 35, 20), softcap=3.0, dropout_p=0.3),
    ]


def backward_mask():
    return [
        *_gradients((2, 2, 1, 70, 90, 24, 24), mask=lambda randn: randn(1, 2, 70, 90), window=(50, 0)),
        *_gradients((2, 2, 1, 70, 130, 24, 24), mask=lambda randn: randn(2, 1, 1, 130), window=(30, 20)),
        *_gradients((1, 9, 1, 9, 70, 24, 24), mask=lambda randn: randn(1, 9, 9, 70), window=(3, 20)),
    ]


def backward_naive():
    return [
        *_gradients((1, 2, 1, 9, 70, 24, 72), variant="naive", window=(20, 5), dropout_p=0.3),
        *_gradients((1, 2, 1, 40, 70, 24, 24), mask=_hides_three, poison=(3,)),
    ]


def _hides_three(randn):
    mask = randn(1, 1, 40, 70) > -1
    mask[..., 0], mask[..., 3] = True, False
    return mask


def backward_rows():
    return _gradients((1, 2, 1, 300, 33, 24, 24), sinks=lambda randn: randn(2))


BACKWARD_64, BACKWARD_256 = (f"csrc/attention/launch_backward_{d}_f16.cu" for d in (64, 256))
BACKWARD_CALLS = {
    backward_mma: BACKWARD_64,
    backward_mma_extras: BACKWARD_64,
    backward_mma_atomic: BACKWARD_64,
    backward_mma_large: BACKWARD_256,
    backward_fp32: "csrc/attention/launch_backward_fp32_keys.cu",
    backward_mask: "csrc/attention/launch_backward_mask.cu",
    backward_naive: "csrc/attention/launch_backward_naive.cu",
    backward_rows: "csrc/attention/launch_backward.cu",
}
UNITS |= {call: (unit, []) for call, unit in BACKWARD_CALLS.items()}
TOLERANCES |= dict.fromkeys((backward_mma, backward_mma_extras, backward_mma_atomic, backward_mma_large), 1e-2)
CALLS += BACKWARD_CALLS

NEXT_FETCH = "        __syncthreads();  // the next fetch overwrites this stage\n"
BUGS += [
    # tensor cores: the pipeline
    _without("backward_stage", backward_mma, PASS, "        __syncthreads();  // this stage is there\n"),
    _without("backward_reuse", backward_mma, PASS, NEXT_FETCH),
    _bug("backward_wait", backward_mma, PASS, "cp_async_wait<S - 1>()", "cp_async_wait<S>()"),
    _without("backward_commit_first", backward_mma, PASS, "    ptx::cp_async_commit();\n\n"),
    _bug("backward_commit", backward_mma, PASS, "        ptx::cp_async_commit();\n        ptx", "        ptx"),
    _bug("backward_next_head", backward_mma, PASS, "same ? g : g + 1", "g"),
    _bug("backward_next_tile", backward_mma, PASS, ": begin);\n        }", ": 0);\n        }"),
    _bug("backward_numbers_stage", backward_mma, PASS, "numbers + to * 2 * C", "numbers + stage * 2 * C"),
    _without("backward_single_stage", backward_mma_large, PASS, NEXT_FETCH),
    _bug("backward_single_wait", backward_mma_large, PASS, "cp_async_wait<S - 1>()", "cp_async_wait<S>()"),
    # tensor cores: layout, fragments, edges
    _bug("backward_swizzle", backward_mma, MMA, "tile + place<Swizzled<D>>(r, c);", "tile + r * D + c * 8;"),
    _bug("backward_moved", backward_mma, MMA, "(address ^ (bytes & kSpan)) + (bytes & ~kSpan)", "address + bytes"),
    _bug("backward_not_transposed", backward_mma, MMA, "ptx::ldmatrix_trans(b, moved", "ptx::ldmatrix(b, moved"),
    _bug("backward_rows_left", backward_mma, MMA, "r < rows && c * 8 < width", "r <= rows && c * 8 < width"),
    _bug("backward_columns_left", backward_mma_extras, MMA, "there ? width - c * 8 : 0", "there ? 8 : 0"),
    _bug("backward_hidden", backward_mma, PASS, "c >= seen.end[i / 2])", "c > seen.end[i / 2])"),
    _bug("backward_hidden_first", backward_mma, PASS, "(c < seen.begin[i / 2]", "(c < seen.begin[i / 2] - 1"),
    _bug("backward_all", backward_mma, ROWS, "end <= all_end", "end <= all_end + 1"),
    _bug("backward_any", backward_mma, ROWS, "any_begin < end && begin < any_end", "any_begin < end && begin < any_end - 1"),
    _bug("backward_whole", backward_mma_atomic, ROWS, "whole = count <= left", "whole = true"),
    _bug("backward_dropped_keys", backward_mma_extras, PASS, "kept_fragment_transposed(c0 + n * 8, first)",
         "kept_fragment_transposed(first, c0 + n * 8)"),
    _bug("backward_head", backward_mma_extras, PASS, "if (extras && g > 0) head", "if (extras && g > 1) head"),
    _bug("backward_tanh", backward_mma_extras, PASS, "(1.f - score.tanh * score.tanh)", "1.f"),
    # dq by atomics
    _without("backward_ds_over", backward_mma_atomic, PASS,
             "          __syncthreads();                         // the last use of this stage is over\n"),
    _without("backward_ds_there", backward_mma_atomic, PASS, "          __syncthreads();  // dS is there\n"),
    _without("backward_atomic_reuse", backward_mma_atomic, PASS, NEXT_FETCH),
    _bug("backward_ds_place", backward_mma_atomic, PASS, "i % 2 * 8, k * 2 + i / 2)", "i % 2 * 8, k * 2)"),
    _bug("backward_not_added", backward_mma_atomic, MMA, "atomicAdd(dq + static_cast<int64_t>(r) * width + c, acc",
         "atomicExch(dq + static_cast<int64_t>(r) * width + c, acc"),
    # fp32 cores
    _without("backward_columns_in_use", backward_fp32, FP32, "    __syncthreads();  // the last use of work is over\n"),
    _bug("backward_columns_there", backward_fp32, FP32, "c0);\n    __syncthreads();  // the columns are there\n", "c0);\n"),
    _without("backward_weights", backward_fp32, FP32,
             "    __syncthreads();  // the last use of work is over, and the weights are there\n"),
    _bug("backward_block_there", backward_fp32, FP32, "    }\n    __syncthreads();  // the columns are there\n", "    }\n"),
    _bug("backward_quad", backward_fp32, FP32, "c + j < x.width", "c + j <= x.width"),
    _bug("backward_seen", backward_fp32, FP32, "seen.begin <= c && c < seen.end", "seen.begin <= c && c <= seen.end"),
    # the mask
    _without("mask_written", backward_mask, MASK, "    __syncthreads();  // the tile is there\n"),
    _bug("mask_rows", backward_mask, MASK, "lesser(row0 + kTile, p.q_len)", "lesser(row0 + kTile - 1, p.q_len)"),
    _bug("mask_batch", backward_mask, MASK, "Range{0, size}", "Range{0, 1}"),
    _bug("mask_keys", backward_mask, MASK, "seen.begin <= j && j < seen.end", "seen.begin <= j && j <= seen.end"),
    # rows, sinks, naive
    _bug("rows_sink", backward_rows, ROWS, "fmaxf(lse, sink) + log1pf", "fmaxf(lse, sink) - log1pf"),
    _bug("sinks_stride", backward_rows, ROWS, "i += kThreads) sum", "i += kThreads / 2) sum"),
    _bug("naive_rows_last", backward_naive, NAIVE_BACKWARD, "key_of<const T>(p.k, h, j0 + lane)", "key_of<const T>(p.k, h, j0)"),
    _bug("naive_keys_group", backward_naive, NAIVE_BACKWARD, "head < (kv_head + 1) * group", "head < kv_head * group + 1"),
    _bug("not_careful", backward_naive, NAIVE_BACKWARD, "if (!__all_sync(kWarp, finite))", "if (!h.rows)"),
]  # fmt: skip
