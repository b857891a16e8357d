"""Recipe F6: what diffusion must do whatever the network has learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dlops.courses.generative import exactness, f6_diffusion
from dlops.courses.generative.denoising import FLOW, PREDICTIONS, TIMESTEPS, Process, draw
from dlops.courses.generative.exactness import Gaussian, conversion_gap, gaussian_gap, round_trip
from dlops.courses.generative.f6_diffusion import DDIM, DPM, FLOW_EULER, MAIN, OTHERS, RUNNERS_UP, sampler_for
from dlops.models.diffusion.unet import UNet

PROCESSES = [MAIN, *OTHERS.values()]


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    """Networks this small lose much by a second thread where the cores are busy."""
    torch.set_num_threads(1)


def _images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> UNet:
    """Not trained, but not silent either: a fresh U-Net answers 0."""
    torch.manual_seed(0)
    network = UNet(channels=8, groups=4).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.05)
    return network


def test_every_prediction_says_the_same():
    assert conversion_gap() <= 1e-9


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_images_fade_into_unit_noise(process):
    ones = torch.ones(TIMESTEPS, 1, dtype=torch.float64)
    times = torch.arange(TIMESTEPS)
    alpha, sigma = (process.example(a, b, times)[0].flatten() for a, b in ((ones, 0 * ones), (0 * ones, ones)))
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert alpha[0] > 0.99 and sigma[-1] > 0.999
    torch.testing.assert_close(alpha + sigma if process.prediction == FLOW else alpha**2 + sigma**2, ones.flatten())


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_loss_of_a_perfect_answer_is_zero(process):
    """The network is told the timestep and shown the image that its target belongs to."""
    images, noise, times = _images(5, 1, 4, 4), _images(5, 1, 4, 4).flip(0), torch.tensor([0, 3, 500, 900, 999])
    noised, told, target = process.example(images, noise, times)
    if process.prediction != FLOW:
        scheduler = replace(sampler_for(process), settings={"clip_sample": False}).scheduler_for(process)
        scheduler.set_timesteps(TIMESTEPS)
    for k, timestep in enumerate(told):  # one step from any level to no noise at all lands on the image
        if process.prediction == FLOW:
            found = noised[k] - timestep.double() / TIMESTEPS * target[k]
        else:
            found = scheduler.step(target[k : k + 1], timestep, noised[k : k + 1]).pred_original_sample[0]
        torch.testing.assert_close(found, images[k], rtol=0, atol=1e-9)


def test_labels_are_hidden_at_the_stated_rate():
    seen = []

    class Spy(torch.nn.Module):
        null_class = 10

        def forward(self, x, t, labels):
            seen.append(labels)
            return x

    torch.manual_seed(0)
    labels = torch.arange(10).repeat(400)
    MAIN.loss(Spy(), torch.zeros(4000, 1, 1, 1), labels)
    hidden = seen[0] == 10
    assert hidden.double().mean().item() == pytest.approx(MAIN.drop_label, abs=0.02)
    assert torch.equal(seen[0][~hidden], labels[~hidden])


@pytest.mark.parametrize("sampler", (DDIM, *RUNNERS_UP, FLOW_EULER), ids=lambda s: s.name)
def test_every_sampler_draws_a_known_gaussian(sampler):
    assert gaussian_gap(OTHERS["flow matching"] if sampler is FLOW_EULER else MAIN, sampler) <= 1e-3


@pytest.mark.parametrize("prediction", PREDICTIONS[:3])
def test_ddim_draws_a_known_gaussian_from_every_prediction(prediction):
    assert gaussian_gap(Process(prediction), DDIM) <= 1e-3


def test_a_sampler_that_is_wrong_misses_the_gaussian():
    wrong = replace(RUNNERS_UP[-1], settings={**RUNNERS_UP[-1].settings, "beta_schedule": "linear"})
    process = Process("v_prediction", "squaredcos_cap_v2")

    class Mistaken(Gaussian):
        def answer(self, prediction, x, alpha, sigma):
            return super().answer(prediction, x, alpha, sigma) + 0.01 * x

    assert gaussian_gap(process, DDIM, Mistaken()) > 5e-3
    with pytest.raises(TypeError):  # a schedule of its own
        gaussian_gap(process, wrong)


def test_ddim_goes_to_noise_and_back(network):
    images, labels = _images(2, 1, 8, 8).float().clamp(-1, 1), torch.tensor([1, 2])
    coarse, fine = (
        (round_trip(network, MAIN, images, labels, steps) - images).square().mean().sqrt().item() for steps in (10, 20)
    )
    assert fine < 1e-2
    assert fine < 0.8 * coarse or coarse < 1e-6  # it closes as the steps shrink


def test_digits_depend_on_their_own_seed_only(network):
    labels, seeds = torch.tensor([3, 1, 4]), torch.tensor([5, 6, 7])
    sampler = replace(RUNNERS_UP[-1], steps=4)
    all_three = draw(network, MAIN, sampler, labels, seeds, 1.5, progress=False).images
    alone = draw(network, MAIN, sampler, labels[1:2], seeds[1:2], 1.5, progress=False).images
    torch.testing.assert_close(alone[0], all_three[1])
    assert all_three.abs().max() <= 1 and not torch.equal(all_three[0], all_three[1])


def test_unknown_prediction():
    with pytest.raises(ValueError, match="Process: prediction must be one of epsilon, sample, v_prediction, flow: got 'score'"):
        Process("score")


def test_the_recipe_uses_every_scheduler():
    from dlops import diffusion

    used = {sampler.scheduler for sampler in (DDIM, DPM, *RUNNERS_UP, FLOW_EULER)}
    assert used == {name for name in diffusion.__all__ if name.endswith("Scheduler")} - {"Scheduler"}
    assert {f6_diffusion.MAIN.prediction, *(p.prediction for p in OTHERS.values())} == set(PREDICTIONS)
    assert {p.schedule for p in PROCESSES} == set(exactness.SCHEDULES)
