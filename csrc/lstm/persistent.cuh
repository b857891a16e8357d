// The rungs `persistent` and `fused_cell`: time steps whose product and gates are one kernel. Of `persistent` one cooperative
// launch runs all steps, and each block keeps its slice of W_hh in shared memory all along (Diamos et al. 2016); of
// `fused_cell` a launch runs one step, and the slices are read from a copy in global memory.
//
//   block (x, y): slices x, x + gridDim.x, ... of the units, groups y, y + gridDim.y, ... of the samples
//
//   turn:  for each of its slices and groups
//            product     what was exchanged in the last turn [samples, K] by the slice [columns, K]       stationary.cuh
//            finish      the slice's units of the group's samples, a thread each: gates, c, h, the results, and what W_hh
//                        multiplies in the next turn, into the other one of two exchanged matrices
//            prepare     what the next finish needs from memory is on its way while the blocks meet
//          the grid meets
//
// One meeting per turn is enough: who writes a matrix again has met, in between, all who read it. Pass says what is multiplied
// and finished: Forward (below) or Backward (persistent_backward.cuh).
//
// Counted for an H200 (132 processors at 1.75 GHz, 227 KB of shared memory each; L2 gives 5.5 TB/s), lstm, bfloat16, B = 16;
// per turn, and per block where it says so:
//
//                    blocks  weights/block  flops/block  L2 reads/block, all   floor: L2, meeting, latencies
//   forward   H  512     64          35 KB        0.5 M       16 KB,  1.0 MB   0.2 + 1.3 + 0.5 us
//             H  768     96          51 KB        0.8 M       25 KB,  2.4 MB   0.4 + 1.3 + 0.5 us: T = 1024 in 2.3 ms
//             H 1024    128          68 KB        1.0 M       33 KB,  4.2 MB   0.8 + 1.3 + 0.6 us
//   backward  H  768     48          99 KB        1.6 M       98 KB,  4.7 MB   0.9 + 1.3 + 0.7 us: T = 1024 in 3.0 ms
//
// What bounds it is the meeting, then what every block reads of L2. Later, behind the same Pass: a Hopper cluster whose blocks
// exchange by distributed shared memory (H <= 512 needs no other block), and a wavefront over layers, whose turns
// finish step t of layer l and step t - 1 of layer l + 1 between two meetings.
#pragma once
#include "../cuda/grid_sync.h"
#include "cells.cuh"
#include "stationary.cuh"
#include "turns.h"

namespace dlops::lstm {

// ---- the passes ----

// A pass's kCell: Cell::rnn_tanh stands for both kinds of rnn, which share their kernels.

// One unit of one sample.
struct Element { int64_t sample, unit; };

template <class T_, Cell kCell_>
struct Forward {
  using T = T_;
  using Params = RecurrenceParams;
  static constexpr Cell kCell = kCell_;
  static constexpr int kColumns = kGates<kCell>;  // per unit
  static constexpr int kChains = 1;
  static constexpr bool kUnitsFirst = false;  // how W_hh lies as seen from the slices

  // Where an element of a column of the slices comes from.
  static DLOPS_DEVICE int64_t weight(const RecurrenceProblem& p, int64_t unit, int column, int, int64_t k) {
    return (column * p.hidden + unit) * p.hidden + k;
  }
  static DLOPS_DEVICE float first_exchanged(const Params& p, int64_t b, int64_t k) {
    const Place at = place(p, 0, b);
    return at.there ? h_dropped<T>(p, at, b, k) : 0.f;
  }
  static DLOPS_DEVICE void start(const Params& p, const Turns& turns, int64_t i) {
    turns.h[i] = state_at<T>(p.h0, i);
    if (kCell == Cell::lstm) turns.c[i] = state_at<T>(p.c0, i);
  }

  // All that finishing needs from memory, as it lies there: nothing here is computed with before the blocks have met, or
  // they would meet only when it has come.
  Place at;
  uint8_t reset, next_reset, kept_h, kept_c;
  T b_ih[kColumns], b_hh[kColumns];
  float x[kColumns], h, c, dropout;

