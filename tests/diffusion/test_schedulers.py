"""Schedulers against diffusers: in float64 (what they should be) and as it is (what its float32 tables cost)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import dlops
from dlops import diffusion

diffusers = pytest.importorskip("diffusers", reason="parity tests need diffusers")

SHAPE = (2, 3, 6, 5)
BETAS = np.linspace(0.0004, 0.03, 600) ** 1.1

# Each option alone, then the combinations that meet in practice: (class, config, step arguments).
VP = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": BETAS.tolist(), "num_train_timesteps": 600},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
]
PIXEL = [
    {"prediction_type": "sample"},
    {"clip_sample": False},
    {"clip_sample_range": 1.7},
    {"thresholding": True, "sample_max_value": 1.6, "dynamic_thresholding_ratio": 0.93},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
]
LADDERS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]

CASES: list[tuple[str, dict, dict]] = []
for config in VP + PIXEL:
    CASES += [("DDIMScheduler", config, {}), ("DDPMScheduler", config, {})]
CASES += [
    ("DDIMScheduler", config, step)
    for config, step in [
        ({"set_alpha_to_one": False}, {}),
        ({}, {"eta": 1.0}),
        ({"clip_sample": False, "prediction_type": "v_prediction"}, {"eta": 0.4}),
        ({}, {"use_clipped_model_output": True}),
        ({"prediction_type": "sample"}, {"use_clipped_model_output": True, "eta": 0.7}),
        ({"thresholding": True, "prediction_type": "v_prediction"}, {"use_clipped_model_output": True}),
    ]
]
CASES += [
    ("DDPMScheduler", config, {})
    for config in [
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace", "clip_sample_range": 3.0},
        {"variance_type": "fixed_small_log"},
        {"variance_type": "fixed_large"},
        {"variance_type": "learned"},
        {"variance_type": "learned_range", "prediction_type": "v_prediction"},
    ]
]
SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES += [
    ("DPMSolverMultistepScheduler", config, {})
    for config in [
        *VP,
        *LADDERS,
        {"prediction_type": "sample"},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"solver_type": "heun", "solver_order": 3, "prediction_type": "v_prediction"},
        {**SDE},
        {**SDE, "solver_order": 1},
        {**SDE, "solver_order": 3},
        {**SDE, "solver_type": "heun", "use_karras_sigmas": True},
        {"thresholding": True, "sample_max_value": 1.5},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_order": 3},
        {"lower_order_final": False, "solver_order": 3},
        {"use_lu_lambdas": True},
        {"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **SDE},
        {"variance_type": "learned_range"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction", **SDE},
    ]
]
CASES += [
    ("EulerDiscreteScheduler", config, step)
    for config, step in [
        *((config, {}) for config in VP + LADDERS),
        ({"prediction_type": "sample"}, {}),
        ({"interpolation_type": "log_linear"}, {}),
        ({"interpolation_type": "log_linear", "use_karras_sigmas": True}, {}),
        ({"use_karras_sigmas": True, "sigma_min": 0.02, "sigma_max": 80.0}, {}),
        ({"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}, {}),
        ({"final_sigmas_type": "sigma_min"}, {}),
        ({}, {"s_churn": 4.0}),
        ({"prediction_type": "v_prediction"}, {"s_churn": 3.0, "s_tmin": 0.3, "s_tmax": 9.0, "s_noise": 1.01}),
    ]
]
CASES += [("EulerAncestralDiscreteScheduler", config, {}) for config in VP]
CASES += [
    ("FlowMatchEulerDiscreteScheduler", config, {})
    for config in [
        {},
        {"shift": 3.0},
        {"num_train_timesteps": 250},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"shift_terminal": 0.1},
        {"invert_sigmas": True},
        *LADDERS,
        {"stochastic_sampling": True},
        {"stochastic_sampling": True, "shift": 2.5},
    ]
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def label(case) -> str:
    name, config, step = case
    parts = [f"{k}={'...' if isinstance(v, list) else v}" for k, v in {**config, **step}.items()]
    return "-".join([name.removesuffix("Scheduler"), *parts])


def arguments(config: dict) -> dict:
    return {"mu": 0.8} if config.get("use_dynamic_shifting") else {}


def model(x: torch.Tensor, i: int, config: dict) -> torch.Tensor:
    """Not a denoiser, but smooth, different at every step, and large enough to be clipped. [N, C or 2C, ...]"""
    wave = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    m = torch.sin(2.1 * x + i) + 0.3 * wave
    learned = config.get("variance_type") or ""
    if not learned.startswith("learned"):
        return m
    return torch.cat([m, torch.sigmoid(wave + m) * (0.01 if learned == "learned" else 1.0)], dim=1)


def relative(ours: torch.Tensor, theirs: torch.Tensor, scale: float = 0.0) -> float:
    """Largest error as a share of the largest value (or of `scale`, where larger)."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=scale))


