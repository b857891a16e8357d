#include "shared.h"

#include <algorithm>

#include "report.h"
#include "sanitizer.h"
#include "tensor.h"

namespace dlops::simt {

namespace {

// The first multiple of alignment from `from` on that is no multiple of twice that.
size_t barely_aligned(size_t from, size_t alignment) {
  const size_t n = (from + alignment - 1) / alignment;
  return (n | 1) * alignment;
}

void* add_variable(Block& b, const SharedVariable& v) {
  b.variables.push_back(v);
  ASAN_UNPOISON_MEMORY_REGION(b.shared + v.begin, v.size);
  return b.shared + v.begin;
}

// Memory up to `end` belongs to the block from now on, poisoned.
void grow(Block& b, size_t end) {
  if (end <= b.shared_used) return;
  ASAN_UNPOISON_MEMORY_REGION(b.shared + b.shared_used, end - b.shared_used);
  std::memset(b.shared + b.shared_used, kPoison, end - b.shared_used);
  ASAN_POISON_MEMORY_REGION(b.shared + b.shared_used, end - b.shared_used);
  b.shared_used = end;
}

}  // namespace

void start_shared(Block& b, size_t dynamic_bytes) {
  b.dynamic_bytes = dynamic_bytes;
  ASAN_POISON_MEMORY_REGION(b.shared, kArena);
  grow(b, (dynamic_bytes ? 1024 + dynamic_bytes : 0) + kGuard);
}

void* dynamic_shared(const char* name, size_t alignment, Loc loc) {
  Block& b = *self()->block;
  for (const SharedVariable& v : b.variables)
    if (!v.tag) return b.shared + v.begin;
  if (alignment > 1024)
    fail(loc, "shared memory cannot be aligned to more than 1024 bytes: got %zu", alignment);
  return add_variable(b, {nullptr, name, alignment < 1024 ? alignment : 0, b.dynamic_bytes});
}

void* static_shared(const void* tag, const char* name, size_t size, size_t alignment, Loc loc) {
  Block& b = *self()->block;
  for (const SharedVariable& v : b.variables)
    if (v.tag == tag) return b.shared + v.begin;
  Gang& g =
      *b.gang;  // cluster_map takes an offset to another block: all have the layout of the first that comes here
  auto place =
      std::find_if(g.layout.begin(), g.layout.end(), [tag](const SharedVariable& v) { return v.tag == tag; });
  if (place == g.layout.end()) {
    const size_t begin = barely_aligned(std::max(g.layout_end, b.shared_used), alignment);
    if (b.variable_bytes() + size > kSharedLimit || begin + size + kGuard > kArena)
      fail(loc, "more than %zu bytes of shared memory in one block", kSharedLimit);
    g.layout_end = begin + size + kGuard;
    place = g.layout.insert(place, {tag, name, begin, size});
  }
  grow(b, place->begin + size + kGuard);
  return add_variable(b, *place);
}

const SharedVariable* find_variable(const Block& b, size_t offset, size_t bytes) {
  for (const SharedVariable& v : b.variables)
    if (offset >= v.begin && offset + bytes <= v.begin + v.size) return &v;
  return nullptr;
}

std::string describe_shared(const Block& b, size_t offset) {
  const SharedVariable* before = nullptr;
  for (const SharedVariable& v : b.variables)
    if (offset >= v.begin && (!before || v.begin > before->begin)) before = &v;
  if (!before) return format("byte %zu of the block's shared memory", offset);
  if (offset < before->begin + before->size)
    return format("byte %zu of %s", offset - before->begin, before->name);
  return format("byte %zu of %s, which has %zu", offset - before->begin, before->name, before->size);
}

char* shared_pointer(const Block& b, uint32_t address) { return b.shared + (address - kSharedBase); }

char* shared_pointer(const Thread& t, uint32_t address, size_t bytes, const char* what, Loc loc) {
  const Block& b = *t.block;
  if (address < kSharedBase || !find_variable(b, address - kSharedBase, bytes))
    fail_as(t, loc, "%s: %zu bytes at shared address 0x%x are outside the block's shared memory: %s", what,
            bytes, address, describe_shared(b, address - kSharedBase).c_str());
  return shared_pointer(b, address);
}

uint32_t shared_address(const void* p, Loc loc) {
  const Block& b = *self()->block;
  const auto offset = static_cast<const char*>(p) - b.shared;
  if (offset < 0 || static_cast<size_t>(offset) > b.shared_used)
    fail(loc, "the pointer does not point into the block's shared memory");
  return static_cast<uint32_t>(static_cast<size_t>(offset) + kSharedBase);
}

std::string overrun([[maybe_unused]] const Block& b) {
#if !defined(__SANITIZE_ADDRESS__)  // which has seen it already
  std::vector<SharedVariable> ordered = b.variables;
  std::sort(ordered.begin(), ordered.end(), [](auto& x, auto& y) { return x.begin < y.begin; });
  ordered.push_back({nullptr, "", b.shared_used, 0});
  size_t at = 0;
  for (const SharedVariable& v : ordered) {
    for (; at < v.begin; at++)
      if (b.shared[at] != static_cast<char>(kPoison))
        return "block " + str(b.index) + " wrote outside its shared memory: " + describe_shared(b, at);
    at = v.begin + v.size;
  }
#endif
  return "";
}

}  // namespace dlops::simt
