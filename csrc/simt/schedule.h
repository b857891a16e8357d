// The turn from one thread to the next: what every barrier, shuffle and tensor-core instruction does for every thread, so it
// is inline.
#pragma once
#include "machine.h"

namespace dlops::simt {

Thread* choose(Gang&);  // scheduler.cpp

// The next thread to run; null where all wait, or an error ends the launch.
inline Thread* next(Gang& g) {
  if (g.order == Order::plain && g.head != g.tail && g.landing.empty())
    return g.ready[g.head++ & (g.ready.size() - 1)];
  return choose(g);
}

inline void make_ready(Gang& g, Thread* t) { g.ready[g.tail++ & (g.ready.size() - 1)] = t; }

inline void wake(Thread* t) {
  t->meeting = nullptr;
  make_ready(*t->block->gang, t);
}

// Gives way until somebody wakes this thread.
inline void wait(const char* what, Loc loc) {
  Thread& me = *self();
  me.waits_for = what;
  me.loc = loc;
  Gang& g = *me.block->gang;
  Thread* other = next(g);
  if (other == &me) return;
  here = other;
  switch_fiber(me.fiber, other ? other->fiber : g.scheduler);
}

}  // namespace dlops::simt
