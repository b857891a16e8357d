// How the rungs `persistent` and `fused_cell` share out units and samples (persistent.cuh), and whether a device has room.
#pragma once
#include "params.h"

namespace dlops::lstm {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOctet = 8;                     // units side by side: N of an mma
constexpr int kSamples = 16;                  // M of an mma
constexpr int kFragment = kOctet * kSamples;  // elements of [16, 8]
constexpr int kSpanBytes = 64;                // what a warp takes of K at once
template <class T>
constexpr int kSpan = kSpanBytes / static_cast<int>(sizeof(T));  // elements

// A slice is O octets of units, a group M tiles of samples.
template <int O_, int M_>
struct Tile {
  static constexpr int O = O_, M = M_;
  static constexpr int kUnits = O * kOctet, kRows = M * kSamples;
  static constexpr int kElements = (kUnits * kRows + kThreads - 1) / kThreads;  // of a thread
};
using LargeTile = Tile<2, 2>;
// Backward K is G times as long, so reading what was exchanged is what takes time: twice the units per block halve it. float32
// is bound by its multiplications, and wants many blocks.
template <bool backward, int element>
using SmallTile = Tile<backward && element == 2 ? 2 : 1, 1>;

// Sizes, and where things lie in the workspace.
struct Turns {
  int64_t slices, groups;
  int spans;          // 64-byte spans of K
  int segment;        // elements of K: H, padded to whole spans; K is one of them, or one per gate
  int64_t pitch;      // of the slices' columns, in elements
  int64_t exchanged;  // elements of one exchanged matrix [samples, padded to groups; K]
  void* exchange;     // two of them
  // [B, H]: states (backward: their gradients) between the turns; each element is one thread's own.
  float *h, *c;
  void* packed;  // fused_cell: the slices, [slices][columns, pitch]

  // Bytes:
  int64_t slice, exchange_size, partials;
};

constexpr int64_t whole(int64_t n, int64_t size) { return (n + size - 1) / size; }

// From a column of a slice to the next, for so many spans: such that the 16-byte reads of a warp meet no bank conflict.
// 16-bit: 8 lanes read 64 bytes of two columns, which must lie in different halves of the banks. float32: 4 lanes
// read 16 bytes of every other column.
constexpr int64_t column_pitch(int64_t spans, int element) {
  return element == 2 ? (spans | 1) * (kSpanBytes / 2) : spans * (kSpanBytes / 4) + 4;
}

template <class Tile>
Turns turns_of(const RecurrenceProblem& p, bool backward) {
  const int element = p.dtype == Dtype::f32 ? 4 : 2, span = kSpanBytes / element;
  const int64_t per_segment = whole(p.hidden, span), columns = backward ? 1 : p.gates();
  Turns t{};
  t.slices = whole(p.hidden, Tile::kUnits);
  t.groups = whole(p.batch, Tile::kRows);
  t.spans = static_cast<int>(per_segment * (backward ? p.gates() : 1));
  t.segment = static_cast<int>(per_segment * span);
  t.pitch = column_pitch(t.spans, element);
  t.exchanged = t.groups * Tile::kRows * t.spans * span;
  t.slice = Tile::kUnits * columns * t.pitch * element;
  t.exchange_size = 2 * t.exchanged * element;
  t.partials = kWarps * Tile::M * Tile::O * columns * kFragment * static_cast<int64_t>(sizeof(float));
  return t;
}

// In float32 elements. packs: fused_cell.
constexpr int64_t workspace_of(const RecurrenceProblem& p, const Turns& t, bool packs) {
  return (t.exchange_size + (packs ? t.slices * t.slice : 0)) / 4 + 2 * p.batch * p.hidden;
}
inline void place_in(float* workspace, const RecurrenceProblem& p, Turns& t, bool packs) {
  t.exchange = workspace;
  t.packed = workspace += t.exchange_size / 4;
  if (packs) workspace += t.slices * t.slice / 4;
  t.h = workspace;
  t.c = workspace + p.batch * p.hidden;
}

// What a device has: processors, bytes of shared memory for a block.
struct Room {
  int64_t processors, shared;
  bool cooperative, tensor_cores;
};

struct Shares { int64_t x, y, slices; };  // the grid, and slices per block
constexpr Shares shares_of(const Turns& t, const Room& room) {
  const int64_t slices = whole(t.slices, room.processors), x = whole(t.slices, slices);
  const int64_t most = room.processors / x, groups = whole(t.groups, most);
  return {x, whole(t.groups, groups), slices};
}
constexpr int64_t shared_of(const Turns& t, const Shares& s) { return t.partials + s.slices * t.slice; }

inline bool fits(const Turns& t, const Room& room) { return shared_of(t, shares_of(t, room)) <= room.shared; }
inline Turns small_turns(const RecurrenceProblem& p, bool backward) {
  return backward && p.dtype != Dtype::f32 ? turns_of<SmallTile<true, 2>>(p, true)
                                           : turns_of<SmallTile<false, 2>>(p, backward);
}
// The large tile reads exchanged matrices and slices half as often; it wants more samples than one small tile
// has, and more registers than float32 leaves.
inline bool takes_large(const RecurrenceProblem& p) { return p.batch > kSamples && p.dtype != Dtype::f32; }
inline bool takes_large(const RecurrenceProblem& p, const Room& room, bool backward) {
  return takes_large(p) && fits(turns_of<LargeTile>(p, backward), room);
}

}  // namespace dlops::lstm
