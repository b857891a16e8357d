#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dlops::cpu {
namespace {

constexpr const char* kNames[kIsaLevels] = {"generic", "avx2", "avx512", "avx512bf16"};

Isa parse(const std::string& name) {
  std::string levels;
  for (int i = 0; i <= static_cast<int>(host_isa()); i++) {
    if (name == kNames[i]) return static_cast<Isa>(i);
    levels += std::string(i ? ", " : "") + kNames[i];
  }
  throw std::invalid_argument("cpu_isa: got '" + name + "', this CPU has " + levels);
}

// A mistyped DLOPS_CPU_ISA must not abort the import: it is reported by name through the first use of isa().
Isa initial() {
  const char* name = std::getenv("DLOPS_CPU_ISA");
  return name && *name ? parse(name) : host_isa();
}

std::atomic<int> current{-1};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool is_amd() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

Isa host_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::generic;
}

Isa isa() {
  int level = current.load(std::memory_order_relaxed);
  if (level < 0) {
    level = static_cast<int>(initial());
    current.store(level, std::memory_order_relaxed);
  }
  return static_cast<Isa>(level);
}

void set_isa(const std::string& name) {
  current.store(static_cast<int>(parse(name)), std::memory_order_relaxed);
}

std::vector<std::string> host_isas() {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(host_isa()); i++) names.push_back(kNames[i]);
  return names;
}

}  // namespace dlops::cpu
