"""The electric load of a data centre, hour by hour. It is SYNTHETIC: no such series ships in a package, and none is imitated.

    load = (idle + requests of the hour of the day, fewer at the weekend) + cooling above 16 degrees + noise
    temperature = mean + a yearly wave + a daily wave + weather, which decays over days

Weather and noise are autoregressions of order 1, x[t] = a x[t - 1] + e[t], so a bound is known that no forecast beats: that of
`informed`, who knows the formula. The temperature of the day ahead comes as a forecast with an error of its own, as in
practice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HOURS = 24
WEEK = 7 * HOURS
YEAR = 8766.0  # hours
NOISE_DECAY = 0.85  # per hour: what disturbs the load is forgotten within a day
WEATHER_DECAY = 0.99


@dataclass(frozen=True)
class LoadSeries:
    """All float64 [hours], starting at midnight before a Monday. load in kW, temperatures in degrees Celsius."""

    load: Tensor
    temperature: Tensor
    forecast: Tensor  # of the temperature, as known the day before
    signal: Tensor  # load without the noise

    def __len__(self) -> int:
        return len(self.load)


def autoregression(steps: int, decay: float, deviation: float, generator: torch.Generator) -> Tensor:
    """x[t] = decay x[t - 1] + e[t], [steps], stationary from the first step on, with that standard deviation."""
    shocks = torch.randn(steps, generator=generator, dtype=torch.float64) * deviation
    shocks[1:] *= math.sqrt(1 - decay**2)
    values, x = [], 0.0
    for shock in shocks.tolist():
        x = decay * x + shock
        values.append(x)
    return torch.tensor(values, dtype=torch.float64)


def calendar_load(hours: Tensor) -> Tensor:
    """What the hour of the day and of the week explain, kW: two peaks of requests, with 45 % fewer at the weekend."""
    day = 2 * math.pi * (hours % HOURS) / HOURS
    requests = 30 - 18 * torch.cos(day - 0.7) - 6 * torch.cos(2 * day + 0.4)
    weekend = (hours % WEEK) >= 5 * HOURS
    return 60 + requests * torch.where(weekend, 0.55, 1.0)


def cooling(temperature: Tensor) -> Tensor:
    """kW: nothing below 16 degrees, where outside air is cool enough, then growing a little faster than linearly."""
    return 1.2 * (temperature - 16).clamp_min(0) ** 1.3


def load_series(generator: torch.Generator, days: int = 728, noise: float = 3.0, weather: float = 4.0) -> LoadSeries:
    """A series of `days` days.

    Args:
        noise: standard deviation of what nothing explains, kW. weather: of the temperature around its waves, degrees.

    Raises:
        ValueError: fewer than 8 days, a negative deviation.
    """
    if days < 8:
        raise ValueError(f"load_series: days must be at least 8, a week and a day: got {days}")
    if noise < 0 or weather < 0:
        raise ValueError(f"load_series: noise and weather must not be negative: got {noise} and {weather}")
    hours = torch.arange(days * HOURS, dtype=torch.float64)
    waves = 14 - 9 * torch.cos(2 * math.pi * hours / YEAR) - 4 * torch.cos(2 * math.pi * (hours - 3) / HOURS)
    temperature = waves + autoregression(len(hours), WEATHER_DECAY, weather, generator)
    forecast = temperature + autoregression(len(hours), 0.9, 1.0, generator)
    signal = calendar_load(hours) + cooling(temperature)
    return LoadSeries(signal + autoregression(len(hours), NOISE_DECAY, noise, generator), temperature, forecast, signal)


def seasonal_naive(load: Tensor, origins: Tensor) -> Tensor:
    """The forecast [N, 24] of the day from each origin on: the same hours a week before."""
    return load[origins[:, None] + torch.arange(HOURS) - WEEK]


def informed(series: LoadSeries, origins: Tensor) -> Tensor:
    """The forecast [N, 24] of who knows the generator and the true temperature: the signal, and what is left of the noise."""
    ahead = torch.arange(HOURS)
    noise = (series.load - series.signal)[origins - 1]
    return series.signal[origins[:, None] + ahead] + noise[:, None] * NOISE_DECAY ** (ahead + 1)
