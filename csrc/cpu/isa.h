// Instruction-set levels: each kernel family is compiled once per level it gains from, and one table of function pointers
// is chosen when the library loads. DLOPS_CPU_ISA or set_isa() chooses a lower one.
#pragma once
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "../api.h"

namespace dlops::cpu {

enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };
constexpr int kIsaLevels = 4;

DLOPS_API const char* isa_name(Isa isa);
Isa host_isa();                                   // the highest level that this CPU has
DLOPS_API bool is_amd();                          // whether AMD made this CPU
DLOPS_API Isa isa();                              // the level in use
DLOPS_API void set_isa(const std::string& name);  // throws std::invalid_argument
DLOPS_API std::vector<std::string> host_isas();   // every level that this CPU has, lowest first

// A family's tables by level; a level that the family was not compiled for is null and falls to the next lower one.
template <class Table>
const Table& choose(std::initializer_list<const Table*> levels) {
  const int last = static_cast<int>(levels.size()) - 1, wanted = static_cast<int>(isa());
  for (int i = wanted < last ? wanted : last; i > 0; i--)
    if (levels.begin()[i]) return *levels.begin()[i];
  return *levels.begin()[0];
}

}  // namespace dlops::cpu

// DLOPS_CHOOSE(norm): the table of family `norm` for the level in use. List in DLOPS_ALL(norm) for the catalogue.
// DLOPS_CHOOSE(attention, &attention_avx512bf16): a family with a table for the bfloat16 dot product; likewise DLOPS_ALL.
#if defined(__x86_64__)
#define DLOPS_CHOOSE(family, ...)                                        \
  ::dlops::cpu::choose<std::remove_cvref_t<decltype(family##_generic)>>( \
      {&family##_generic, &family##_avx2, &family##_avx512 __VA_OPT__(, ) __VA_ARGS__})
#define DLOPS_ALL(family, ...) \
  {&family##_generic, &family##_avx2, &family##_avx512 __VA_OPT__(, ) __VA_ARGS__}
#else
#define DLOPS_CHOOSE(family, ...) family##_generic
#define DLOPS_ALL(family, ...) {&family##_generic}
#endif
