"""The threshold of the diagnosis, and the synthetic load: its parts, its bounds, and that no forecast sees the future."""

from __future__ import annotations

import pytest
import torch

from dlops.courses.convolutional import b8_tables
from dlops.courses.data import load as power


def series(days: int = 120, **settings: float) -> power.LoadSeries:
    return power.load_series(torch.Generator().manual_seed(0), days, **settings)


def midnights(length: int) -> torch.Tensor:
    return torch.arange(power.WEEK, length, power.HOURS)


def test_threshold_is_the_highest_that_keeps_the_recall():
    probability = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.3, 0.95, 0.1], dtype=torch.float64)
    sick = torch.tensor([1, 1, 1, 1, 1, 0, 0]).bool()
    for recall, expected in ((1.0, 0.3), (0.8, 0.6), (0.79, 0.6), (0.81, 0.3), (0.2, 0.9), (0.01, 0.9)):
        assert b8_tables.threshold_for(probability, sick, recall) == expected


def test_autoregression_is_stationary_with_its_deviation_and_decay():
    noise = power.autoregression(40_000, 0.9, 3.0, torch.Generator().manual_seed(0))
    assert noise[:20_000].std().item() == pytest.approx(3.0, rel=0.1)
    assert (noise[1:] * noise[:-1]).mean().item() / noise.var().item() == pytest.approx(0.9, abs=0.02)
    starts = torch.stack([power.autoregression(2, 0.9, 3.0, torch.Generator().manual_seed(k)) for k in range(2000)])
    assert starts[:, 0].std().item() == pytest.approx(3.0, rel=0.1)  # no warming up


def test_without_noise_the_load_is_its_signal_and_its_calendar_repeats_every_week():
    quiet = series(noise=0.0)
    assert torch.equal(quiet.load, quiet.signal)
    calendar = power.calendar_load(torch.arange(3 * power.WEEK, dtype=torch.float64))
    at = midnights(len(calendar))
    ahead = calendar[at[:, None] + torch.arange(power.HOURS)]
    assert torch.equal(power.seasonal_naive(calendar, at), ahead)
    assert calendar[12] > 1.2 * calendar[12 + 5 * power.HOURS]  # Monday noon against Saturday's


def test_cooling_starts_at_sixteen_degrees():
    degrees = torch.tensor([-5.0, 16.0, 17.0, 26.0], dtype=torch.float64)
    assert power.cooling(degrees)[:2].tolist() == [0, 0] and power.cooling(degrees)[2].item() == pytest.approx(1.2)
    assert power.cooling(degrees)[3] > 10 * power.cooling(degrees)[2]


def test_who_knows_the_formula_errs_by_the_noise_and_less_than_the_seasonal_naive():
    made = series(400)
    at = midnights(len(made))
    true = made.load[at[:, None] + torch.arange(power.HOURS)]
    error = power.informed(made, at) - true
    # standard deviation of x[t + h] given x[t], with that of x being 3
    hours = torch.arange(1, power.HOURS + 1, dtype=torch.float64)
    theory = 3 * (1 - power.NOISE_DECAY ** (2 * hours)).sqrt()
    torch.testing.assert_close(error.square().mean(0).sqrt(), theory, rtol=0.12, atol=0)
    assert error.abs().mean() < (power.seasonal_naive(made.load, at) - true).abs().mean()


def test_the_same_generator_gives_the_same_series():
    assert torch.equal(series().load, series().load)


def test_inputs_know_nothing_of_the_load_to_come(monkeypatch):
    made = series(30)
    assert b8_tables.look_ahead(made, midnights(len(made))[:3]) == 0
    assert b8_tables.windows(made, midnights(len(made))).shape[1] == 168 + 24 + 24 + 2 + 7

    later = b8_tables.windows
    monkeypatch.setattr(b8_tables, "windows", lambda series, at: later(series, at + 1))  # reads one hour too many
    assert b8_tables.look_ahead(made, midnights(len(made))[:3]) > 0


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(days=7), "days must be at least 8, a week and a day: got 7"),
        (dict(noise=-1.0), "noise and weather must not be negative: got -1.0 and 4.0"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=f"load_series: {said}"):
        power.load_series(torch.Generator(), **settings)
