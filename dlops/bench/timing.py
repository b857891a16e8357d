"""Side-by-side timing: the candidates take turns within one process, so all of them meet the same machine.

On a shared machine a figure alone says little, because the clock speed and the neighbours change from second to second;
a ratio of two figures taken in the same round does. Every ratio of this package is therefore the median over rounds of
(baseline / candidate), both measured in that round.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

SAMPLE_SECONDS = 1e-3  # one sample repeats short calls up to this long: reading the clock (< 1 us) stays below 0.1 %
MIN_ROUNDS, MAX_ROUNDS = 5, 400
L2_FLUSH_BYTES = 512 << 20  # well above the second-level cache of any GPU; also lets the CPU queue the next launches


@dataclass(frozen=True)
class Result:
    """What `compare` measured. Times are seconds per call."""

    clock: str  # "thread CPU time", "wall", "CUDA events, L2 flushed" or "wall, synchronised"
    rounds: int
    calls: dict[str, int]  # calls per sample
    samples: dict[str, list[float]]  # one entry per round

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.samples.items()}

    def ratio(self, baseline: str, candidate: str) -> float:
        """How many times faster `candidate` is than `baseline`: the median over rounds of their quotient."""
        pairs = zip(self.samples[baseline], self.samples[candidate], strict=True)
        return statistics.median(slow / max(fast, 1e-12) for slow, fast in pairs)

    def quartiles(self, name: str) -> tuple[float, float]:
        """First and third quartile of one candidate's samples."""
        first, _, third = statistics.quantiles(self.samples[name], n=4, method="inclusive")
        return first, third

    def as_dict(self) -> dict[str, object]:
        summary = asdict(self)
        del summary["samples"]
        return summary | {
            "median_s": self.medians,
            "quartiles_s": {name: list(self.quartiles(name)) for name in self.samples},
        }


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.5,
    device: torch.device | str = "cpu",
    launch_bound: bool = False,
) -> Result:
    """Times nullary callables in turns.

    Args:
        candidates: name -> callable. What it returns is dropped at once: a call that allocates its output pays for it.
        seconds: about how long the whole comparison may take, warm-up aside; at least `MIN_ROUNDS` rounds are run.
        device: on "cpu" the clock is the CPU time of this thread, pinned to one core, when torch runs one thread (other
            processes then disturb least), and the wall clock otherwise. On "cuda" it is a pair of events around each
            call with the L2 cache flushed before it.
        launch_bound: on "cuda", times a loop of calls by the wall clock between two synchronisations instead: what a
            sampler made of small kernels really waits for.

    Raises:
        ValueError: no candidates.
    """
    if not candidates:
        raise ValueError("compare: candidates is empty, expected at least one name and callable")
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not launch_bound:
        return _compare_events(candidates, seconds, torch.device(device))
    settle: Callable[[], object]
    if on_gpu:
        clock, tick, settle = "wall, synchronised", time.perf_counter, torch.cuda.synchronize
    elif torch.get_num_threads() == 1:
        clock, tick, settle = "thread CPU time", time.thread_time, _nothing
    else:
        clock, tick, settle = "wall", time.perf_counter, _nothing

    def sample(function: Callable[[], object], calls: int) -> float:
        settle()
        start = tick()
        for _ in range(calls):
            function()
        settle()
        return (tick() - start) / calls

    with _quiet(pin=clock == "thread CPU time"):
        warm = {name: _warm_up(sample, function) for name, function in candidates.items()}
        calls = {name: max(1, round(SAMPLE_SECONDS / max(cost, 1e-9))) for name, cost in warm.items()}
        rounds = _rounds(seconds, sum(calls[name] * warm[name] for name in candidates))
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        for name in _in_turns(list(candidates), rounds):
            samples[name].append(sample(candidates[name], calls[name]))
    return Result(clock, rounds, calls, samples)


def _compare_events(candidates: Mapping[str, Callable[[], object]], seconds: float, device: torch.device) -> Result:
    flush = torch.empty(L2_FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def sample(function: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        function()
        end.record()
        return begin, end

    with _quiet(pin=False), torch.cuda.device(device):
        for function in candidates.values():
            for _ in range(3):
                function()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for function in candidates.values():
            sample(function)
        torch.cuda.synchronize()
        rounds = _rounds(seconds, time.perf_counter() - start)
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in candidates}
        for name in _in_turns(list(candidates), rounds):
            events[name].append(sample(candidates[name]))
        torch.cuda.synchronize()
    samples = {name: [begin.elapsed_time(end) * 1e-3 for begin, end in pairs] for name, pairs in events.items()}
    return Result("CUDA events, L2 flushed", rounds, dict.fromkeys(candidates, 1), samples)


def _warm_up(sample: Callable[[Callable[[], object], int], float], function: Callable[[], object]) -> float:
    """Runs until caches, packed weights and the allocator have settled; returns the seconds per call."""
    sample(function, 1)
    cost = sample(function, 1)
    if cost > 2e-2:
        return cost
    return sample(function, max(2, min(1000, round(5e-3 / max(cost, 1e-9)))))


def _rounds(seconds: float, seconds_per_round: float) -> int:
    return max(MIN_ROUNDS, min(MAX_ROUNDS, round(seconds / max(seconds_per_round, 1e-9))))


def _in_turns(names: list[str], rounds: int) -> Iterator[str]:
    """Every name once per round; each round starts one further on, so that nobody always follows the same neighbour."""
    for turn in range(rounds):
        for k in range(len(names)):
            yield names[(turn + k) % len(names)]


def _nothing() -> None:
    pass


@contextmanager
def _quiet(pin: bool) -> Iterator[None]:
    """No garbage collection meanwhile and, for one thread, no migration between cores."""
    cores = os.sched_getaffinity(0) if pin and hasattr(os, "sched_setaffinity") else None
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        if collecting:
            gc.enable()
