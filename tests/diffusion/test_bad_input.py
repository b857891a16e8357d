"""Bad input: an error that names the argument, what came and what is allowed, or the right answer. Never a crash."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from dlops import diffusion

hypothesis = pytest.importorskip("hypothesis", reason="draws the inputs")
st = hypothesis.strategies

NAMES = [name for name in diffusion.__all__ if name.endswith("Scheduler") and name != "Scheduler"]
VP = [name for name in NAMES if not name.startswith("Flow")]
SHAPE = (2, 3, 4)


def make(name, steps=6, **config):
    scheduler = getattr(diffusion, name)(**config)
    scheduler.set_timesteps(steps)
    scheduler.is_scale_input_called = True
    return scheduler


def step(scheduler, **changes):
    arguments = {
        "model_output": torch.zeros(SHAPE),
        "timestep": scheduler.timesteps[0],
        "sample": torch.zeros(SHAPE),
        **changes,
    }
    return scheduler.step(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_step_before_set_timesteps(name):
    scheduler = getattr(diffusion, name)()
    scheduler.is_scale_input_called = True
    if name == "DDPMScheduler":  # its schedule is the training one until then, as in diffusers
        assert torch.isfinite(step(scheduler).prev_sample).all()
        return
    with pytest.raises(ValueError, match="set_timesteps"):
        step(scheduler)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.set_begin_index(0)


WRONG = [
    ({"sample": [1.0]}, TypeError, "sample must be a tensor"),
    ({"model_output": None}, TypeError, "model_output must be a tensor"),
    ({"sample": torch.zeros(SHAPE, dtype=torch.int64)}, ValueError, "sample must be floating point"),
    ({"model_output": torch.zeros(SHAPE, dtype=torch.complex64)}, ValueError, "model_output must be floating point"),
    ({"model_output": torch.zeros(2, 3, 5)}, ValueError, "model_output"),
    ({"sample": torch.zeros(()), "model_output": torch.zeros(())}, ValueError, "shape"),
    ({"model_output": torch.zeros(SHAPE, device="meta")}, (ValueError, RuntimeError), "meta"),
    ({"timestep": -3.5}, ValueError, "timestep must be one of"),
    ({"timestep": math.nan}, ValueError, "timestep must be one of"),
    ({"timestep": "now"}, ValueError, "timestep must be one of"),
    ({"timestep": None}, ValueError, "timestep must be one of"),
    ({"timestep": torch.tensor(123.25)}, ValueError, "timestep must be one of"),
    ({"timestep": torch.zeros(3)}, ValueError, "timestep must be|per-sample"),
    ({"timestep": torch.zeros(2, 2)}, ValueError, "timestep must be|per-sample"),
    ({"seeds": [1]}, ValueError, "seeds must have one entry per sample"),
    ({"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, "seeds must have one entry per sample"),
    ({"seeds": [0.5, 1]}, TypeError, "seeds must be ints"),
    ({"seeds": 3}, TypeError, "seeds must be"),
    ({"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "seeds exclude"),
    ({"guidance": 3.0}, ValueError, "need uncond"),
    ({"uncond": torch.zeros(2, 3), "guidance": 3.0}, ValueError, "uncond"),
    ({"out": torch.zeros(1)}, ValueError, "out"),
    ({"colour": 1}, TypeError, "colour"),
]


@pytest.mark.parametrize("changes, error, message", WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_step_arguments(name, changes, error, message):
    scheduler = make(name)
    with pytest.raises(error, match=message):
        step(scheduler, **changes)
    assert scheduler.step_index in (None, 0)  # a refused step moves nothing
    assert torch.isfinite(step(scheduler).prev_sample).all()


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", NAMES[-1]])
def test_an_index_is_not_a_timestep(name):
    for index in (0, torch.tensor(0), torch.tensor(0, dtype=torch.int32)):
        with pytest.raises(ValueError, match="not an index"):
            step(make(name), timestep=index)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("DD")])
def test_more_steps_than_there_are(name):
    scheduler = make(name, 2)
    for t in scheduler.timesteps:
        step(scheduler, timestep=t)
    with pytest.raises(ValueError, match="all 2 steps are done"):
        step(scheduler, timestep=scheduler.timesteps[1])


CONFIGS = [
    ({"prediction_type": "guess"}, "prediction_type"),
    ({"beta_schedule": "square"}, "beta_schedule"),
    ({"beta_start": -0.1}, "betas"),
    ({"beta_end": math.nan}, "betas"),
    ({"beta_end": 1.5}, "betas"),
    ({"trained_betas": [0.1, -0.1]}, "trained_betas"),
    ({"trained_betas": [0.1, math.nan]}, "trained_betas"),
    ({"trained_betas": []}, "trained_betas"),
    ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ({"num_train_timesteps": 2.5}, "num_train_timesteps"),
    ({"timestep_spacing": "random"}, "timestep_spacing"),
]


@pytest.mark.parametrize("config, message", CONFIGS)
@pytest.mark.parametrize("name", VP)
def test_configs(name, config, message):
    with pytest.raises(ValueError, match=message):
        getattr(diffusion, name)(**config)


OWN_CONFIGS = [
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "'dpmsolver\\+\\+', 'sde-dpmsolver\\+\\+'"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
    ("DPMSolverMultistepScheduler", {"solver_type": "rk4"}, "solver_type"),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "one"}, "final_sigmas_type"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "only one of"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type"),
    ("DDPMScheduler", {"variance_type": "free"}, "variance_type"),
    ("FlowMatchEulerDiscreteScheduler", {"time_shift_type": "cubic"}, "time_shift_type"),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 0.0}, "shift"),
    ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": -1}, "num_train_timesteps"),
]


@pytest.mark.parametrize("name, config, message", OWN_CONFIGS)
def test_own_configs(name, config, message):
    with pytest.raises(ValueError, match=message):
        getattr(diffusion, name)(**config)


@pytest.mark.parametrize("config, message", [
    ({"clip_sample_range": -1.0}, "clip_sample_range"),
    ({"thresholding": True, "dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio"),
    ({"thresholding": True, "sample_max_value": 0.0}, "sample_max_value"),
    ({"steps_offset": 5000}, "steps_offset"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_configs_that_set_timesteps_refuses(name, config, message):
    with pytest.raises(ValueError, match=message):
        make(name, **config)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "ten"])
@pytest.mark.parametrize("name", NAMES)
def test_number_of_steps(name, steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        make(name, steps)


def test_set_timesteps_arguments():
    for name, arguments, message in [
        ("DDIMScheduler", {"num_inference_steps": 1001}, "at most num_train_timesteps"),
        ("DDPMScheduler", {}, "exactly one of"),
        ("DDPMScheduler", {"timesteps": [3, 500]}, "must descend"),
        ("DDPMScheduler", {"timesteps": [5000, 500]}, "must lie in 0 to 999"),
        ("DDPMScheduler", {"num_inference_steps": 3, "timesteps": [3]}, "exactly one of"),
        ("DPMSolverMultistepScheduler", {"num_inference_steps": 3, "timesteps": [3]}, "exactly one of"),
        ("DPMSolverMultistepScheduler", {"num_inference_steps": 3, "mu": 0.5}, "use_dynamic_shifting"),
        ("EulerDiscreteScheduler", {}, "exactly one of"),
        ("EulerDiscreteScheduler", {"sigmas": [1.0]}, "two or more"),
        ("EulerDiscreteScheduler", {"sigmas": [1.0, -1.0]}, "two or more"),
        ("FlowMatchEulerDiscreteScheduler", {}, "one positive number"),
        ("FlowMatchEulerDiscreteScheduler", {"num_inference_steps": 2, "sigmas": [1.0]}, "one positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(diffusion, name)().set_timesteps(**arguments)
    with pytest.raises(ValueError, match="mu is needed"):
        diffusion.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).set_timesteps(4)
    for index in (-1, 6, 1.5):
        with pytest.raises(ValueError, match="begin_index"):
            make("DDIMScheduler").set_begin_index(index)


@pytest.mark.parametrize("eta", [-0.5, math.nan, 3.0])
def test_eta(eta):
    with pytest.raises(ValueError, match="eta"):
        step(make("DDIMScheduler"), eta=eta)


def test_learned_variance_needs_its_channels():
    with pytest.raises(ValueError, match="2C"):
        step(make("DDPMScheduler", variance_type="learned"))


def test_generators():
    for generator in ([torch.Generator()] * 3, []):
        with pytest.raises(ValueError, match="generator"):
            step(make("DDPMScheduler"), generator=generator)
    with pytest.raises(ValueError, match="generator and variance_noise"):
        step(make("DDIMScheduler"), eta=1.0, generator=torch.Generator(), variance_noise=torch.zeros(SHAPE))


def test_add_noise_arguments():
    x = torch.zeros(SHAPE)
    for name, timesteps in (("DDIMScheduler", torch.tensor([1000])), ("DDIMScheduler", -1), ("DDPMScheduler", 2.5)):
        with pytest.raises(ValueError, match="timesteps"):
            make(name).add_noise(x, x, timesteps)
    with pytest.raises(TypeError, match="timesteps must be integers"):
        make("DDIMScheduler").add_noise(x, x, torch.tensor([1.5]))
    with pytest.raises(ValueError, match="timestep must be one of"):
        make("EulerDiscreteScheduler").add_noise(x, x, torch.tensor([1.25]))
    with pytest.raises(ValueError):
        make("DDIMScheduler").add_noise(x, x, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError):
        make("DDIMScheduler").add_noise(x, None, 3)


@pytest.mark.parametrize("name", NAMES)
def test_from_config_refuses_what_is_no_config(name):
    for config in (None, 3, "path"):
        with pytest.raises(TypeError, match="config must be"):
            getattr(diffusion, name).from_config(config)
    with pytest.raises(FileNotFoundError, match="scheduler_config.json"):
        getattr(diffusion, name).from_pretrained("no such folder")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (1,), (3, 1)])
@pytest.mark.parametrize("extras", [{}, {"uncond": True, "guidance": 2.0, "guidance_rescale": 0.5}, {"seeds": True}])
def test_small_and_empty(name, shape, extras):
    scheduler, x = make(name), torch.zeros(shape)
    if extras.get("uncond"):
        extras = {**extras, "uncond": torch.ones(shape)}
    if extras.get("seeds"):
        extras = {**extras, "seeds": list(range(shape[0]))}
    result = scheduler.step(x, scheduler.timesteps[0], x, **extras).prev_sample
    assert result.shape == shape


def layouts(x):
    return {
        "transposed": x.transpose(0, -1).contiguous().transpose(0, -1),
        "sliced": torch.stack([x, x], dim=-1)[..., 0],
        "channels last": x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels last", "expanded"])
def test_any_layout(name, layout):
    torch.manual_seed(0)
    x, m, u = torch.randn(3, 2, 4, 3, 5)
    extras = {"seeds": [1, 2], "guidance": 2.0}
    if layout == "expanded":
        m = m[:1].expand(2, -1, -1, -1)
        given = (m, x, u)
        plain = (m.contiguous(), x, u)
    else:
        given, plain = [layouts(v)[layout] for v in (m, x, u)], (m, x, u)
    results = []
    for values in (given, plain):
        scheduler = make(name)
        y = values[1]
        for t in scheduler.timesteps[:3]:
            y = scheduler.step(values[0], t, y, uncond=values[2], **extras).prev_sample
        results.append(y)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_meta_and_fake_tensors(name):
    scheduler = make(name)
    x = torch.empty(SHAPE, device="meta")
    for _ in range(2):
        assert scheduler.step(x, scheduler.timesteps[0].to("meta"), x).prev_sample.shape == SHAPE
    scheduler = make(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.empty(SHAPE)
        for t in scheduler.timesteps.tolist()[:2]:
            assert scheduler.step(fake, t, fake).prev_sample.shape == SHAPE
    scheduler.set_timesteps(6)
    assert torch.isfinite(step(scheduler).prev_sample).all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_a_sample_stays_in_it(name):
    x = torch.zeros(SHAPE)
    x[0] = math.nan
    result = step(make(name), sample=x, seeds=[1, 2]).prev_sample
    assert result[0].isnan().all() and result[1].isfinite().all()


numbers = st.one_of(
    st.integers(-2000, 2000), st.floats(allow_nan=True, allow_infinity=True, width=32), st.booleans(), st.none()
)


@hypothesis.given(name=st.sampled_from(NAMES), timestep=numbers, steps=st.integers(1, 40))
def test_any_host_timestep(name, timestep, steps):
    """Either the step of that row, or a ValueError; never another row and never a crash."""
    scheduler = make(name, steps)
    known = timestep in scheduler.timesteps.tolist() if timestep is not None else False
    try:
        step(scheduler, timestep=timestep)
    except ValueError as error:
        assert "timestep" in str(error)
    else:
        assert known and scheduler.step_index == scheduler.index_for_timestep(timestep) + 1


@hypothesis.given(
    name=st.sampled_from(VP),
    start=st.floats(-0.5, 1.5) | st.just(math.nan),
    end=st.floats(-0.5, 1.5) | st.just(math.inf),
    schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "none"]),
    train=st.integers(-1, 50),
    steps=st.integers(-1, 60),
    spacing=st.sampled_from(["linspace", "leading", "trailing", "other"]),
    prediction=st.sampled_from(["epsilon", "sample", "v_prediction", "other"]),
    snr=st.booleans(),
)
def test_any_config(name, start, end, schedule, train, steps, spacing, prediction, snr):
    """A scheduler that takes a step, or a ValueError that names an argument."""
    try:
        scheduler = getattr(diffusion, name)(
            num_train_timesteps=train,
            beta_start=start,
            beta_end=end,
            beta_schedule=schedule,
            timestep_spacing=spacing,
            prediction_type=prediction,
            rescale_betas_zero_snr=snr,
        )
        scheduler.set_timesteps(steps)
    except ValueError as error:
        names = ("num_train", "beta", "num_inference", "timestep_spacing", "prediction_type", "rescale", "steps_offset")
        assert any(argument in str(error) for argument in names), error
        return
    result = step(scheduler).prev_sample
    assert result.shape == SHAPE


@hypothesis.given(
    name=st.sampled_from(NAMES),
    shapes=st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=4), min_size=3, max_size=3),
    dtypes=st.lists(
        st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int32]), min_size=3, max_size=3
    ),
    seeds=st.none() | st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4),
    guided=st.booleans(),
)
def test_any_tensors(name, shapes, dtypes, seeds, guided):
    """Equal shapes step; anything else is an error of the three kinds that torch gives."""
    sample, model_output, uncond = (torch.ones(s).to(d) for s, d in zip(shapes, dtypes))
    extras = {"uncond": uncond, "guidance": 2.0} if guided else {}
    scheduler = make(name)
    try:
        result = scheduler.step(model_output, scheduler.timesteps[0], sample, seeds=seeds, **extras)
    except (ValueError, TypeError, RuntimeError):
        return
    assert result.prev_sample.shape == sample.shape == model_output.shape
    assert result.prev_sample.is_floating_point()
