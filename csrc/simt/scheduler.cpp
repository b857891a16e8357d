// Who runs next, and the life of a launch.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "checker.h"
#include "pool.h"
#include "report.h"
#include "sanitizer.h"
#include "schedule.h"
#include "shared.h"
#include "tensor.h"
#include "warpgroup.h"

namespace dlops::simt {

__thread Here* here __attribute__((tls_model("initial-exec"))) = nullptr;
Checker* checker = nullptr;

Order order_of(const std::string& name) {
  if (name == "plain") return Order::plain;
  if (name == "reverse") return Order::reverse;
  if (name == "random") return Order::random;
  throw std::invalid_argument("unknown order '" + name + "': there are plain, reverse, random");
}

namespace {

Options& own_options() {
  thread_local Options options = [] {
    const char* order = std::getenv("DLOPS_SIMT_ORDER");
    const char* seed = std::getenv("DLOPS_SIMT_SEED");
    return Options{order_of(order ? order : "plain"), seed ? std::strtoull(seed, nullptr, 10) : 1, 0};
  }();
  return options;
}

// The order in which threads start: warps shuffled, lanes too half of the time.
void shuffle(Gang& g, std::vector<Thread*>& threads) {
  std::vector<size_t> warps((threads.size() + 31) / 32);
  for (size_t i = 0; i < warps.size(); i++) warps[i] = i;
  std::shuffle(warps.begin(), warps.end(), g.random);
  std::vector<Thread*> shuffled;
  for (size_t w : warps)
    for (size_t i = 32 * w; i < std::min(threads.size(), 32 * w + 32); i++) shuffled.push_back(threads[i]);
  if (g.random() % 2) std::shuffle(shuffled.begin(), shuffled.end(), g.random);
  threads = shuffled;
}

void start_block(Gang& g, Block& b, Lease& lease, std::vector<Thread*>& threads) {
  const dim3 size = g.config.block;
  b.gang = &g;
  b.live = static_cast<int>(count(size));
  b.threads = std::vector<Thread>(count(size));
  b.warps = std::vector<Warp>((count(size) + 31) / 32);
  if (const unsigned rest = count(size) % 32) b.warps.back().lanes = (1u << rest) - 1;
  b.warpgroups.resize(count(size) / 128);
  for (auto& w : b.warpgroups) w = std::make_unique<Warpgroup>();
  b.shared = lease.arena();
  start_shared(b, g.config.smem);
  for (unsigned r = 0; r < count(size); r++) {
    Thread& t = b.threads[r];
    t.thread_index = dim3(r % size.x, r / size.x % size.y, r / (size.x * size.y));
    t.block_index = b.index;
    t.block_size = &g.config.block;
    t.grid_size = &g.config.grid;
    t.block = &b;
    t.rank = static_cast<int>(r);
    t.lane = t.rank % 32;
    t.warp = t.rank / 32;
    t.fiber.stack = lease.stack();
    t.fiber.size = kStack - r * 192 % 4096;  // all at the same place in a page would share a few cache sets
    t.fiber.prepare();
    threads.push_back(&t);
  }
}

void run_gang(Gang& g, const std::vector<dim3>& indices, Lease& lease) {
  g.blocks = std::vector<Block>(indices.size());
  std::vector<Thread*> threads;
  for (size_t i = 0; i < indices.size(); i++) {
    g.blocks[i].index = indices[i];
    g.blocks[i].rank = static_cast<int>(i);
    start_block(g, g.blocks[i], lease, threads);
  }
  g.live = g.thread_count();
  g.mix = 1u << g.random() % 4 * 3;  // 1, 8, 64 or 512
  if (g.order == Order::random) shuffle(g, threads);
  g.ready.resize(std::bit_ceil(threads.size()));
  for (Thread* t : threads) make_ready(g, t);
  if (checker) checker->begin(g);
  describe_own_stack(g.scheduler);

  try {  // what lands while no thread can run may fail
    while (g.live && g.error.empty()) {
      Thread* t = next(g);
      if (!t) {
        if (g.error.empty()) g.error = deadlock(g);
        break;
      }
      here = t;
      switch_fiber(g.scheduler, t->fiber);
      here = nullptr;
    }
  } catch (const Error& e) {
    g.error = e.what();
  }
  if (g.error.empty()) g.error = after_gang(g);
  for (const Block& b : g.blocks)
    g.counters.shared_bytes = std::max(g.counters.shared_bytes, b.variable_bytes());
  if (checker) checker->end(g);
}

Thread* take(Gang& g) {
  const size_t last = g.ready.size() - 1;
  if (g.order == Order::plain) return g.ready[g.head++ & last];
  // The last one woken goes on, so that one warp runs far ahead of the others; in random order, now and then just any.
  // (Taking any at every turn is weak: all warps then progress alike.)
  if (g.order == Order::random && g.random() % g.mix == 0)
    std::swap(g.ready[(g.head + g.random() % (g.tail - g.head)) & last], g.ready[(g.tail - 1) & last]);
  return g.ready[--g.tail & last];
}

}  // namespace

// Copies under way land as late as they can; in random order, at any time.
Thread* choose(Gang& g) {
  while (g.error.empty()) {
    const bool idle = g.head == g.tail;
    if (g.landing.empty() || !(idle || (g.order == Order::random && g.random() % 8 == 0)))
      return idle ? nullptr : take(g);
    const size_t i = g.order == Order::random ? g.random() % g.landing.size() : 0;
    const Landing next = std::move(g.landing[i]);
    g.landing.erase(g.landing.begin() + static_cast<std::ptrdiff_t>(i));
    next.land();
  }
  return nullptr;
}

Block::Block() = default;
Block::~Block() = default;
size_t Block::variable_bytes() const {
  size_t bytes = 0;
  for (const SharedVariable& v : variables) bytes += v.size;
  return bytes;
}

Options options() { return own_options(); }
void set_options(const Options& options) { own_options() = options; }

void yield(Loc loc) {
  make_ready(*self()->block->gang, self());
  wait("a later turn", loc);
}

// In random order an atomic is a place where others may come first.
void before_atomic(void* p, size_t bytes, Loc loc) {
  Gang& g = *self()->block->gang;
  if (checker) checker->access(*self(), p, bytes, Access::atomic, loc);
  if (g.order == Order::random && g.random() % 8 == 0) yield(loc);
}

void stop_fiber() {  // for good: the fibers of a launch that failed are dropped as they are
  Thread& me = *self();
  here = nullptr;
  switch_fiber(me.fiber, me.block->gang->scheduler);
  std::abort();
}

extern "C" void dlops_simt_fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  Thread& me = *self();
  Block& b = *me.block;
  Gang& g = *b.gang;
  g.body(g.config.arguments);
  finish_copies(me);
  if (const Meeting& m = b.barriers[0]; m.arrived)
    fail(m.loc, "this thread has returned while %d threads wait in %s here", m.arrived, m.what);
  me.done = true;
  b.live--;
  g.live--;
  b.warps[me.warp].exited |= 1u << me.lane;
  for (const Landing& l : g.landing)
    if (b.live == 0 && l.block == &b)
      fail(l.loc,
           "all threads of the block have returned while this TMA load is under way: nobody waited for it");
  Thread* other = next(g);
  here = other;
  switch_fiber(me.fiber, other ? other->fiber : g.scheduler);
  std::abort();
}

