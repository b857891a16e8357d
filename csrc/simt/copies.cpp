// cp.async and TMA. What a copy will write is garbage from the moment it is asked for; it lands as late as it may. What a
// store reads is read as late as it may.
#include <algorithm>

#include "checker.h"
#include "mbarrier.h"
#include "report.h"
#include "shared.h"
#include "swizzle.h"
#include "tensor.h"
#include "warpgroup.h"

namespace dlops::simt {

void cp_async(void* dst, const void* src, int bytes, int source_bytes, Loc loc) {
  shared_pointer(shared_address(dst, loc), static_cast<size_t>(bytes), "cp.async", loc);
  if (reinterpret_cast<uintptr_t>(dst) % bytes || reinterpret_cast<uintptr_t>(src) % bytes)
    fail(loc, "cp.async: an address is not aligned to %d bytes", bytes);
  if (checker) checker->access(*self(), dst, bytes, Access::pending, loc);
  std::memset(dst, kPoison, bytes);
  self()->copies.push_back(
      {static_cast<char*>(dst), static_cast<const char*>(src), bytes, source_bytes, self()->copy_group, loc});
}

void cp_async_commit() { self()->copy_group++; }

static void land_copies(Thread& t, long groups) {  // those of the first `groups`
  size_t i = 0;
  for (; i < t.copies.size() && t.copies[i].group < groups; i++) {
    const AsyncCopy& c = t.copies[i];
    std::memcpy(c.dst, c.src, c.source_bytes);
    std::memset(c.dst + c.source_bytes, 0, c.bytes - c.source_bytes);
    if (checker) checker->access(t, c.dst, c.bytes, Access::write, c.loc);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(i));
}
void cp_async_wait(int pending, Loc) { land_copies(*self(), self()->copy_group - pending); }

namespace {

uint32_t row_bytes(const CUtensorMap& m) { return m.box[0] * m.elem_bytes; }
uint32_t extent(const CUtensorMap& m, uint32_t dimension) {
  return dimension < m.rank ? m.box[dimension] : 1;
}
uint32_t rows(const CUtensorMap& m) { return extent(m, 1) * extent(m, 2) * extent(m, 3); }

// One copy: the map, the box's origin, where it lies in shared memory.
struct Box {
  CUtensorMap map;
  int at[4] = {};
  uint32_t address = 0;