def largest_terms(scheduler, i: int, x: torch.Tensor, m: torch.Tensor) -> tuple[float, float]:
    """The largest term of prev and of x0: where terms cancel, float32 knows the sum to 6e-8 of these."""
    row = dict(zip(dlops.functional.STEP_COLUMNS, scheduler._host_table[i].abs().tolist()))
    x_max, m_max = float(x.abs().max()), float(m.abs().max())
    x0 = max(row["px"] * x_max, row["pm"] * m_max)
    kept = [min(x0, row["clip"]), *(float(h.abs().max()) for h in scheduler._history)]
    prev = [row["a"] * x_max, row["b"] * m_max, *(row[k] * v for k, v in zip(("c", "h1", "h2"), kept))]
    return max(prev), x0


def run_pair(case, steps, oracle_dtype=torch.float64, dtype=torch.float32, steps_arguments=None):
    """Yield (ours, theirs) outputs step by step, both stepped from our samples."""
    name, config, step = case
    ours = getattr(diffusion, name)(**config)
    theirs = getattr(diffusers, name)(**config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps, **arguments(config))
    assert len(ours.timesteps) == len(theirs.timesteps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(ours.init_noise_sigma)
    x = x.to(dtype)
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    for i in range(len(ours.timesteps)):
        wide = x.to(oracle_dtype)
        scaled = ours.scale_model_input(x, ours.timesteps[i])
        their_scaled = wide
        if hasattr(theirs, "scale_model_input"):
            their_scaled = theirs.scale_model_input(wide, theirs.timesteps[i])
        m = model(x.float(), i, config).to(dtype)
        if dtype is torch.bfloat16 and hasattr(theirs, "model_outputs"):  # history is kept in the sample's dtype
            theirs.model_outputs = [None if h is None else h.to(dtype).to(oracle_dtype) for h in theirs.model_outputs]
        terms = largest_terms(ours, i, x, m)
        a = ours.step(m, ours.timesteps[i], x, **step, generator=generators[0])
        b = theirs.step(m.to(oracle_dtype), theirs.timesteps[i], wide, **step, generator=generators[1])
        yield i, scaled, their_scaled, terms, a, b
        x = a.prev_sample


def check_float64(case, steps, context) -> None:
    with context():
        for i, scaled, their_scaled, terms, ours, theirs in run_pair(case, steps):
            assert relative(scaled, their_scaled) <= 1e-6
            assert ours.prev_sample.dtype == torch.float32
            if theirs.prev_sample.isnan().any():  # a last level that repeats, and rounding: the root of -1e-16 there
                assert i == steps - 1 and ours.prev_sample.isfinite().all()
                return
            assert relative(ours.prev_sample, theirs.prev_sample, terms[0]) <= 1e-6, f"step {i}"
            if getattr(theirs, "pred_original_sample", None) is not None:
                assert relative(ours.pred_original_sample, theirs.pred_original_sample, terms[1]) <= 1e-6, f"step {i}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_equals_diffusers_in_float64(case, float64_diffusers):
    """Relative 1e-6 per step: float64 tables and arithmetic on the same float32 inputs."""
    check_float64(case, 7, float64_diffusers)


@pytest.mark.full
@pytest.mark.parametrize("steps", [4, 14, 15, 25, 50])
@pytest.mark.parametrize("case", CASES, ids=label)
def test_equals_diffusers_in_float64_at_every_length(case, steps, float64_diffusers):
    check_float64(case, steps, float64_diffusers)


@pytest.mark.full
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 20])
def test_dpm_solver_grid(order, solver, algorithm, prediction, steps, float64_diffusers):
    ladders = [{}, *LADDERS, {"use_lu_lambdas": True}]
    finals = [{}, {"final_sigmas_type": "sigma_min"}, {"euler_at_final": True}, {"lower_order_final": False}]
    for ladder, final, spacing in itertools.product(ladders, finals, ("linspace", "leading", "trailing")):
        config = {
            "solver_order": order,
            "solver_type": solver,
            "algorithm_type": algorithm,
            "prediction_type": prediction,
            "timestep_spacing": spacing,
            **ladder,
            **final,
        }
        check_float64(("DPMSolverMultistepScheduler", config, {}), steps, float64_diffusers)


