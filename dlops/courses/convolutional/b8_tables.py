"""B8. Networks on tables: an early diagnosis of cancer that may miss few tumours, and the load of a data centre a day ahead.

The diagnosis: a missed malignant tumour costs more than a false alarm, so the threshold of the probability is chosen for
recall, on training rows alone: five networks, each trained without a fifth of them, say what a network thinks of rows that
it has not seen, and the threshold lets 97 % of their malignant ones through.

The load: from the past week, the calendar and a forecast of the temperature to the next 24 hours, on a synthetic series
(`dlops.courses.data.load`). The bar is the seasonal naive forecast, the same hours a week ago.

The syllabus names autonomous driving too. That is no table: its parts are rows of their own, reading the scene (B4), traffic
signs (B6), finding objects (chapter G) and acting (chapter H); a steering toy would add nothing to them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

from dlops.courses import pictures
from dlops.courses.data import load as power
from dlops.courses.data.tables import Table, load_table
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe, Step
from dlops.models.foundations.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlops.courses.session import Session

TUMOURS = Plan(epochs=25, batch=32, lr=3e-3, weight_decay=1e-2)
ENERGY = Plan(epochs=12, batch=128, lr=2e-3, weight_decay=1e-2)
MALIGNANT = 0  # scikit-learn's label
FOLDS = 5
WANTED = 0.97  # recall on training rows that a network has not seen
TEST_DAYS = 182  # the last half-year; what is before it trains


class TableRecipes(Recipe):
    row = "B8"
    title = "Tables: early diagnosis of cancer, energy of a data centre"
    title_es = "Tablas: diagnóstico precoz de cáncer, energía de un centro de datos"
    syllabi = ("S2",)
    source = "Rumelhart, Hinton, Williams 1986; Wolberg, Street, Mangasarian 1995 (tumours); Provost & Fawcett 2001 (threshold)"
    data = "569 tumours, three tenths held out (scikit-learn); a synthetic hourly load of two years, the last half-year held out"
    absent = "no load of a real data centre ships in a package: the series is generated, its figures say nothing about real ones"
    models = ("dlops.models.foundations.mlp",)
    kernels = ("conv",)  # the linear layers are its 1x1 case
    seconds = 15
    goals = (
        Goal("accuracy", ">=", 0.94, "held-out tumours"),
        Goal("recall of malignant", ">=", 0.93, "held-out malignant tumours, threshold from training rows"),
        Goal("load error over seasonal naive", "<=", 0.80, "mean absolute error, one day ahead, the held-out half-year"),
    )

    def run(self, session: Session) -> Outcome:
        tumours, tumour_checks, suspicion = diagnose(session)
        energy, energy_checks, days = forecast(session)
        return Outcome({**tumours, **energy}, [*tumour_checks, *energy_checks], partial(draw, suspicion, days))

    def step(self, session: Session) -> Step:
        training, _ = load_table("breast_cancer")
        return Step(tumour_network, tumour_loss, (training.features[:32], training.labels[:32]), TUMOURS)


def tumour_network() -> MLP:
    return MLP.from_preset("breast_cancer")


def tumour_loss(network: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(network(features), labels)


def malignancy(session: Session, network: nn.Module, features: Tensor) -> Tensor:
    """Probability [N] that a tumour is malignant."""
    with torch.no_grad(), session.kernels():
        return network(*session.to_device(features)).double().softmax(1)[:, MALIGNANT].cpu()


def threshold_for(probability: Tensor, positive: Tensor, recall: float) -> float:
    """The highest threshold at which at least that share of the positives has a probability as high or higher."""
    ranked = probability[positive].sort(descending=True).values
    return ranked[max(-int(-recall * len(ranked) // 1), 1) - 1].item()


def out_of_fold(session: Session, table: Table) -> Tensor:
    """Probability [N] of every training row, from a network that was trained without it."""
    fold = torch.randperm(len(table), generator=session.generator("folds")) % FOLDS
    probability = torch.empty(len(table), dtype=torch.float64)
    for k in range(FOLDS):
        rest, own = fold != k, fold == k
        network = session.build(f"fold {k}", tumour_network)
        network = session.fit(f"fold {k}", network, tumour_loss, (table.features[rest], table.labels[rest]), TUMOURS).network
        probability[own] = malignancy(session, network, table.features[own])
    return probability


def diagnose(session: Session) -> tuple[dict[str, float], list[Check], tuple[Tensor, Tensor, float]]:
    """Scores, checks, and for the picture: probability [N], malignant [N], threshold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score

    training, test = load_table("breast_cancer")
    known, sick = training.labels == MALIGNANT, test.labels == MALIGNANT
    seen = out_of_fold(session, training)
    threshold = threshold_for(seen, known, WANTED)
    network = session.build("tumours", tumour_network)
    network = session.fit("tumours", network, tumour_loss, (training.features, training.labels), TUMOURS).network
    probability = malignancy(session, network, test.features)
    alarm = probability >= threshold
    recall = (alarm & sick).sum().item() / sick.sum().item()
    linear = LogisticRegression().fit(training.features, training.labels).predict(test.features)
    scores = {
        "accuracy": (alarm == sick).double().mean().item(),
        "recall of malignant": recall,
        "recall at threshold 0.5": ((probability >= 0.5) & sick).sum().item() / sick.sum().item(),
        "accuracy, logistic regression": (torch.from_numpy(linear) == test.labels).double().mean().item(),
    }
    reached = ((seen >= threshold) & known).sum().item() / known.sum().item()
    higher = ((seen > threshold) & known).sum().item() / known.sum().item()
    checks = [
        Check("recall of malignant and scikit-learn's, difference", abs(recall - recall_score(sick, alarm)), "<=", 1e-12),
        Check("recall of the training rows at the threshold", reached, ">=", WANTED),
        Check("the same at any higher one", higher, "<=", WANTED - 1e-9),
    ]
    return scores, checks, (probability, sick, threshold)