  DLOPS_DEVICE void load(const Params& p, const Turns& turns, const Element& cell, int64_t step) {
    at = place(p, step, cell.sample);
    if (!at.there) return;
    const int64_t i = at.row * p.hidden + cell.unit, of_state = cell.sample * p.hidden + cell.unit;
    if (p.reset) reset = p.reset[at.row];
    if (p.reset && !at.last) next_reset = p.reset[place(p, step + 1, cell.sample).row];
    if (p.dropout) dropout = p.dropout[of_state];
    if (p.keep_h) kept_h = p.keep_h[i];
    h = turns.h[of_state];
    if constexpr (kCell == Cell::lstm) {
      if (p.keep_c) kept_c = p.keep_c[i];
      c = turns.c[of_state];
    }
#pragma unroll
    for (int gate = 0; gate < kColumns; gate++) {
      const int64_t j = gate * p.hidden + cell.unit;
      x[gate] = p.gates_x[at.row * kColumns * p.hidden + j];
      if (p.b_ih) b_ih[gate] = static_cast<const T*>(p.b_ih)[j];
      if (p.b_hh) b_hh[gate] = static_cast<const T*>(p.b_hh)[j];
    }
  }

  // product: of W_hh. exchange: where this sample's row of the next matrix begins.
  DLOPS_DEVICE void finish(const Params& p, const Turns& turns, const Element& cell, int64_t,
                           float (&product)[kColumns], T* exchange) {
    if (!at.there) return pad_unit<T>(p, at, cell.sample, cell.unit);
    const int64_t i = at.row * p.hidden + cell.unit, of_state = cell.sample * p.hidden + cell.unit;
    float saved[kSaved<kCell>], tanh_c = 0.f;
#pragma unroll
    for (int gate = 0; gate < kColumns; gate++) {
      if (p.b_ih) x[gate] += static_cast<float>(b_ih[gate]);
      if (p.b_hh) product[gate] += static_cast<float>(b_hh[gate]);
    }
    if (p.reset && reset) h = c = 0.f;
    activate<kCell>(x, product, saved);
    if constexpr (kCell == Cell::rnn_tanh)
      if (p.cell == Cell::rnn_relu) activate<Cell::rnn_relu>(x, product, saved);
    if constexpr (kCell == Cell::lstm) {
      const float after = next_c(saved, c);
      tanh_c = tanhf(after);
      c = mix(p.keep_c ? kept_c != 0 : p.zoneout_c, c, after);
    }
    const float keep_h = p.keep_h ? kept_h != 0 : p.zoneout_h;
    const T rounded = T(mix(keep_h, h, next_h<kCell>(saved, h, tanh_c)));
    h = static_cast<float>(rounded);
    if (!at.last) exchange[cell.unit] = T(p.reset && next_reset ? 0.f : p.dropout ? h * dropout : h);
    turns.h[of_state] = h;
    static_cast<T*>(p.y)[i] = rounded;
    if (at.last) static_cast<T*>(p.hn)[of_state] = rounded;
    if constexpr (kCell == Cell::lstm) {
      turns.c[of_state] = c;
      if (p.c) p.c[i] = c;
      if (at.last) static_cast<T*>(p.cn)[of_state] = T(c);
    }
    if (p.saved)
#pragma unroll
      for (int part = 0; part < kSaved<kCell>; part++)
        p.saved[(at.row * kSaved<kCell> + part) * p.hidden + cell.unit] = saved[part];
  }
};

// ---- the kernels ----

template <class Pass, class Tile>
constexpr int kSliceColumns = Tile::kUnits * Pass::kColumns;
template <class Pass, class Tile>
using SliceProduct = Product<typename Pass::T, Tile::M, Tile::O * Pass::kColumns, Pass::kChains>;

// Slice `slice` to `to` [columns, pitch]: octets, in each the columns of its units, units first. Zeros where there are none.
template <class Pass, class Tile>
DLOPS_DEVICE void copy_slice(const RecurrenceProblem& p, const Turns& turns, const typename Pass::T* w,
                             int64_t slice, typename Pass::T* to) {
  using T = typename Pass::T;
  constexpr int kColumns = kSliceColumns<Pass, Tile>;
  const int depth = turns.spans * kSpan<T>;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < kColumns * depth; e += kThreads) {
    const int column = Pass::kUnitsFirst ? e % kColumns : e / depth,
              k = Pass::kUnitsFirst ? e / kColumns : e % depth;
    const int octet = column / (kOctet * Pass::kColumns), of_unit = column / kOctet % Pass::kColumns;
    const int64_t unit = slice * Tile::kUnits + octet * kOctet + column % kOctet;
    const int segment = k / turns.segment, in_segment = k % turns.segment;
    to[column * turns.pitch + k] = unit < p.hidden && in_segment < p.hidden
                                       ? w[Pass::weight(p, unit, of_unit, segment, in_segment)]
                                       : T(0.f);
  }
}

