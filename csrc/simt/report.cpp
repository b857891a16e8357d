#include "report.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>

#include "mbarrier.h"
#include "shared.h"

namespace dlops::simt {

namespace {

std::string vformat(const char* text, va_list arguments) {
  char buffer[1024];
  std::vsnprintf(buffer, sizeof buffer, text, arguments);
  return buffer;
}

[[noreturn]] void finding(const Thread& t, Loc loc, const std::string& what) {
  Gang& g = *t.block->gang;
  g.error = g.name + ": " + str(loc) + ": " + what + "\n  in " + str(t);
  if (!here) throw Error(g.error);  // a copy that landed while no thread could run
  stop_fiber();
  std::abort();
}

}  // namespace

std::string format(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  std::string s = vformat(text, arguments);
  va_end(arguments);
  return s;
}
std::string str(dim3 d) { return format("(%u,%u,%u)", d.x, d.y, d.z); }
std::string str(Loc l) { return l.line ? format("%s:%d", tidy(l.file).c_str(), l.line) : l.file; }
std::string tidy(std::string path) {
  for (size_t up; (up = path.find("/../")) != std::string::npos && up > 0;) {
    const size_t folder = path.rfind('/', up - 1);
    path.erase(folder == std::string::npos ? 0 : folder + 1,
               up + 4 - (folder == std::string::npos ? 0 : folder + 1));
  }
  return path;
}
std::string str(const Thread& t) { return "block " + str(t.block->index) + " thread " + str(t.thread_index); }

void fail(Loc loc, const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  const std::string what = vformat(text, arguments);
  va_end(arguments);
  finding(*self(), loc, what);
}
void fail_as(const Thread& t, Loc loc, const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  const std::string what = vformat(text, arguments);
  va_end(arguments);
  finding(t, loc, what);
}

#if defined(__SANITIZE_ADDRESS__)
extern "C"
    __attribute__((visibility("default"))) void __asan_on_error() {  // its report begins with the CUDA thread
  if (here) std::fprintf(stderr, "%s: %s\n", self()->block->gang->name.c_str(), str(*self()).c_str());
}
#endif

void check_launch(const Config& c, const std::string& name) {
  auto refuse = [&](const std::string& why) { throw Error(name + ": launch refused: " + why); };
  for (dim3 d : {c.grid, c.block, c.cluster})
    if (!d.x || !d.y || !d.z)
      refuse("grid " + str(c.grid) + " x block " + str(c.block) + ", cluster " + str(c.cluster) +
             " is empty");
  if (c.block.x > 1024 || c.block.y > 1024 || c.block.z > 64 || count(c.block) > 1024)
    refuse("block " + str(c.block) + " has more than 1024 threads or z > 64");
  if (c.grid.x > 0x7fffffff || c.grid.y > 65535 || c.grid.z > 65535)
    refuse("grid " + str(c.grid) + ": x is at most 2^31 - 1, y and z 65535");
  if (c.smem > kSharedLimit) refuse(format("%zu bytes of shared memory, at most %zu", c.smem, kSharedLimit));
  if (c.cluster.x > 8 || c.cluster.y > 8 || c.cluster.z > 8 || count(c.cluster) > 8)
    refuse("cluster " + str(c.cluster) + " has more than 8 blocks");
  if (c.grid.x % c.cluster.x || c.grid.y % c.cluster.y || c.grid.z % c.cluster.z)
    refuse("grid " + str(c.grid) + " is not a multiple of the cluster " + str(c.cluster));
  if (c.cooperative && count(c.cluster) > 1) refuse("cooperative launches of clusters are not emulated");
}

std::string deadlock(const Gang& g) {
  std::map<std::string, std::pair<int, std::string>> groups;  // what they do -> how many, the first
  for (const Block& b : g.blocks)
    for (const Thread& t : b.threads) {
      std::string state = "exited";
      if (!t.done) {
        state = std::string("wait at ") + t.waits_for + " " + str(t.loc);
        if (t.waits_at) {
          const MBarrierWord w(reinterpret_cast<const uint64_t*>(shared_pointer(b, t.waits_at)));
          state += format(
              " for parity %u of the mbarrier at shared 0x%x (phase %d, %d of %d arrivals missing, %d bytes "
              "outstanding)",
              t.waits_parity, t.waits_at, w.phase, w.pending, w.count, w.bytes);
        } else if (t.meeting) {
          state += format(" (%d of %d came)", t.meeting->arrived, t.meeting->need);
        }
      }
      auto& group = groups[state];
      if (!group.first++) group.second = str(t);
    }
  std::string s = g.name + ": deadlock: no thread can run";
  for (const auto& [state, group] : groups)
    s += format("\n  %d threads %s; the first is %s", group.first, state.c_str(), group.second.c_str());
  return s;
}

std::string after_gang(const Gang& g) {
  for (const Block& b : g.blocks) {
    for (const auto& [address, info] : b.mbarriers) {
      const MBarrierWord w(reinterpret_cast<const uint64_t*>(shared_pointer(b, address)));
      if (w.bytes)
        return format(
            "%s: block %s ended with %d bytes outstanding on the mbarrier at shared 0x%x (initialised at %s)",
            g.name.c_str(), str(b.index).c_str(), w.bytes, address, str(info.initialised).c_str());
    }
    if (std::string s = overrun(b); !s.empty()) return g.name + ": " + s;
  }
  return "";
}

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "kernel";
  int status = 0;
  char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? readable : info.dli_sname;
  std::free(readable);
  if (name.starts_with("void ")) name.erase(0, 5);
  int depth = 0;
  for (size_t i = 0; i < name.size(); i++) {  // drop the parameters, then the namespaces
    depth += (name[i] == '<') - (name[i] == '>');
    if (name[i] != '(' || depth || name.compare(i, 11, "(anonymous ") == 0) continue;
    name.resize(i);
    break;
  }
  const size_t colons = name.substr(0, name.find('<')).rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

// ---- recording ----

namespace {
std::mutex lock;              // blocks of one launch trace side by side
thread_local Recording mine;  // of the thread that launches
bool same(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }
}  // namespace

void Counters::add(const Counters& o) {
  barriers += o.barriers;
  warp_collectives += o.warp_collectives;
  shared_requests += o.shared_requests;
  shared_passes += o.shared_passes;
  global_requests += o.global_requests;
  global_sectors += o.global_sectors;
  shared_bytes = std::max(shared_bytes, o.shared_bytes);
}

void begin_recording(std::optional<std::pair<dim3, dim3>> traced) { mine = {true, traced, {}, {}}; }
Recording end_recording() { return std::exchange(mine, {}); }
Recording* current_recording() { return mine.on ? &mine : nullptr; }
void record_launch(const Config& config, const std::string& kernel, const Counters& counters) {
  if (mine.on) mine.launches.push_back({kernel, config, counters});
}
void trace(const char* name, double value, Loc loc) {
  Recording* r = self()->block->gang->recording;
  if (!r || !r->traced || !same(r->traced->first, self()->block_index) ||
      !same(r->traced->second, self()->thread_index))
    return;
  std::lock_guard guard(lock);
  r->trace.push_back({name, loc.file, value, loc.line});
}

}  // namespace dlops::simt
