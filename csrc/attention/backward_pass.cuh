// The kernel of a pass: backward_mma.cuh says what it does and holds its products.
#pragma once
#include "backward_mma.cuh"

namespace dlops::attention {

// What of a sequence decides who sees whom; as ints, because the passes have few registers to spare.
struct Shape {
  int rows, keys, shift;
  DLOPS_DEVICE Sequence sequence() const { return {0, rows, 0, keys, shift}; }
};

// A thread's two rows of the warp's owned 16, lane / 4 and lane / 4 + 8: which of the other side they see. Computed where it
// is needed (opaque), not ahead of the loop.
struct Seen { int begin[2], end[2]; };

template <Own own>
DLOPS_DEVICE Seen seen_by_thread(const AttentionProblem& p, const Shape& shape, int first) {
  Seen seen;
  const int at = opaque(first) + lane_of_warp() / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int i = at + 8 * half;
    const Range r =
        i < owned_length<own>(shape.sequence()) ? seen_by<own>(p, shape.sequence(), i) : Range{0, 0};
    seen.begin[half] = static_cast<int>(r.begin);
    seen.end[half] = static_cast<int>(r.end);
  }
  return seen;
}

// L and delta of the rows of a warp's fragment [16, C]. Own::rows: rows of the fragment, in registers; Own::keys: its
// columns, in shared memory.
template <Own own, int C>
struct RowNumbers {
  float total[2], delta[2];
  const float* columns;  // [2][C]

  DLOPS_DEVICE float total_at(int n, int i) const {
    return own == Own::rows ? total[i / 2] : columns[n * 8 + threadIdx.x % 4 * 2 + i % 2];
  }
  DLOPS_DEVICE float delta_at(int n, int i) const {
    return own == Own::rows ? delta[i / 2] : columns[C + n * 8 + threadIdx.x % 4 * 2 + i % 2];
  }
};

// s: q . k -> p.
template <bool edge, Own own, int C>
DLOPS_DEVICE void probabilities(float (&s)[C / 8][4], const RowNumbers<own, C>& rows, const Seen& seen,
                                int c0, float scale) {
#pragma unroll
  for (int n = 0; n < C / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int c = c0 + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
      const bool hidden = edge && (c < seen.begin[i / 2] || c >= seen.end[i / 2]);
      // Rounded as the forward's, so that large scores leave no error here.
      const float p = exp2_fast((__fmul_rn(s[n][i], scale) - rows.total_at(n, i)) * kLog2e);
      s[n][i] = hidden ? 0.f : p;
    }
}

// dp: dO . v -> ds; 0 where p is, whatever a hidden key holds.
template <Own own, int C>
DLOPS_DEVICE void score_gradient(float (&dp)[C / 8][4], const float (&p)[C / 8][4],
                                 const RowNumbers<own, C>& rows) {
#pragma unroll
  for (int n = 0; n < C / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) dp[n][i] = p[n][i] == 0.f ? 0.f : p[n][i] * (dp[n][i] - rows.delta_at(n, i));
}

// Both with all extras; s becomes the dropped p. first: of the warp's owned 16.
template <Own own, int C>
DLOPS_DEVICE void with_extras(float (&s)[C / 8][4], float (&dp)[C / 8][4], const RowNumbers<own, C>& rows,
                              const Seen& seen, int c0, int first, const AttentionProblem& p,
                              const Head& head, const Dropout& dropout) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float kept_weight = 1.f / (1.f - p.dropout_p);
#pragma unroll
  for (int n = 0; n < C / 8; n++) {
    uint32_t kept = 0xf;
    if (p.dropout_p > 0)
      kept = own == Own::rows ? dropout.kept_fragment(first, c0 + n * 8)
                              : dropout.kept_fragment_transposed(c0 + n * 8, first);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int c = c0 + n * 8 + lane % 4 * 2 + i % 2, o = first + lane / 4 + i / 2 * 8;
      float prob = 0, ds = 0;
      const float drop = kept >> i & 1 ? kept_weight : 0.f;
      if (c >= seen.begin[i / 2] && c < seen.end[i / 2]) {
        const Score score =
            own == Own::rows ? score_of(p, head, s[n][i], o, c) : score_of(p, head, s[n][i], c, o);
        prob = exp2_fast((score.value - rows.total_at(n, i)) * kLog2e);
        if (prob != 0) ds = prob * (dp[n][i] * drop - rows.delta_at(n, i)) * (1.f - score.tanh * score.tanh);
      }
      s[n][i] = prob * drop;
      dp[n][i] = ds;
    }
  }
}

// The other side of the heads that a block goes over, one tile at a time.
template <class T, int D, Own own, bool any>
struct Streamed {
  const T *first, *second;  // k, v; or q, dO of the group's first head
  int64_t row;              // Own::keys: of row 0 of that head in the workspace
  int length;

  DLOPS_DEVICE Streamed(const AttentionBackwardParams& p, const Shape& shape, const Head& h)
      : first(own == Own::rows ? key_of<const T>(p.k, h, 0) : row_of<const T>(p.q, h, 0)),
        second(own == Own::rows ? key_of<const T>(p.v, h, 0) : row_of<const T>(p.dout, h, 0)),
        row(BackwardRows::row_of(p, h, 0)),
        length(own == Own::rows ? shape.keys : shape.rows) {}

