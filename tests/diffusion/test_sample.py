"""The sampling loop: the same samples as the loop written out, seeds, guidance, callbacks, and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from dlops import diffusion
from dlops.diffusion.sample import _Denoiser, _GraphStep

SHAPE = (3, 2, 4, 5)
SEEDS = [7, 8, 9]
NAMES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
]


def model(x, t, label=None, strength=1.0):
    assert t.shape == (x.shape[0],)
    shift = 0.0 if label is None else label.reshape(-1, 1, 1, 1).to(x.dtype) / 10
    return strength * torch.sin(x + t.reshape(-1, 1, 1, 1) / 1000) + shift


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_loop_written_out(name):
    scheduler, other = getattr(diffusion, name)(), getattr(diffusion, name)()
    result = diffusion.sample(model, SHAPE, scheduler, 6, seeds=SEEDS, progress=False)
    other.set_timesteps(6)
    x = diffusion.randn(SHAPE, seeds=SEEDS) * other.init_noise_sigma
    for t in other.timesteps:
        m = model(other.scale_model_input(x, t), t.expand(3))
        x = other.step(m, t, x, seeds=torch.tensor(SEEDS)).prev_sample
    assert torch.equal(result, x)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_depends_on_its_seed_only(name):
    together = diffusion.sample(model, SHAPE, getattr(diffusion, name)(), 5, seeds=SEEDS, progress=False)
    alone = diffusion.sample(model, (1, *SHAPE[1:]), getattr(diffusion, name)(), 5, seeds=[9], progress=False)
    torch.testing.assert_close(together[2:], alone, rtol=1e-6, atol=1e-6)  # torch.sin may round by position


def test_generators_repeat():
    def run(generator):
        return diffusion.sample(model, SHAPE, diffusion.DDPMScheduler(), 5, generator=generator, progress=False)

    one = [run(torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*one)
    many = [run([torch.Generator().manual_seed(i) for i in range(3)]) for _ in range(2)]
    assert torch.equal(*many) and not torch.equal(one[0], many[0])


@pytest.mark.parametrize("name", NAMES)
def test_guidance_runs_the_doubled_batch_once(name):
    calls = []
    label, null = torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0])

    def counting(x, t, label, strength):
        calls.append(x.shape[0])
        return SimpleNamespace(sample=model(x, t, label, strength))

    guided = diffusion.sample(
        counting,
        SHAPE,
        getattr(diffusion, name)(),
        4,
        seeds=SEEDS,
        guidance=3.0,
        guidance_rescale=0.4,
        model_kwargs={"label": label, "strength": 0.5},
        uncond_kwargs={"label": null, "strength": 0.5},
        progress=False,
    )
    assert calls == [6] * 4
    scheduler = getattr(diffusion, name)()
    scheduler.set_timesteps(4)
    x = diffusion.randn(SHAPE, seeds=SEEDS) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        cond, uncond = model(scaled, t.expand(3), label, 0.5), model(scaled, t.expand(3), null, 0.5)
        extras = {"uncond": uncond, "guidance": 3.0, "guidance_rescale": 0.4}
        x = scheduler.step(cond, t, x, seeds=torch.tensor(SEEDS), **extras).prev_sample
    torch.testing.assert_close(guided, x, rtol=1e-5, atol=1e-5)


def test_callback_progress_and_output_kinds(capsys):
    seen = []

    def callback(i, t, x):
        seen.append((i, t, tuple(x.shape)))

    tuple_model = lambda x, t: (model(x, t), "more")  # noqa: E731
    scheduler = diffusion.EulerDiscreteScheduler()
    diffusion.sample(tuple_model, SHAPE, scheduler, 3, seeds=SEEDS, callback=callback)
    assert [entry[0] for entry in seen] == [0, 1, 2] and seen[0][2] == SHAPE
    assert [entry[1] for entry in seen] == scheduler.timesteps.tolist()


def test_placement_latents_and_step_arguments():
    module = torch.nn.Conv2d(2, 2, 1).to(torch.float64)
    wrapped = torch.nn.Module()
    wrapped.inner = module
    wrapped.forward = lambda x, t: module(x)
    latents = torch.randn(SHAPE)
    result = diffusion.sample(
        wrapped,
        SHAPE,
        diffusion.DDIMScheduler(),
        3,
        latents=latents,
        eta=1.0,
        generator=torch.Generator(),
        progress=False,
    )
    assert result.dtype == torch.float64 and not result.requires_grad
    assert torch.equal(latents, latents.clone())
    half = diffusion.sample(
        model, SHAPE, diffusion.DDIMScheduler(), 3, seeds=SEEDS, dtype=torch.bfloat16, progress=False
    )
    assert half.dtype == torch.bfloat16


def test_start_in_the_middle():
    scheduler = diffusion.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    rows = []
    diffusion.sample(
        model,
        SHAPE,
        scheduler,
        None,
        latents=torch.randn(SHAPE),
        callback=lambda i, t, x: rows.append(i),
        progress=False,
    )
    assert rows == [5, 6, 7]


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_step_that_is_captured_equals_the_loop(name, guidance):
    """The body of the CUDA graph, replayed without a graph: counter and history live in tensors."""
    config = {"solver_order": 3} if name.startswith("DPM") else {}
    kwargs = {"label": torch.tensor([1, 2, 3])}
    guided = {} if guidance is None else {"guidance": guidance}
    uncond = {} if guidance is None else {"uncond_kwargs": {"label": torch.zeros(3)}}
    expected = diffusion.sample(
        model,
        SHAPE,
        getattr(diffusion, name)(**config),
        7,
        seeds=SEEDS,
        model_kwargs={"label": kwargs["label"].float()},
        progress=False,
        **guided,
        **uncond,
    )
    scheduler = getattr(diffusion, name)(**config)
    scheduler.set_timesteps(7)
    x = diffusion.randn(SHAPE, seeds=SEEDS) * scheduler.init_noise_sigma
    denoise = _Denoiser(model, 3, {"label": kwargs["label"].float()}, uncond.get("uncond_kwargs"))
    step = _GraphStep(scheduler, denoise, x, 0, {"seeds": torch.tensor(SEEDS), **guided})
    for _ in range(3):  # a warm-up
        step()
    step.reset()
    for _ in range(7):
        step()
    torch.testing.assert_close(step.x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_converges_on_known_data(name):
    """All schedulers find a Gaussian from its exact denoiser, through the public loop."""
    prediction = {} if name.startswith("Flow") else {"prediction_type": "epsilon"}
    scheduler = getattr(diffusion, name)(**prediction, **({"clip_sample": False} if name.startswith("DD") else {}))

    def exact(x, t):
        i = scheduler.index_for_timestep(float(t[0]))
        if name.startswith("Flow"):
            alpha, sigma = 1 - scheduler._sigmas[i], scheduler._sigmas[i]
        elif name.startswith("DPM"):
            alpha, sigma = (float(v) for v in scheduler._alpha_sigma(scheduler._sigmas[i]))
        elif name.startswith("DD"):
            a = scheduler._alphas_cumprod[int(t[0])]
            alpha, sigma = math.sqrt(a), math.sqrt(1 - a)
        else:  # the input comes scaled to unit variance
            alpha = 1 / math.sqrt(scheduler._sigmas[i] ** 2 + 1)
            sigma = scheduler._sigmas[i] * alpha
        x0 = 0.5 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.5)
        noise = (x - alpha * x0) / sigma
        return noise - x0 if name.startswith("Flow") else noise

    result = diffusion.sample(exact, (8, 2000), scheduler, 60, seeds=list(range(8)), progress=False)
    assert float(result.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(result.std()) == pytest.approx(0.5, rel=0.12)


REFUSED = [
    ({"scheduler": object()}, TypeError, "scheduler must be one of dlops.diffusion"),
    ({"guidance": 2.0}, ValueError, "guidance needs uncond_kwargs"),
    ({"generator": torch.Generator(), "seeds": SEEDS}, ValueError, "exclude each other"),
    ({"cuda_graph": True}, RuntimeError, "cuda_graph needs a CUDA device"),
    ({"steps": None}, ValueError, "set_timesteps was not called"),
    ({"latents": torch.zeros(1)}, ValueError, "latents must have shape"),
    ({"seeds": [1]}, ValueError, "seeds must have one entry per sample"),
    ({"guidance": 2.0, "uncond_kwargs": {"label": 1}}, ValueError, "same keys"),
    (
        {"guidance": 2.0, "model_kwargs": {"label": torch.zeros(3)}, "uncond_kwargs": {"label": torch.zeros(2)}},
        ValueError,
        "label must be",
    ),
    ({"guidance": 2.0, "model_kwargs": {"label": 1}, "uncond_kwargs": {"label": 2}}, ValueError, "label must be"),
]


@pytest.mark.parametrize("changes, error, message", REFUSED)
def test_refusals(changes, error, message):
    arguments = {"scheduler": diffusion.DDIMScheduler(), "steps": 3, **changes}
    with pytest.raises(error, match=message):
        diffusion.sample(model, SHAPE, progress=False, **arguments)
