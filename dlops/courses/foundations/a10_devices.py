"""A10. The device switch, and one table for every architecture: a training step of stock torch beside ours, on the CPU and,
where there is one, on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dlops import courses
from dlops.bench.stock import stock
from dlops.courses import pictures
from dlops.courses.recipe import Check, Goal, Outcome, Recipe
from dlops.courses.report import geometric_mean
from dlops.courses.steps import StepTime, compare_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session


class DeviceTable(Recipe):
    row = "A10"
    title = "The device switch; every architecture timed"
    title_es = "El cambio de dispositivo; todas las arquitecturas cronometradas"
    syllabi = ("S1", "S2")
    source = "Williams, Waterman, Patterson 2009 (what bounds a kernel); the syllabi on why GPUs mattered"
    data = "one batch of every row that trains something"
    kernels = ("attention", "conv", "norm")
    goals = (Goal("share of the training rows in the table", ">=", 1.0, "on every device that is here"),)
    seconds = 60

    def run(self, session: Session) -> Outcome:
        names = [name for name in courses.rows() if name != self.row]
        if session.quick:
            names = names[::6]
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        scores, table, training = {}, {}, 0
        for name in names:
            recipe = courses.find(name)
            if recipe.step(session) is None:
                continue
            training += 1
            for device in devices:
                times = compare_steps(recipe, session.seed, device, steps=2 if session.quick else 8)
                table[name, device] = times
                scores[f"{name} {device}: stock ms"] = times.milliseconds[0]
                scores[f"{name} {device}: times faster"] = times.ratio
        scores[self.goals[0].name] = len(table) / max(training * len(devices), 1)
        scores["geometric mean of the ratios"] = geometric_mean([times.ratio for times in table.values()])
        checks = [
            Check("parameters that differ between stock and ours", _different(names, session), "<=", 0),
            Check("first losses of stock and ours, largest difference", max(t.first for t in table.values()), "<=", 1e-4),
        ]
        return Outcome(scores, checks, lambda: _picture(table))


def _different(names: list[str], session: Session) -> int:
    """How many parameters do not have the same name, shape and bits in the stock network and in ours."""
    count = 0
    for name in names:
        step = courses.find(name).step(session)
        if step is not None:
            network = session.build("step", step.make)
            ours, theirs = network.state_dict(), stock(network).state_dict()
            count += len(ours.keys() ^ theirs.keys())
            count += sum(not torch.equal(ours[key], theirs[key]) for key in ours.keys() & theirs.keys())
    return count


def _picture(table: dict[tuple[str, str], StepTime]) -> Figure:
    made = pictures.figure(6.4, 3.2)
    axes = made.subplots()
    for k, device in enumerate(dict.fromkeys(device for _, device in table)):
        names = [name for name, where in table if where == device]
        places = [i + 0.4 * k for i in range(len(names))]
        axes.bar(places, [table[name, device].ratio for name in names], width=0.4, label=device, color=f"C{k}")
        axes.set_xticks(range(len(names)), names, fontsize=8, rotation=90)
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set(ylabel="training step: stock / ours")
    axes.legend(frameon=False, fontsize=8)
    return made