void run(const Config& config, void (*body)(const void*)) {
  const std::string name = kernel_name(config.kernel);
  check_launch(config, name);
  const dim3 gang = config.cooperative ? config.grid : config.cluster;
  const dim3 gangs(config.grid.x / gang.x, config.grid.y / gang.y, config.grid.z / gang.z);
  const size_t total = size_t(gangs.x) * gangs.y * gangs.z;
  const Options how = options();
  Recording* const recording = current_recording();

  std::atomic<size_t> claimed{0};
  std::mutex lock;
  size_t failed =
      total;  // the first gang with an error: its message is the launch's, whatever the OS threads did
  std::string error;
  Counters counters;
  auto work = [&] {
    Lease lease;
    for (size_t i; (i = claimed++) < total;) {
      Gang g;
      g.config = config;
      g.name = name;
      g.recording = recording;
      g.body = body;
      g.order = how.order;
      g.random.seed(how.seed * 1000003 + i);
      const dim3 at(i % gangs.x * gang.x, i / gangs.x % gangs.y * gang.y,
                    i / (size_t(gangs.x) * gangs.y) * gang.z);
      std::vector<dim3> indices;
      for (unsigned z = 0; z < gang.z; z++)
        for (unsigned y = 0; y < gang.y; y++)
          for (unsigned x = 0; x < gang.x; x++) indices.emplace_back(at.x + x, at.y + y, at.z + z);
      lease.reset();
      try {
        run_gang(g, indices, lease);
      } catch (const Error& e) {  // no memory for the stacks
        g.error = e.what();
      }
      std::lock_guard guard(lock);
      counters.add(g.counters);
      if (g.error.empty() || i >= failed) continue;
      failed = i;
      error = g.error;
      claimed = total;
    }
  };
  const size_t processors = std::max(1u, std::thread::hardware_concurrency());
  const size_t workers = std::min(total, how.threads ? static_cast<size_t>(how.threads) : processors);
  std::vector<std::thread> pool;
  for (size_t i = 1; i < workers; i++) pool.emplace_back(work);
  work();
  for (std::thread& t : pool) t.join();
  record_launch(config, name, counters);
  if (!error.empty()) throw Error(error);
}

}  // namespace dlops::simt