  // Tile c0 of the group's head g. tile: [2][C, D]; numbers: [2][C].
  DLOPS_DEVICE void fetch(const AttentionBackwardParams& p, const MmaPlan& plan, T* tile, float* numbers,
                          int g, int c0) const {
    using Tile = MmaTile<D>;
    constexpr int C = Tile::streamed;
    const HeadsIn &a = own == Own::rows ? p.k : p.q, &b = own == Own::rows ? p.v : p.dout;
    load_tile<T, D, C, Tile::threads, any>(tile, first + g * a.head + c0 * a.row, a.row, length - c0,
                                           static_cast<int>(p.d), plan.wide);
    load_tile<T, D, C, Tile::threads, any>(tile + C * D, second + g * b.head + c0 * b.row, b.row, length - c0,
                                           static_cast<int>(p.dv), plan.wide);
    if constexpr (own == Own::keys) {
      const int which = static_cast<int>(threadIdx.x) / C, r = static_cast<int>(threadIdx.x) % C;
      const bool there = c0 + r < length;
      const float* from = (which ? plan.rows.delta : plan.rows.total) + row + g * p.total_q + c0;
      if (which < 2) ptx::cp_async<4>(numbers + which * C + r, there ? from + r : from, there);
    }
  }
};

// The warp's part of the gradients. What keeps it apart from the kernel: nothing it needs occupies registers before.
template <class T, int D, Pass pass, bool any, int N0, int N1>
DLOPS_DEVICE void store_gradients(const AttentionBackwardParams& p, const MmaPlan& plan, int64_t task,
                                  const float (&acc0)[N0][4], const float (&acc1)[N1][4]) {
  constexpr Own own = makes_dq(pass) ? Own::rows : Own::keys;
  const OwnedTile t = owned_tile<own>(p, task, plan.tiles, MmaTile<D>::owned);
  const Head head = head_of(p, t.batch, own == Own::rows ? t.head : t.head * (p.heads / p.kv_heads));
  const int64_t first = t.first + threadIdx.x / 32 * 16;
  const int64_t written = written_length<own>(p, head.sequence) - first,
                real = owned_length<own>(head.sequence) - first;
  const int d = static_cast<int>(p.d), dv = static_cast<int>(p.dv);
  if constexpr (makes_dq(pass))
    store_rows<T, D, any>(row_of<T>(p.dq, head, first), p.dq.row, acc0, p.scale, written, real, d,
                          plan.wide_grads);
  if constexpr (makes_dk(pass))
    if (p.dk.data)
      store_rows<T, D, any>(key_of<T>(p.dk, head, first), p.dk.row, acc0, p.scale, written, real, d,
                            plan.wide_grads);
  if constexpr (makes_dv(pass))
    if (p.dv_.data)
      store_rows<T, D, any>(key_of<T>(p.dv_, head, first), p.dv_.row, acc1, 1.f, written, real, dv,
                            plan.wide_grads);
}

constexpr KernelInfo kBackwardMma = DLOPS_ATTENTION_BACKWARD("fused", "sm_80 sm_90a", "f16 bf16",
                                                             "128 keys x 32 rows; dq: 128 rows x 32 keys",
                                                             "attention_backward_mma", MmaTile<128>::bytes);
