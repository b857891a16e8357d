// What the runner says: findings, and for study the costs of each launch and the values a thread recorded.
#pragma once
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "machine.h"

namespace dlops::simt {

std::string format(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string str(dim3);
std::string str(Loc);
std::string tidy(std::string path);  // "csrc/norm/../cuda/reduce.h" -> "csrc/cuda/reduce.h"
std::string str(const Thread&);      // "block (0,0,0) thread (37,0,0)"

void check_launch(const Config&, const std::string& name);  // throws Error where the hardware would refuse
std::string deadlock(const Gang&);                          // nobody can run: who waits where
std::string after_gang(const Gang&);   // what is wrong now that all threads have returned, or ""
[[noreturn]] void stop_fiber();        // scheduler.cpp
std::string kernel_name(const void*);  // "step_fused<float, 7, true>"

// ---- recording: each OS thread records the launches that it makes ----

struct LaunchRecord {
  std::string kernel;
  Config config;
  Counters counters;
};
struct TraceRecord {
  std::string name, file;
  double value;
  int line;
};
struct Recording {
  bool on = false;
  std::optional<std::pair<dim3, dim3>> traced;  // block and thread
  std::vector<LaunchRecord> launches;
  std::vector<TraceRecord> trace;
};
void begin_recording(std::optional<std::pair<dim3, dim3>> traced);
Recording end_recording();
Recording* current_recording();  // of the calling OS thread; null: none
void record_launch(const Config&, const std::string& kernel, const Counters&);

}  // namespace dlops::simt
