"""What schedulers do beyond the plain run: per-sample timesteps, seeds, guidance, configs, pipelines, adding noise."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle

import numpy as np
import pytest
import torch

import dlops
from dlops import diffusion

diffusers = pytest.importorskip("diffusers", reason="parity tests need diffusers")

SHAPE = (2, 3, 6, 5)
ONE_STEP = ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"]
SIGMAS = [
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_match_per_token_timesteps(stochastic):
    ours = diffusion.FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    x, m = torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
        tokens = scheduler.timesteps[torch.arange(14).reshape(2, 7) % 6]
        g = torch.Generator().manual_seed(0)
        step = scheduler.step(m, scheduler.timesteps[0], x, per_token_timesteps=tokens, generator=g)
        results.append(step.prev_sample)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert ours.step_index == theirs.step_index == 1


@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("device_like", [False, True])
def test_per_sample_timesteps(name, device_like):
    """Every sample steps from its own timestep, as it would alone."""
    scheduler = getattr(diffusion, name)()
    scheduler.set_timesteps(10)
    x, m = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    rows = [7, 0, 4]
    t = scheduler.timesteps[rows]
    if device_like:  # the lookup without reading, as it runs on an accelerator
        t = t.as_subclass(type("OnDevice", (torch.Tensor,), {}))
    if hasattr(scheduler, "is_scale_input_called"):
        scaled = scheduler.scale_model_input(x, t)
        assert torch.allclose(scaled[1], x[1] / (scheduler.sigmas[0] ** 2 + 1) ** 0.5)
    both = scheduler.step(m, t, x, seeds=[5, 6, 7])
    for i, row in enumerate(rows):
        alone = getattr(diffusion, name)()
        alone.set_timesteps(10)
        alone.is_scale_input_called = True
        alone.set_begin_index(row)
        one = alone.step(m[i : i + 1], alone.timesteps[row], x[i : i + 1], seeds=[5 + i])
        assert torch.equal(both.prev_sample[i], one.prev_sample[0])
        assert torch.equal(both.pred_original_sample[i], one.pred_original_sample[0])


def test_seeds_do_not_depend_on_the_batch():
    for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"):
        runs = []
        for seeds in ([11, 12, 13], [13]):
            scheduler = getattr(diffusion, name)()
            scheduler.set_timesteps(5)
            x = diffusion.randn((len(seeds), 3, 7, 5), seeds=seeds) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x = scheduler.step(torch.sin(scheduler.scale_model_input(x, t)), t, x, seeds=seeds).prev_sample
            runs.append(x)
        assert torch.equal(runs[0][2:], runs[1])


def test_learned_variance_with_seeds():
    scheduler = diffusion.DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(5)
    x = torch.randn(SHAPE)
    m = torch.randn(2, 6, 6, 5)
    both = scheduler.step(m, 800, x, seeds=[1, 2]).prev_sample
    assert torch.equal(both[1:], scheduler.step(m[1:], 800, x[1:], seeds=[2]).prev_sample)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_inside_the_step(name, rescale):
    """uncond= and guidance= equal guiding first and stepping then."""
    x, cond, uncond = torch.randn(3, *SHAPE)
    guided = uncond + 4.5 * (cond - uncond)
    if rescale:
        dims = (1, 2, 3)
        ratio = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = rescale * guided * ratio + (1 - rescale) * guided
    results = []
    for m, extras in ((guided, {}), (cond, {"uncond": uncond, "guidance": 4.5, "guidance_rescale": rescale})):
        scheduler = getattr(diffusion, name)()
        scheduler.set_timesteps(10)
        y = x
        for t in scheduler.timesteps[:3]:
            scheduler.scale_model_input(y, t)
            y = scheduler.step(m, t, y, **extras).prev_sample
        results.append(y)
    torch.testing.assert_close(*results, rtol=1e-5, atol=2e-5)


def test_in_place_and_tuple():
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        scheduler, other = getattr(diffusion, name)(), getattr(diffusion, name)()
        x, m = torch.randn(SHAPE), torch.randn(SHAPE)
        scheduler.set_timesteps(4)
        other.set_timesteps(4)
        expected = other.step(m, other.timesteps[0], x, return_dict=False)
        held = x
        got = scheduler.step(m, scheduler.timesteps[0], x, return_dict=False, out=x)
        assert got[0] is held and torch.equal(held, expected[0]) and len(got) == len(expected)
        output = other.step(m, other.timesteps[1], x)
        assert output[0] is output.prev_sample is output["prev_sample"]
        assert output.to_tuple()[0] is output.prev_sample


def test_gradient_flows_through_a_step():
    """requires_grad takes the torch path; the gradient is that of the affine map."""
    scheduler = diffusion.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    m = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def f(x, m):
        return scheduler.step(m, 500, x, return_dict=False)

    assert torch.autograd.gradcheck(f, (x, m))


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_forward_process_by_training_timestep(name):
    ours, theirs = getattr(diffusion, name)(), getattr(diffusers, name)()
    x, noise = torch.randn(2, 4, 3, 5)
    for t in (torch.tensor([0, 10, 500, 999]), torch.tensor([7]), torch.tensor([1, 2, 3, 4], dtype=torch.int32)):
        torch.testing.assert_close(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t), rtol=1e-5, atol=1e-5)
        ours_v, theirs_v = ours.get_velocity(x, noise, t), theirs.get_velocity(x, noise, t)
        torch.testing.assert_close(ours_v, theirs_v, rtol=1e-5, atol=1e-5)
    # in bfloat16 the weight of the data at t = 0 rounds to 1 and the noise is still there
    noisy = ours.add_noise(x.bfloat16(), noise.bfloat16(), torch.tensor([0]))
    assert not torch.equal(noisy, x.bfloat16())
    seeded = ours.add_noise(x, None, torch.tensor([3, 4, 5, 6]), seeds=[1, 2, 3, 4])
    expected = ours.add_noise(x, diffusion.randn(x.shape, seeds=[1, 2, 3, 4]), torch.tensor([3, 4, 5, 6]))
    torch.testing.assert_close(seeded, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SIGMAS)
def test_forward_process_by_schedule(name):
    ours, theirs = getattr(diffusion, name)(), getattr(diffusers, name)()
    x, noise = torch.randn(2, 4, 3, 5)

    def both(rows):
        results = []
        for scheduler in (ours, theirs):
            t = scheduler.timesteps[rows]
            if name.startswith("Flow"):
                results.append(scheduler.scale_noise(x, t, noise))
            else:
                results.append(scheduler.add_noise(x, noise, t))
        torch.testing.assert_close(*results, rtol=2e-5, atol=2e-5)

    if not name.startswith("DPM"):  # before set_timesteps diffusers' DPM solver reads its sigmas in the wrong order
        both([5, 100, 600, 999])
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    both([0, 3, 7, 11])
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(4)
    both([4, 4, 4, 4])


def test_from_config_between_schedulers_and_libraries():
    """A config made by diffusers gives the same scheduler here, also across classes; and back."""
    names = [name for name in diffusion.__all__ if name.endswith("Scheduler") and hasattr(diffusers, name)]
    vp = [name for name in names if not name.startswith("Flow")]
    for source, target in itertools.product(vp, vp):
        common = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "num_train_timesteps": 500}
        made = getattr(diffusers, source)(**common)
        ours, theirs = getattr(diffusion, target).from_config(made), getattr(diffusers, target).from_config(made.config)
        back = getattr(diffusers, target).from_config(ours.config)
        for key, value in theirs.config.items():
            if not key.startswith("_"):
                assert ours.config[key] == value == back.config[key], (source, target, key)
    config = {"_class_name": "X", "_diffusers_version": "1", "unheard_of": 3, "steps_offset": 1}
    extra = diffusion.DDIMScheduler.from_config(config)
    assert extra.config.steps_offset == 1 and extra.config["unheard_of"] == 3
    changed, unused = diffusion.DDIMScheduler.from_config(extra, return_unused_kwargs=True, clip_sample=False, other=1)
    assert changed.config.clip_sample is False and unused["other"] == 1


def test_save_and_load(tmp_path):
    ours = diffusion.DPMSolverMultistepScheduler(use_karras_sigmas=True, trained_betas=np.linspace(1e-4, 0.03, 1000))
    ours.save_pretrained(tmp_path / "scheduler")
    theirs = diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path / "scheduler")
    again = diffusion.DPMSolverMultistepScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert theirs.config.use_karras_sigmas and again.config.use_karras_sigmas
    torch.testing.assert_close(theirs.betas, again.betas)
    assert "DPMSolverMultistepScheduler" in repr(again)


def test_copies_are_independent():
    scheduler = diffusion.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(6)
    x = torch.randn(SHAPE)
    x = scheduler.step(torch.sin(x), scheduler.timesteps[0], x).prev_sample
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    expected = scheduler.step(torch.sin(x), scheduler.timesteps[1], x).prev_sample
    for other in copies:
        assert other.step_index == 1
        assert torch.equal(other.step(torch.sin(x), other.timesteps[1], x).prev_sample, expected)


def test_unscaled_input_is_reported_once(caplog):
    scheduler = diffusion.EulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    x = torch.randn(SHAPE)
    with caplog.at_level(logging.WARNING):
        for t in scheduler.timesteps:
            scheduler.step(x, t, x)
    assert caplog.text.count("scale_model_input") == 1


@pytest.mark.parametrize("name", [*ONE_STEP, "DPMSolverMultistepScheduler"])
def test_plain_step_is_one_op(name):
    """With seeds= a step calls one kernel, also with noise and guidance; nothing else but views runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    scheduler = getattr(diffusion, name)()
    scheduler.set_timesteps(10)
    x, m, u = torch.randn(3, *SHAPE)
    seeds = torch.tensor([1, 2])
    times = scheduler.timesteps.tolist()
    scheduler.is_scale_input_called = True
    for i in range(3):
        calls: list = []
        with Record():
            scheduler.step(m, times[i], x, seeds=seeds, uncond=u, guidance=2.0)
        assert [str(call) for call in calls] == ["dlops.diffusion_step.default"]