def windows(series: power.LoadSeries, origins: Tensor) -> Tensor:
    """What is known at each origin (an hour) [N] of the day ahead, float32 [N, 225]: the load of the past week, the
    temperature of the past day, the forecast of it for the next, the hour of the day and the day of the week.

    Loads and temperatures are in tens around round figures, near 0 and of size 1 without a look at the data.
    """
    week = series.load[origins[:, None] + torch.arange(-power.WEEK, 0)]
    warmth = series.temperature[origins[:, None] + torch.arange(-power.HOURS, 0)]
    ahead = series.forecast[origins[:, None] + torch.arange(power.HOURS)]
    hour = 2 * torch.pi * (origins % power.HOURS).double()[:, None] / power.HOURS
    day = nn.functional.one_hot(origins % power.WEEK // power.HOURS, 7).double()
    return torch.cat([(week - 90) / 10, (warmth - 15) / 10, (ahead - 15) / 10, hour.cos(), hour.sin(), day], dim=1).float()


def targets(series: power.LoadSeries, origins: Tensor) -> Tensor:
    """The day ahead, kW, float64 [N, 24]."""
    return series.load[origins[:, None] + torch.arange(power.HOURS)]


def forecast(session: Session) -> tuple[dict[str, float], list[Check], dict[str, Tensor]]:
    """Scores, checks, and for the picture: the loads of a week, by name."""
    from sklearn.linear_model import Ridge

    series = power.load_series(session.generator("load"))
    border = len(series) - TEST_DAYS * power.HOURS
    past = torch.arange(power.WEEK, border - power.HOURS + 1)  # every hour whose next day ends before the border
    asked = torch.arange(border, len(series), power.HOURS)  # every midnight after it
    inputs = windows(series, asked)
    naive, true = power.seasonal_naive(series.load, asked), targets(series, asked)

    # the network says by how much the next day differs from the same hours a week ago, in tens of kW
    change = ((targets(series, past) - power.seasonal_naive(series.load, past)) / 10).float()
    network = session.build("load", lambda: MLP(inputs.shape[1], power.HOURS, hidden=(128, 128), init="he"))
    error = lambda network, x, y: l1_loss(network(x), y)  # noqa: E731  the mean absolute error, as it is judged by
    session.fit("load", network, error, (windows(series, past), change), ENERGY)
    with torch.no_grad(), session.kernels():
        ours = naive + 10 * network(*session.to_device(inputs)).double().cpu()
    linear = naive + 10 * torch.from_numpy(Ridge().fit(windows(series, past), change).predict(inputs)).double()
    mae = {
        "network": (ours - true).abs().mean().item(),
        "seasonal naive": (naive - true).abs().mean().item(),
        "linear regression": (linear - true).abs().mean().item(),
        "informed": (power.informed(series, asked) - true).abs().mean().item(),
    }
    scores = {"load error over seasonal naive": mae["network"] / mae["seasonal naive"]}
    scores |= {f"load error, {name}, kW": value for name, value in mae.items()}
    calendar = power.calendar_load(torch.arange(3 * power.WEEK, dtype=torch.float64))
    midnights = torch.arange(power.WEEK, len(calendar), power.HOURS)
    periodic = power.seasonal_naive(calendar, midnights) - calendar[midnights[:, None] + torch.arange(power.HOURS)]
    checks = [
        Check("inputs that change with the load after the origin", look_ahead(series, asked[:8]), "<=", 0),
        Check("hours of the held-out half-year in training", max((past[-1] + power.HOURS - border).item(), 0), "<=", 0),
        # nothing that is measured may beat who knows the generator, but by the luck of 182 days
        Check("error over that of who knows the generator", mae["network"] / mae["informed"], ">=", 0.97),
        Check("seasonal naive on a series of period a week, error", periodic.abs().max().item(), "<=", 1e-12),
    ]
    week = slice(0, 7)
    lines = {"load": true[week], "network": ours[week], "a week before": naive[week]}
    return scores, checks, {name: line.flatten() for name, line in lines.items()}


def look_ahead(series: power.LoadSeries, origins: Tensor) -> float:
    """Count of inputs that change when load and temperature from the origin on are replaced."""
    changed = 0
    for origin in origins.tolist():
        load, temperature = series.load.clone(), series.temperature.clone()
        load[origin:] += 1000
        temperature[origin:] += 1000
        other = power.LoadSeries(load, temperature, series.forecast, series.signal)
        at = torch.tensor([origin])
        changed += int((windows(series, at) != windows(other, at)).sum())
    return changed


def draw(suspicion: tuple[Tensor, Tensor, float], days: dict[str, Tensor]) -> Figure:
    made = pictures.figure(6.4, 4.6)
    top, bottom = made.subplots(2, 1)
    probability, sick, threshold = suspicion
    bins = torch.linspace(0, 1, 41).numpy()
    for kind, name, color in ((~sick, "benign", "C0"), (sick, "malignant", "C3")):
        top.hist(probability[kind].numpy(), bins=bins, alpha=0.6, color=color, label=name)
    top.axvline(threshold, color="0.2", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}, from training rows")
    top.set(yscale="log", xlabel="probability of malignant", ylabel="held-out tumours", yticks=[1, 10, 100], ylim=(0.7, 150))
    top.set_yticklabels(["1", "10", "100"])
    top.set_title("early diagnosis", fontsize=9, loc="left")
    top.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(0.92, 1.0))
    styles = {"load": dict(color="0.2", linewidth=1.8), "network": dict(color="C0"), "a week before": dict(color="C1")}
    for name, values in days.items():
        bottom.plot(torch.arange(len(values)) / power.HOURS, values, label=name, **{"linewidth": 1.2, **styles[name]})
    bottom.set(xlabel="days of the held-out half-year", ylabel="kW")
    bottom.set_title("synthetic load of a data centre, forecast every midnight for the day ahead", fontsize=9, loc="left")
    bottom.legend(frameon=False, fontsize=8, ncols=3)
    return made
