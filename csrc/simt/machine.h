// The machine: what a launch consists of while it runs. Every CUDA thread is a fiber, which runs until it must wait (at a
// barrier, in a warp collective, for an mbarrier); then the next one that can go on takes over. Blocks that need one
// another (a cluster, a cooperative grid) form a gang, which runs on one OS thread; gangs run side by side.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "kernel.h"

namespace dlops::simt {

// A finding: a race, a deadlock, a bad address. what() names kernel, file, line, block and thread.
struct Error : std::runtime_error { using runtime_error::runtime_error; };

// plain: first come, first served. reverse: last come, first served, so that one warp runs far ahead. random: by seed, with
// copies that land at any time.
enum class Order { plain, reverse, random };
struct Options {
  Order order;
  uint64_t seed;
  int threads;  // OS threads; 0: one per processor
};
Options options();  // of this OS thread's launches; at start from DLOPS_SIMT_ORDER and DLOPS_SIMT_SEED
void set_options(const Options&);
Order order_of(const std::string& name);  // throws std::invalid_argument

struct Block;
struct Gang;
struct Thread;
struct Warpgroup;

// Threads that wait for one another. Each brings an argument; the last to come runs a function over all of them, then
// everyone goes on. This one mechanism is every barrier and every collective.
struct Meeting {
  const char* what = nullptr;
  Loc loc;
  uint32_t mask = 0;  // of a warp: the lanes that take part
  int need = 0, arrived = 0;
  std::vector<Thread*> waiting;
  std::vector<void*> arguments;  // by slot (the lane, or the rank in the warpgroup); null where nobody came
};

struct AsyncCopy {  // a cp.async that has not landed
  char* dst;
  const char* src;
  int bytes, source_bytes;
  long group;
  Loc loc;
};
struct
    BulkStore {  // a TMA store under way: read() takes the shared memory, write() gives it to global memory
  std::function<void()> read, write;
  long group;
  Loc loc;
};

struct alignas(64) Thread : Here {  // what a turn touches comes first, in two cache lines
  Block* block = nullptr;
  int rank = 0, warp = 0;  // in the block
  Fiber fiber;
  const char* waits_for = nullptr;
  Loc loc;                                  // where it waits
  Meeting* meeting = nullptr;               // in which
  uint32_t waits_at = 0, waits_parity = 0;  // for which mbarrier (a shared address), and its phase
  bool done = false;
  std::vector<AsyncCopy> copies;
  std::vector<BulkStore> stores;
  long copy_group = 0, store_group = 0;
};

struct Warp {
  std::vector<std::unique_ptr<Meeting>> meetings;  // more than one where lanes have split
  uint32_t lanes = ~0u, exited = 0;
};

struct MBarrierInfo {  // beside the 64 bits in shared memory
  Loc initialised;
  Thread* initialiser = nullptr;
  bool fenced = false;  // fence_mbarrier_init, by the thread that initialised it
  std::vector<Thread*> waiting;
};

struct SharedVariable {
  const void* tag;  // null: the dynamic shared memory
  const char* name;
  size_t begin, size;  // bytes in the arena
};

struct Block {
  dim3 index;
  Gang* gang = nullptr;
  int rank = 0;  // in the gang
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Warpgroup>> warpgroups;
  Meeting barriers[16];
  int live = 0;
  char* shared = nullptr;  // the arena (shared.h)
  size_t shared_used = 0, dynamic_bytes = 0;
  std::vector<SharedVariable> variables;
  std::map<uint32_t, MBarrierInfo> mbarriers;  // by shared address

  Block();
  ~Block();
  size_t variable_bytes() const;
};

// What a launch cost, for study.
struct Counters {
  long barriers = 0, warp_collectives = 0;
  long shared_requests = 0, shared_passes = 0;   // a request of one warp takes a pass per bank conflict
  long global_requests = 0, global_sectors = 0;  // 32-byte sectors
  size_t shared_bytes = 0;
  void add(const Counters&);
};

struct Landing {       // a piece of a TMA load
  const Block* block;  // into its shared memory
  Loc loc;
  std::function<void()> land;
};

struct Gang {
  Config config;
  std::string name;  // the kernel's
  Order order = Order::plain;
  void (*body)(const void* arguments) = nullptr;
  std::vector<Block> blocks;
  Meeting everyone;                    // cluster.sync and grid.sync
  std::vector<Thread*> ready;          // a ring; its size is a power of two
  size_t head = 0, tail = 0;           //
  int live = 0;                        // threads that have not returned
  std::vector<Landing> landing;        // copies under way (TMA)
  std::vector<SharedVariable> layout;  // where static shared variables lie, in every block alike
  size_t layout_end = 0;
  std::mt19937_64 random;
  unsigned mix = 1;  // random order: how rarely it takes just any thread
  Fiber scheduler;
  std::string error;
  Counters counters;
  struct Recording* recording = nullptr;   // of the thread that launched
  std::shared_ptr<struct RaceState> race;  // in the race build

  int thread_count() const { return int(blocks.size() * blocks[0].threads.size()); }
};

inline Thread* self() { return static_cast<Thread*>(here); }

// For code that runs inside of kernels.
[[noreturn]] void fail_as(const Thread&, Loc, const char* format, ...) __attribute__((format(printf, 3, 4)));
void finish_copies(Thread&);  // at its return
void meet_warpgroup(const char* what, Loc, void* argument, Run);

}  // namespace dlops::simt
