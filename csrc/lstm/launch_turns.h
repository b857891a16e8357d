// The body of launch_persistent_*.cu and launch_fused_*.cu: one file per element type, so that they compile side by side.
#pragma once
#include "launch_parts.h"
#include "persistent_backward.cuh"
#include "room.h"

namespace dlops::lstm {

template <class Pass, class Tile, bool resident>
int run_tile(const typename Pass::Params& p, int64_t count, bool backward, cudaStream_t stream) {
  Turns turns = turns_of<Tile>(p, backward);
  place_in(p.workspace, p, turns, !resident);
  const int64_t elements = 2 * turns.exchanged + (resident ? 0 : turns.slices * kThreads);
  int error = launch(recurrence_start<Pass, Tile>,
                     {dim3(block_count(whole(elements, kThreads), 4096)), dim3(kThreads), 0, stream}, p,
                     turns, !resident);
  if (error != cudaSuccess) return error;
  if constexpr (resident) {
    const Shares shares = shares_of(turns, room());
    Launch l{dim3(static_cast<unsigned>(shares.x), static_cast<unsigned>(shares.y)), dim3(kThreads),
             static_cast<size_t>(shared_of(turns, shares)), stream};
    l.cooperative = true;
    error = launch(recurrence_turns<Pass, Tile, true>, l, p, turns, int64_t{0}, count);
  } else {
    const dim3 grid(block_count(turns.slices), block_count(turns.groups, kMaxRowBlocks));
    for (int64_t turn = 0; turn < count && error == cudaSuccess; turn++)
      error = launch(recurrence_turns<Pass, Tile, false>,
                     {grid, dim3(kThreads), static_cast<size_t>(turns.partials), stream}, p, turns, turn,
                     turn + 1);
  }
  return error;
}

template <template <class, Cell> class Pass, class T, bool resident, bool backward, class P>
int run_turns(const P& p, int64_t count, cudaStream_t stream) {
  [[maybe_unused]] const bool large = resident ? takes_large(p, room(), backward) : takes_large(p);
  auto run = [&]<Cell cell>() {
    if constexpr (sizeof(T) == 2)
      if (large) return run_tile<Pass<T, cell>, LargeTile, resident>(p, count, backward, stream);
    return run_tile<Pass<T, cell>, SmallTile<backward, sizeof(T)>, resident>(p, count, backward, stream);
  };
  switch (p.cell) {
    case Cell::lstm: return run.template operator()<Cell::lstm>();
    case Cell::gru: return run.template operator()<Cell::gru>();
    case Cell::rnn_tanh:
    case Cell::rnn_relu: return run.template operator()<Cell::rnn_tanh>();
  }
  return cudaErrorInvalidValue;
}

template <class T, bool resident>
int turns_forward(const RecurrenceParams& p, dlops_stream stream) {
  return run_turns<Forward, T, resident, false>(p, p.steps, static_cast<cudaStream_t>(stream));
}
template <class T, bool resident>
int turns_backward(const RecurrenceBackwardParams& p, dlops_stream stream) {
  return run_turns<Backward, T, resident, true>(p, p.steps + 1, static_cast<cudaStream_t>(stream));
}

}  // namespace dlops::lstm
