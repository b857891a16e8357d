#include "requests.h"

#include <algorithm>
#include <bit>

namespace dlops::simt {

void Requests::shared(const Thread& t, uint64_t offset, size_t bytes, const void* pc) {
  add(t, true, offset, bytes, pc);
}
void Requests::global(const Thread& t, const void* p, size_t bytes, const void* pc) {
  add(t, false, reinterpret_cast<uint64_t>(p), bytes, pc);
}

void Requests::add(const Thread& t, bool shared, uint64_t address, size_t bytes, const void* pc) {
  std::vector<Site>& warps = sites_[pc];
  const size_t per_block = t.block->warps.size(), warp = t.block->rank * per_block + t.warp;
  if (warps.size() <= warp) warps.resize(t.block->gang->blocks.size() * per_block);
  Site& site = warps[warp];
  site.shared = shared;
  site.bytes = static_cast<uint32_t>(bytes);
  const size_t index = site.seen[t.lane]++ - site.first;
  if (site.open.size() <= index) site.open.resize(index + 1);
  Request& r = site.open[index];
  r.address[t.lane] = address;
  r.lanes |= 1u << t.lane;
  if (r.lanes != ~0u || index + 1 < site.open.size()) return;
  for (const Request& complete : site.open) count(site, complete);
  site.first += site.open.size();
  site.open.clear();
}

void Requests::count(const Site& site, const Request& r) {
  if (!r.lanes) return;
  if (!site.shared) {
    std::vector<uint64_t> sectors;
    for (int l = 0; l < 32; l++)
      if (r.lanes >> l & 1)
        for (uint64_t s = r.address[l] / 32; s <= (r.address[l] + site.bytes - 1) / 32; s++)
          sectors.push_back(s);
    std::sort(sectors.begin(), sectors.end());
    counters_.global_requests++;
    counters_.global_sectors += std::unique(sectors.begin(), sectors.end()) - sectors.begin();
    return;
  }
  // 32 banks of 4 bytes; accesses of 8 and 16 bytes are served half a warp and a quarter at a time.
  const int together = site.bytes <= 4 ? 32 : site.bytes == 8 ? 16 : 8;
  for (int first = 0; first < 32; first += together) {
    std::vector<uint64_t> words;
    for (int l = first; l < first + together; l++)
      if (r.lanes >> l & 1)
        for (uint64_t w = r.address[l] / 4; w <= (r.address[l] + site.bytes - 1) / 4; w++) words.push_back(w);
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()),
                words.end());  // one word for several lanes: a broadcast
    int in_bank[32] = {};
    for (uint64_t w : words) in_bank[w % 32]++;
    counters_.shared_requests++;
    counters_.shared_passes += *std::max_element(in_bank, in_bank + 32);
  }
}

void Requests::finish(Counters& total) {
  for (auto& [pc, warps] : sites_)
    for (Site& site : warps)
      for (const Request& r : site.open) count(site, r);
  sites_.clear();
  total.add(counters_);
}

}  // namespace dlops::simt
