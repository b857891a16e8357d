"""Noise schedules in float64: betas, timestep spacings and sigma ladders. Everything here runs once, on the host.

Conventions: alphas_cumprod[t] = prod(1 - beta) up to t (Ho et al. 2006.11239, eq. 4); sigma = sqrt((1 - a) / a) is the
noise level of the variance-exploding view (Karras et al. 2206.00364); ladders run from the noisiest level down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_BETA = 0.999  # of the schedules given by alpha_bar, whose last beta is 1 (Nichol & Dhariwal 2102.09672, sec. 3.2)
RHO = 7.0  # Karras et al. 2206.00364, table 1

_ALPHA_BARS = {
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "laplace": lambda t: _root_alpha_bar(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)),
}
SPACINGS = ("linspace", "leading", "trailing")


def _root_alpha_bar(log_snr: float) -> float:
    """sqrt(snr / (1 + snr)), the Laplace schedule of Hang et al. 2407.03297."""
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def one_of(owner: str, name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value` if it is allowed, else a ValueError that says what is."""
    if value not in allowed:
        names = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{owner}: {name} must be one of {names}: got {value!r}")
    return value


def make_betas(
    owner: str,
    schedule: str,
    steps: int,
    start: float,
    end: float,
    trained: Sequence[float] | np.ndarray | None = None,
    allowed: Sequence[str] = ("linear", "scaled_linear", "squaredcos_cap_v2"),
) -> np.ndarray:
    """The training betas, float64 [steps]. Raises ValueError for a beta outside [0, 1]."""
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{owner}: num_train_timesteps must be a positive int: got {steps!r}")
    if trained is not None:
        betas = np.array(trained, dtype=np.float64)
    elif one_of(owner, "beta_schedule", schedule, allowed) == "linear":
        betas = np.linspace(start, end, steps)
    elif schedule == "scaled_linear":
        if not (start >= 0 and end >= 0):
            raise ValueError(f"{owner}: beta_start and beta_end must be at least 0: got {start} and {end}")
        betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    elif schedule == "sigmoid":  # GeoDiff, Xu et al. 2203.02923
        betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))) + start
    else:
        bar = _ALPHA_BARS[schedule]
        betas = np.array([min(1 - bar((i + 1) / steps) / bar(i / steps), MAX_BETA) for i in range(steps)])
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas >= 0) & (betas <= 1)):  # NaN fails the comparison too
        name = "trained_betas" if trained is not None else "betas (from beta_start, beta_end)"
        found = f"min {betas.min()}, max {betas.max()}" if betas.size else "none"
        raise ValueError(f"{owner}: {name} must be a non-empty 1-d list of numbers in [0, 1]: got {found}")
    return betas


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last alphas_cumprod is exactly 0 and whose first is unchanged (Lin et al., algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def spaced_timesteps(
    owner: str, spacing: str, steps: int, train: int, offset: int, last: int | None = None, extra: int = 0
) -> np.ndarray:
    """Descending timesteps, float64 (Lin et al. 2305.08891, table 2).

    last: number of training steps in use, `train` unless the noisiest are left out. extra: 1 lays the points for
    steps + 1 and drops the cleanest (DPM-Solver counts the end of its last step as a point). "linspace" is not rounded.
    """
    last = train if last is None else last
    if one_of(owner, "timestep_spacing", spacing, SPACINGS) == "linspace":
        times = np.linspace(0, last - 1, steps + extra)[::-1]
        return times[:steps].copy()
    if spacing == "leading":
        times = (np.arange(steps + extra) * (last // (steps + extra))).astype(np.float64)[::-1]
        return times[:steps] + offset
    return np.arange(last, 0, -train / steps).round() - 1.0


def sigmas_of(alphas_cumprod: np.ndarray) -> np.ndarray:
    """sqrt((1 - a) / a), ascending in t."""
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def karras_sigmas(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Karras et al. 2206.00364, eq. 5."""
    return np.linspace(sigma_max ** (1 / RHO), sigma_min ** (1 / RHO), steps) ** RHO


def exponential_sigmas(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Uniform in log sigma."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def beta_sigmas(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) over [sigma_min, sigma_max] (Lee et al. 2407.12173). Needs scipy."""
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise ImportError("use_beta_sigmas needs scipy: pip install scipy") from error
    return sigma_min + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, steps)) * (sigma_max - sigma_min)


LADDERS = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
}


def chosen_ladder(owner: str, config: Any) -> str | None:
    """The one `use_*_sigmas` flag that is set, or None. Raises ValueError if several are."""
    chosen = [name for name in LADDERS if config.get(name)]
    if len(chosen) > 1:
        raise ValueError(f"{owner}: only one of {', '.join(LADDERS)} may be set: got {', '.join(chosen)}")
    return chosen[0] if chosen else None


def ladder(name: str, config: Any, sigmas: np.ndarray, steps: int) -> np.ndarray:
    """The named ladder over the range of `sigmas` (noisiest first), or of the config's sigma_max and sigma_min."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    return LADDERS[name](float(sigmas[0] if high is None else high), float(sigmas[-1] if low is None else low), steps)


def sigma_to_timestep(sigmas: np.ndarray, train_sigmas: np.ndarray) -> np.ndarray:
    """Fractional training timesteps of `sigmas`: linear interpolation in log sigma, clamped to the training range."""
    log_train = np.log(train_sigmas)
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), log_train, np.arange(len(log_train), dtype=np.float64))


def x0_bounds(owner: str, config: Any) -> tuple[float, float]:
    """(quantile, maximum) of dynamic thresholding, (0, 1) without. Raises ValueError, also for clip_sample_range."""
    if config.get("clip_sample") and not config["clip_sample_range"] > 0:
        raise ValueError(f"{owner}: clip_sample_range must be above 0: got {config['clip_sample_range']}")
    if not config.get("thresholding"):
        return 0.0, 1.0
    ratio, maximum = config["dynamic_thresholding_ratio"], config["sample_max_value"]
    if not 0 < ratio <= 1:
        raise ValueError(f"{owner}: dynamic_thresholding_ratio must lie in (0, 1]: got {ratio}")
    if not maximum > 0:
        raise ValueError(f"{owner}: sample_max_value must be above 0: got {maximum}")
    return ratio, maximum