# Karras' ladder starts at the last level of the cosine schedule, alphas_cumprod = 2.4e-9: float32 misses it by far.
PLAIN = [case for case in CASES if case[1] != {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}]


@pytest.mark.parametrize("case", PLAIN, ids=label)
def test_equals_plain_diffusers(case):
    """diffusers as it is, within what its float32 tables cost."""
    name, config, _ = case
    tolerance = 2e-5
    if config.get("beta_schedule") == "squaredcos_cap_v2":
        tolerance = 5e-4
    if config.get("rescale_betas_zero_snr"):  # levels near 0, as differences of values near 1
        tolerance = 1e-2
    for i, *_, ours, theirs in run_pair(case, 9, oracle_dtype=torch.float32):
        assert relative(ours.prev_sample, theirs.prev_sample) <= tolerance, f"step {i}"
        assert ours.prev_sample.dtype == theirs.prev_sample.dtype


@pytest.mark.parametrize("case", CASES, ids=label)
def test_same_schedule_as_diffusers(case):
    name, config, _ = case
    ours, theirs = getattr(diffusion, name)(**config), getattr(diffusers, name)(**config)
    for steps in (4, 30):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps, **arguments(config))
        assert ours.timesteps.dtype == theirs.timesteps.dtype or name == "EulerAncestralDiscreteScheduler"
        # fractional timesteps of a ladder go through float32 logarithms there, and are truncated by the DPM solver
        atol = 1 if ours.timesteps.dtype == torch.int64 and len(config) else 1e-2
        torch.testing.assert_close(ours.timesteps, theirs.timesteps.to(ours.timesteps.dtype), rtol=1e-4, atol=atol)
        if hasattr(theirs, "sigmas"):
            torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-3, atol=1e-5)
        if hasattr(theirs, "init_noise_sigma") and not config.get("rescale_betas_zero_snr"):
            assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=2e-5)
    assert ours.num_inference_steps == theirs.num_inference_steps
    assert len(ours) == len(theirs) and ours.order == theirs.order


# Without the schedulers whose noise diffusers draws in bfloat16; see test_bfloat16_noise for those.
BF16 = [
    case
    for case in CASES
    if case[1:] in [({}, {}), ({"solver_order": 3}, {}), (SDE, {}), ({"stochastic_sampling": True}, {})]
    and case[0] not in ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
]


@pytest.mark.parametrize("case", BF16, ids=label)
def test_bfloat16_is_rounded_once(case, float64_diffusers):
    """The float64 result, rounded to bfloat16, up to the float32 error that can tip a rounding."""
    with float64_diffusers():
        for i, *_, ours, theirs in run_pair(case, 6, dtype=torch.bfloat16):
            assert ours.prev_sample.dtype == torch.bfloat16
            exact = theirs.prev_sample
            error = (ours.prev_sample.double() - exact).abs()
            assert (error <= 2**-8 * exact.abs() + 1e-6 * exact.abs().max()).all(), f"step {i}"


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_bfloat16_noise(name):
    """Same generator, same noise as diffusers in bfloat16; the step differs by diffusers' own roundings only."""
    for *_, ours, theirs in run_pair((name, {}, {}), 6, oracle_dtype=torch.bfloat16, dtype=torch.bfloat16):
        assert relative(ours.prev_sample, theirs.prev_sample) <= 2**-6


@pytest.mark.parametrize("sample_dtype, model_dtype", list(itertools.permutations([torch.float32, torch.float16], 2)))
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_mixed_dtypes_follow_diffusers(name, sample_dtype, model_dtype):
    ours, theirs = getattr(diffusion, name)(), getattr(diffusers, name)()
    x, m = torch.randn(SHAPE).to(sample_dtype), torch.randn(SHAPE).to(model_dtype)
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
        scheduler.scale_model_input(x, scheduler.timesteps[0])
        results.append(scheduler.step(m, scheduler.timesteps[0], x).prev_sample)
    assert results[0].dtype == results[1].dtype
    assert relative(*results) <= 2e-3


