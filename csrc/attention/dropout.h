// The dropout mask: one Philox block of 4 words serves the keys 4g .. 4g + 3 of one row. The decision depends on (seed,
// offset, batch entry, head, row, key) and on nothing else, so every device, tile and pass agrees on it.
#pragma once
#include "../philox.h"

namespace dlops::attention {

// A key is kept where its word >= threshold: p rounded to a multiple of 2^-32.
DLOPS_PHILOX_FN uint32_t dropout_threshold(float p) {
  const double t = static_cast<double>(p) * 4294967296.0;
  return t < 4294967295.0 ? static_cast<uint32_t>(t) : 0xffffffffu;
}

// words[i] decides about key 4 group + i. head: b * heads + h. key: L::Key of the seed.
template <class L>
DLOPS_PHILOX_FN void dropout_words(typename L::U group, typename L::U row, uint32_t head, uint32_t offset,
                                   const typename L::Key& key, typename L::U (&words)[4]) {
  words[0] = group;
  words[1] = row;
  words[2] = L::u(head);
  words[3] = L::u(offset);
  philox::philox4x32<L>(words, key);
}

}  // namespace dlops::attention