def test_diffusers_pipelines_run_with_our_schedulers():
    """An unconditional pipeline gives the same picture with our scheduler in it."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    for kind, extra in (("DDPM", {}), ("DDIM", {"eta": 0.5})):
        name = f"{kind}Scheduler"
        theirs = getattr(diffusers, name)(beta_schedule="squaredcos_cap_v2")
        made = getattr(diffusers, f"{kind}Pipeline")(unet, theirs)
        made.set_progress_bar_config(disable=True)
        pictures = []
        for scheduler in (made.scheduler, getattr(diffusion, name).from_config(made.scheduler)):
            made.scheduler = scheduler
            g = torch.Generator().manual_seed(4)
            pictures.append(made(batch_size=2, num_inference_steps=5, generator=g, output_type="np", **extra).images)
        np.testing.assert_allclose(*pictures, rtol=0, atol=2e-5)
    registered = diffusers.DDPMPipeline(unet, diffusion.DDPMScheduler())
    assert isinstance(registered.scheduler, diffusion.DDPMScheduler)


def test_backend_torch_gives_the_same_step():
    x, m = torch.randn(SHAPE), torch.randn(SHAPE)
    results = []
    for backend in ("auto", "torch"):
        scheduler = diffusion.DPMSolverMultistepScheduler(solver_order=3)
        scheduler.set_timesteps(6)
        with dlops.backend(backend):
            y = x
            for t in scheduler.timesteps:
                y = scheduler.step(m, t, y).prev_sample
        results.append(y)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_list_of_generators_and_cpu_rules():
    ours, theirs = diffusion.DDPMScheduler(), diffusers.DDPMScheduler()
    x, m = torch.randn(SHAPE), torch.randn(SHAPE)
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        results.append(scheduler.step(m, scheduler.timesteps[3], x, generator=generators).prev_sample)
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-5)