// Before the first turn: the states, both exchanged matrices (of the second the padding counts), and the packed slices.
template <class Pass, class Tile>
__global__ void __launch_bounds__(kThreads)
    recurrence_start(const typename Pass::Params p, const Turns turns, const bool pack) {
  using T = typename Pass::T;
  const int64_t depth = turns.spans * kSpan<T>;
  for (int64_t e = flat_thread(); e < 2 * turns.exchanged; e += flat_threads()) {
    const int64_t b = e / depth, k = e % depth;
    const bool there = b < p.batch && k < p.hidden;
    static_cast<T*>(turns.exchange)[e] = T(there ? Pass::first_exchanged(p, b, k) : 0.f);
  }
  for (int64_t i = flat_thread(); i < p.batch * p.hidden; i += flat_threads()) Pass::start(p, turns, i);
  if (!pack) return;
  for (int64_t slice = blockIdx.x; slice < turns.slices; slice += gridDim.x)
    copy_slice<Pass, Tile>(p, turns, static_cast<const T*>(p.w_hh), slice,
                           static_cast<T*>(turns.packed) + slice * kSliceColumns<Pass, Tile> * turns.pitch);
}

// What a block takes at a time: slice `slice` of group `group`. Its elements go to the threads, kElements to each.
template <class Pass, class Tile>
struct Part {
  using Products = SliceProduct<Pass, Tile>;
  int64_t slice, group;

  // A thread's e-th element in the block's sums: fragment (tile, octet), element `at` of it.
  struct Spot { int tile, octet, at; };
  static DLOPS_DEVICE Spot spot(int e) {
    const int i = static_cast<int>(threadIdx.x) + e * kThreads;
    return {i / kFragment / Tile::O, i / kFragment % Tile::O, i % kFragment};
  }
  DLOPS_DEVICE Element element(const Spot& s) const {
    return {group * Tile::kRows + s.tile * kSamples + Products::Sums::sample_of(s.at),
            slice * Tile::kUnits + s.octet * kOctet + s.at / 4 % 4 * 2 + s.at % 2};
  }
  static DLOPS_DEVICE bool exists(const RecurrenceProblem& p, const Spot& s, const Element& to) {
    return s.tile < Tile::M && to.sample < p.batch && to.unit < p.hidden;
  }