def test_generator_state_matches_diffusers_after_a_run():
    """Noise is drawn exactly where diffusers draws it, also where its weight is 0."""
    for case in CASES:
        if case[1] == {} or case[1] == SDE or case[1] == {"stochastic_sampling": True}:
            generators = [torch.Generator().manual_seed(3) for _ in range(2)]
            for library, generator in zip((diffusion, diffusers), generators):
                scheduler = getattr(library, case[0])(**case[1])
                scheduler.set_timesteps(4)
                x = torch.ones(SHAPE)
                for t in scheduler.timesteps:
                    scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
                    x = scheduler.step(torch.ones(SHAPE), t, x, generator=generator, **case[2]).prev_sample
            assert torch.equal(generators[0].get_state(), generators[1].get_state()), label(case)


@pytest.mark.parametrize("begin", [1, 4])
@pytest.mark.parametrize("how", ["set_begin_index", "timestep"])
@pytest.mark.parametrize("config", [{"solver_order": 3}, {"solver_order": 2, **SDE}])
def test_start_in_the_middle(begin, how, config, float64_diffusers):
    """Image-to-image: the orders of the first steps count from where the run starts."""
    with float64_diffusers():
        ours = diffusion.DPMSolverMultistepScheduler(**config)
        theirs = diffusers.DPMSolverMultistepScheduler(**config)
        x = torch.randn(SHAPE, dtype=torch.float32)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(9)
            if how == "set_begin_index":
                scheduler.set_begin_index(begin)
        for i in range(begin, 9):
            m, noise = model(x, i, {}), torch.randn(SHAPE, dtype=torch.float32)
            a = ours.step(m, ours.timesteps[i], x, variance_noise=noise).prev_sample
            b = theirs.step(m.double(), theirs.timesteps[i], x.double(), variance_noise=noise).prev_sample
            assert relative(a, b) <= 1e-6
            x = a
        assert ours.step_index == theirs.step_index == 9 and ours.begin_index == theirs.begin_index


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_ddim_and_ddpm_go_where_the_timestep_says(name):
    """They keep no history, so, as in diffusers, any timestep of the schedule may come next, and a run may repeat."""
    ours, theirs = getattr(diffusion, name)(), getattr(diffusers, name)()
    x, m = torch.randn(SHAPE), torch.randn(SHAPE)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    for i in (0, 1, 7, 9, 0, 3):
        t = ours.timesteps[i]
        a = ours.step(m, int(t), x, generator=torch.Generator().manual_seed(i))
        b = theirs.step(m, t, x, generator=torch.Generator().manual_seed(i))
        assert relative(a.prev_sample, b.prev_sample) <= 2e-5


def test_custom_timesteps_and_sigmas(float64_diffusers):
    cases = [
        ("DDPMScheduler", {"timesteps": [900, 500, 499, 3]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}),
        ("EulerDiscreteScheduler", {"timesteps": [999, 500, 30]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.615, 6.475, 3.861, 0.5, 0.0]}),
        ("FlowMatchEulerDiscreteScheduler", {"sigmas": [1.0, 0.7, 0.2]}),
        ("FlowMatchEulerDiscreteScheduler", {"timesteps": [1000.0, 650.0, 30.0]}),
        ("FlowMatchEulerDiscreteScheduler", {"sigmas": [1.0, 0.7, 0.2], "timesteps": [900.0, 650.0, 30.0]}),
    ]
    with float64_diffusers():
        for name, chosen in cases:
            ours, theirs = getattr(diffusion, name)(), getattr(diffusers, name)()
            for scheduler in (ours, theirs):
                scheduler.set_timesteps(**chosen)
            x = torch.randn(SHAPE, dtype=torch.float32)
            for i in range(len(ours.timesteps)):
                ours.scale_model_input(x, ours.timesteps[i])
                m = model(x, i, {})
                seed = torch.Generator().manual_seed(i), torch.Generator().manual_seed(i)
                a = ours.step(m, ours.timesteps[i], x, generator=seed[0]).prev_sample
                b = theirs.step(m.double(), theirs.timesteps[i], x.double(), generator=seed[1]).prev_sample
                assert relative(a, b) <= 1e-6, (name, chosen)
                x = a