template <class T, int D, Pass pass, bool extras, bool atomic>
__global__ void __launch_bounds__(MmaTile<D>::threads)
    attention_backward_mma(const __grid_constant__ AttentionBackwardParams p,
                           const __grid_constant__ MmaPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Tile = MmaTile<D>;
  constexpr Own own = makes_dq(pass) ? Own::rows : Own::keys;
  constexpr int R = Tile::owned, C = Tile::streamed, S = Tile::stages, kThreads = Tile::threads;
  static_assert(!atomic || (makes_dk(pass) && R * C <= Tile::stage));
  DLOPS_DYNAMIC_SHARED(T, shared, 128);
  T *owned0 = shared, *owned1 = shared + R * D, *stages = shared + 2 * R * D;
  float* numbers = reinterpret_cast<float*>(stages + S * Tile::stage);  // [S][2][C]
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int d = static_cast<int>(p.d), dv = static_cast<int>(p.dv);
  const int group = own == Own::rows ? 1 : static_cast<int>(p.heads / p.kv_heads);
  const Lanes<D> own_lanes(ptx::shared_address(owned0 + warp * 16 * D)), lanes(ptx::shared_address(stages));

  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const OwnedTile t = owned_tile<own>(p, task, plan.tiles, R);
    Head head = head_of(p, t.batch, t.head * group);
    if (t.first >= written_length<own>(p, head.sequence)) continue;
    const int first = static_cast<int>(t.first) + warp * 16;
    const Sight mine = sight_of<own>(p, head.sequence, first, 16),
                block = sight_of<own>(p, head.sequence, t.first, R);
    const int begin = block.any_begin / C * C, end = block.any_begin < block.any_end ? block.any_end : begin;

    const Shape shape{head.rows, head.keys, head.shift};
    const Streamed<T, D, own, extras> streamed(p, shape, head);
    if (begin < end) {
      const int left = static_cast<int>(lesser(owned_length<own>(head.sequence) - t.first, R));
      if constexpr (own == Own::rows) {
        load_tile<T, D, R, kThreads, extras>(owned0, row_of<const T>(p.q, head, t.first), p.q.row, left, d,
                                             plan.wide);
        load_tile<T, D, R, kThreads, extras>(owned1, row_of<const T>(p.dout, head, t.first), p.dout.row, left,
                                             dv, plan.wide);
      } else {
        load_tile<T, D, R, kThreads, extras>(owned0, key_of<const T>(p.k, head, t.first), p.k.row, left, d,
                                             plan.wide);
        if constexpr (pass != Pass::dv)
          load_tile<T, D, R, kThreads, extras>(owned1, key_of<const T>(p.v, head, t.first), p.v.row, left, dv,
                                               plan.wide);
      }
      if constexpr (S == 2) streamed.fetch(p, plan, stages, numbers, 0, begin);
    }
    ptx::cp_async_commit();

    RowNumbers<own, C> rows{};
    if constexpr (own == Own::rows) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t i = first + lane / 4 + 8 * half, at = BackwardRows::row_of(p, head, i);
        const bool there = i < head.sequence.q_len;
        rows.total[half] = there ? plan.rows.total[at] : 0.f;
        rows.delta[half] = there ? plan.rows.delta[at] : 0.f;
      }
    }
    float acc0[pass == Pass::dv ? 1 : D / 8][4] = {}, acc1[makes_dv(pass) ? D / 8 : 1][4] = {};

    int stage = 0;
    for (int g = 0; g < group; g++) {
      if (extras && g > 0) head = head_of(p, t.batch, t.head * group + g);
      const Dropout dropout(p, head);
      for (int c0 = begin; c0 < end; c0 += C) {
        // The tile S - 1 steps ahead: of the same head, or the first one of the next.
        const bool same = S == 1 || c0 + C < end;
        if (same || g + 1 < group) {
          const int to = (stage + S - 1) % S;
          streamed.fetch(p, plan, stages + to * Tile::stage, numbers + to * 2 * C, same ? g : g + 1,
                         same ? c0 + (S - 1) * C : begin);
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<S - 1>();
        __syncthreads();  // this stage is there

        const uint32_t offset = static_cast<uint32_t>(stage * Tile::stage * 2);  // bytes
        if constexpr (own == Own::keys) rows.columns = numbers + stage * 2 * C;
        uint32_t ds[C / 16][4] = {};
        if (mine.any(c0, c0 + C)) {
          // P goes into dV before dP is made: one tile less in registers.
          float s[C / 8][4], dp[C / 8][4] = {};
          const uint32_t left = static_cast<uint32_t>(opaque(static_cast<int>(own_lanes.left)));
          product<T, D, C>(s, left, lanes.right + offset);
          if constexpr (!extras) {
            if (mine.all(c0, c0 + C))
              probabilities<false>(s, rows, {}, c0, p.scale);
            else
              probabilities<true>(s, rows, seen_by_thread<own>(p, shape, first), c0, p.scale);
            if constexpr (makes_dv(pass)) add_tile<T, D, C>(acc1, s, lanes.across + offset + C * D * 2);
          }
          if constexpr (pass != Pass::dv)
            product<T, D, C>(dp, left + R * D * 2, lanes.right + offset + C * D * 2);
          if constexpr (extras) {
            with_extras<own, C>(s, dp, rows, seen_by_thread<own>(p, shape, first), c0, first, p, head,
                                dropout);
            if constexpr (makes_dv(pass)) add_tile<T, D, C>(acc1, s, lanes.across + offset + C * D * 2);
          } else if constexpr (pass != Pass::dv) {
            score_gradient(dp, s, rows);
          }
          if constexpr (pass != Pass::dv) {
            as_operand<T, C>(ds, dp);
            accumulate<T, D, C>(acc0, ds, lanes.across + offset);
          }
        }
        if constexpr (atomic) {
          __syncthreads();                         // the last use of this stage is over
          T* sums = stages + stage * Tile::stage;  // [R, C]
          const int row = opaque(warp * 16 + lane / 4);
#pragma unroll
          for (int k = 0; k < C / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
              *reinterpret_cast<uint32_t*>(sums + place<Swizzled<C>>(row + i % 2 * 8, k * 2 + i / 2) +
                                           lane % 4 * 2) = ds[k][i];
          __syncthreads();  // dS is there
          add_dq<T, D, C, R, kThreads / 32>(plan.rows.dq + (streamed.row + g * p.total_q + c0) * d, sums,
                                            owned0, streamed.length - c0, d);
        }
        __syncthreads();  // the next fetch overwrites this stage
        stage = (stage + 1) % S;
      }
    }
    store_gradients<T, D, pass, extras>(p, plan, task, acc0, acc1);
  }
#endif
}

}  // namespace dlops::attention
