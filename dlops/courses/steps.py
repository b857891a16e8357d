"""A training step of a recipe, ours beside plain torch.nn: the time of both, and how far their losses drift apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dlops.courses.recipe import Recipe
from dlops.courses.session import Session

STEPS, WARM_UP = 20, 3


@dataclass(frozen=True)
class StepTime:
    """Medians over the steps, in seconds; `ratio` is the median of (stock / ours), both taken in the same round."""

    stock: float
    ours: float
    ratio: float
    first: float  # relative difference of the first losses: the same computation in another order
    drift: float  # the largest of all steps, warm-up included: what training makes of the first difference

    @property
    def milliseconds(self) -> tuple[float, float]:
        return 1e3 * self.stock, 1e3 * self.ours


def compare_steps(recipe: Recipe, seed: int = 0, device: str = "cpu", steps: int = STEPS) -> StepTime | None:
    """`steps` training steps of stock torch and of ours in turns, from the same weights, on the same batch, with the same
    random numbers; None where the row trains nothing. The clock is the CPU time of this thread where torch runs one thread
    on the CPU, and the wall clock otherwise."""
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if one_thread else time.perf_counter
    settle: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    runners = {}
    for backend in ("torch", "dlops"):
        runner = _runner(recipe, Session(recipe.row, seed, device, backend))
        if runner is None:
            return None
        runners[backend] = runner
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    differences = []
    with torch.random.fork_rng(devices=[]):
        for k in range(WARM_UP + steps):
            losses = {}
            for name in list(runners) if k % 2 else reversed(list(runners)):
                torch.manual_seed(k)
                settle()
                start = clock()
                losses[name] = runners[name]()
                settle()
                if k >= WARM_UP:
                    seconds[name].append(clock() - start)
            a, b = losses["torch"].item(), losses["dlops"].item()
            differences.append(abs(a - b) / max(abs(a), 1e-3))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(stock / max(ours, 1e-9) for stock, ours in zip(seconds["torch"], seconds["dlops"]))
    return StepTime(medians["torch"], medians["dlops"], ratio, differences[0], max(differences))


def _runner(recipe: Recipe, session: Session) -> Callable[[], torch.Tensor] | None:
    step = recipe.step(session)
    if step is None:
        return None
    network = session.build("step", step.make).train()
    batch = session.to_device(*step.batch)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = step.plan.make_optimizer(parameters)

    def run() -> torch.Tensor:
        with session.kernels():
            optimizer.zero_grad()
            loss = step.loss(network, *batch)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run