  // f(pointer to 16 bytes of shared memory, their global addresses by element; null outside of the tensor).
  template <class F>
  void each_chunk(const Block& b, uint32_t first, uint32_t last, F f) const {
    const uint32_t per_chunk = 16 / map.elem_bytes;
    for (uint32_t r = first; r < last; r++) {
      const int64_t y[3] = {at[1] + int64_t(r % extent(map, 1)),
                            at[2] + int64_t(r / extent(map, 1) % extent(map, 2)),
                            at[3] + int64_t(r / extent(map, 1) / extent(map, 2))};
      char* row = map.base;
      bool inside = true;
      for (uint32_t d = 1; d < map.rank; d++) {
        inside &= y[d - 1] >= 0 && y[d - 1] < int64_t(map.size[d]);
        row += y[d - 1] * int64_t(map.stride[d - 1]);
      }
      for (uint32_t chunk = 0; chunk < row_bytes(map) / 16; chunk++) {
        char* element[16];
        for (uint32_t e = 0; e < per_chunk; e++) {
          const int64_t x = at[0] + int64_t(chunk * per_chunk + e);
          const bool there = inside && x >= 0 && x < int64_t(map.size[0]);
          element[e] = there ? row + x * map.elem_bytes : nullptr;
        }
        f(shared_pointer(b, swizzled(address + r * row_bytes(map) + 16 * chunk, map.swizzle)), element,
          per_chunk);
      }
    }
  }
};

Box box_of(const char* what, const CUtensorMap* map, const void* shared, const int* coordinates, Loc loc) {
  Box box{*map, {}, shared_address(shared, loc)};
  std::copy(coordinates, coordinates + map->rank, box.at);
  const uint32_t alignment = 128 << map->swizzle;  // where the pattern starts anew (none: 128)
  if (box.address % alignment)
    fail(loc, "%s: shared address 0x%x is not aligned to %u bytes", what, box.address, alignment);
  shared_pointer(box.address, size_t(row_bytes(*map)) * rows(*map), what, loc);
  return box;
}

}  // namespace

constexpr uint32_t kPiece = 16;  // rows that land together

void tma_load(void* dst, const CUtensorMap* map, uint64_t* bar, const int* coordinates, Loc loc) {
  check_for_copies(bar, "TMA load", loc);
  const Box box = box_of("TMA load", map, dst, coordinates, loc);
  const size_t bytes = size_t(row_bytes(*map)) * rows(*map);
  const auto pending = [&](void* to, size_t count) {
    if (checker) checker->access(*self(), to, count, Access::pending, loc);
    std::memset(to, kPoison, count);
  };
  if (row_bytes(*map) % (16u << map->swizzle) == 0)
    pending(dst, bytes);
  else  // rows shorter than the span: the pattern spreads them beyond
    box.each_chunk(*self()->block, 0, rows(*map), [&](char* to, char* const*, uint32_t) { pending(to, 16); });
  Thread& issuer = *self();
  const Ticket ticket = checker ? checker->start(issuer, bar) : nullptr;
  for (uint32_t first = 0; first < rows(*map); first += kPiece)
    issuer.block->gang->landing.push_back(
        {issuer.block, loc, [=, &issuer] {
           const uint32_t last = std::min(first + kPiece, rows(box.map));
           box.each_chunk(*issuer.block, first, last, [&](char* to, char* const* from, uint32_t count) {
             for (uint32_t e = 0; e < count; e++) {
               char* element = to + e * box.map.elem_bytes;
               from[e] ? std::memcpy(element, from[e], box.map.elem_bytes)
                       : std::memset(element, 0, box.map.elem_bytes);
             }
             if (checker) checker->access(ticket, to, 16, Access::async_write, loc);
           });
           deliver(issuer, bar, static_cast<int>((last - first) * row_bytes(box.map)), loc);
         }});
}

void tma_store(const CUtensorMap* map, const void* src, const int* coordinates, Loc loc) {
  const Box box = box_of("TMA store", map, src, coordinates, loc);
  Thread& issuer = *self();
  const Ticket ticket = checker ? checker->start(issuer, nullptr) : nullptr;
  auto taken = std::make_shared<std::vector<char>>();
  auto each = [=, &issuer](auto f) { box.each_chunk(*issuer.block, 0, rows(box.map), f); };
  auto read = [=, &issuer] {
    each([&](char* from, char* const*, uint32_t) {
      if (checker) checker->access(ticket, from, 16, Access::async_read, loc);
      taken->insert(taken->end(), from, from + 16);
    });
    if (checker) checker->acquire(issuer, ticket);
  };
  auto write = [=] {
    const char* from = taken->data();
    each([&](char*, char* const* to, uint32_t count) {
      for (uint32_t e = 0; e < count; e++)
        if (to[e]) std::memcpy(to[e], from + e * box.map.elem_bytes, box.map.elem_bytes);
      from += 16;
    });
  };
  issuer.stores.push_back({read, write, issuer.store_group, loc});
}

void tma_store_commit(Loc) { self()->store_group++; }

void tma_store_wait(int pending, bool read_only, Loc) {
  for (BulkStore& s : self()->stores) {
    if (s.group >= self()->store_group - pending) continue;
    if (s.read) s.read();
    s.read = nullptr;
    if (!read_only && s.write) s.write();
    if (!read_only) s.write = nullptr;
  }
  std::erase_if(self()->stores, [](const BulkStore& s) { return !s.write; });
}

void finish_copies(Thread& t) {
  land_copies(t, t.copy_group + 1);
  for (BulkStore& s : t.stores) {
    if (s.read)
      fail(s.loc,
           "a thread returns while its TMA store may still read shared memory: no tma_store_wait_read covers "
           "it");
    s.write();
  }
  t.stores.clear();
  const size_t group = static_cast<size_t>(t.rank) / 128;
  if (group < t.block->warpgroups.size() && !t.block->warpgroups[group]->pending.empty())
    fail(t.block->warpgroups[group]->pending[0].loc,
         "a thread returns while its wgmma is under way: no wgmma_wait covers it");
}

}  // namespace dlops::simt