  DLOPS_DEVICE void load(const typename Pass::Params& p, const Turns& turns, int64_t turn,
                         Pass (&finishing)[Tile::kElements]) const {
#pragma unroll
    for (int e = 0; e < Tile::kElements; e++) {
      const Element of = element(spot(e));
      if (exists(p, spot(e), of)) finishing[e].load(p, turns, of, turn);
    }
  }
  DLOPS_DEVICE void finish(const typename Pass::Params& p, const Turns& turns, int64_t turn,
                           Pass (&finishing)[Tile::kElements], const float* partials,
                           typename Pass::T* exchange) const {
#pragma unroll
    for (int e = 0; e < Tile::kElements; e++) {
      const Spot s = spot(e);
      const Element of = element(s);
      if (!exists(p, s, of)) continue;
      float product[Pass::kColumns];
#pragma unroll
      for (int column = 0; column < Pass::kColumns; column++)
        product[column] = Products::total(partials, s.tile, s.octet * Pass::kColumns + column, s.at);
      finishing[e].finish(p, turns, of, turn, product,
                          exchange + of.sample * turns.spans * kSpan<typename Pass::T>);
    }
  }
};

// Tensor cores take 16-bit elements from sm_80 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <class T>
constexpr bool kHasInstructions = sizeof(T) == 4;
#else
template <class T>
constexpr bool kHasInstructions = true;
#endif

constexpr KernelInfo kFusedTurn =
    DLOPS_LSTM_KERNEL("recurrence", "fused_cell", "16 samples x 8 units, or 32 x 16", "recurrence_turns");
constexpr KernelInfo kPersistentTurns =
    DLOPS_LSTM_KERNEL("recurrence", "persistent", "16 samples x 8 units, or 32 x 16", "recurrence_turns");
// Turns [begin, end). resident: all of them, in a cooperative launch; else one. (A block to a processor: for the sake of a second
// one the compiler would spill.)
template <class Pass, class Tile, bool resident>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_turns(const __grid_constant__ typename Pass::Params p, const __grid_constant__ Turns turns,
                     const int64_t begin, const int64_t end) {
  using T = typename Pass::T;
  if constexpr (kHasInstructions<T>) {
    using Products = SliceProduct<Pass, Tile>;
    DLOPS_DYNAMIC_SHARED(float, memory, 16);  // the warps' sums, then the slices
    T* kept = reinterpret_cast<T*>(memory + Products::kPartials);
    const int64_t slice_size = kSliceColumns<Pass, Tile> * turns.pitch, depth = turns.spans * kSpan<T>;
    if constexpr (resident) {
      int64_t i = 0;
      for (int64_t slice = blockIdx.x; slice < turns.slices; slice += gridDim.x, i++)
        copy_slice<Pass, Tile>(p, turns, static_cast<const T*>(p.w_hh), slice, kept + i * slice_size);
      __syncthreads();  // the slices are there
    }

    Part<Pass, Tile> part{blockIdx.x, blockIdx.y};
    Pass finishing[Tile::kElements];
    part.load(p, turns, begin, finishing);
    for (int64_t turn = begin; turn < end; turn++) {
      const T* exchanged = static_cast<const T*>(turns.exchange) + turn % 2 * turns.exchanged;
      T* next_exchanged = static_cast<T*>(turns.exchange) + (turn + 1) % 2 * turns.exchanged;
      const T* columns = resident ? kept : static_cast<const T*>(turns.packed) + blockIdx.x * slice_size;
      for (bool more = true; more;) {
        Products::multiply(exchanged + part.group * Tile::kRows * depth, depth, columns, turns.pitch,
                           turns.spans, static_cast<int>(p.batch - part.group * Tile::kRows), memory);
        __syncthreads();  // all warps' sums are there
        part.finish(p, turns, turn, finishing, memory, next_exchanged);
        // the next part: of the next group, the next slice, or the first of the next turn
        part.group += gridDim.y;
        if (part.group >= turns.groups) {
          part = {part.slice + gridDim.x, blockIdx.y};
          columns += (resident ? 1 : gridDim.x) * slice_size;
        }
        more = part.slice < turns.slices;
        if (!more) part = {blockIdx.x, blockIdx.y};
        if (more || turn + 1 < end) part.load(p, turns, more ? turn : turn + 1, finishing);
        if (more) __syncthreads();  // and read
      }
      if constexpr (resident) ptx::grid_sync();  // the next matrix is whole
    }
  } else {
    __trap();
  }
}

}  // namespace dlops::lstm
