import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from dreambooth.errors import ModelError
from dreambooth.objectives import Diffusion, dreambooth_loss


def schedule(prediction: str, **options) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction, **options
    )


def batch(n: int = 6):
    g = torch.Generator().manual_seed(7)
    x0, noise, prediction = (torch.randn(n, 4, 8, 8, generator=g) for _ in range(3))
    return x0, noise, prediction, torch.tensor([0, 1, 250, 500, 900, 999])[:n]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_target_equal_the_schedulers_own(prediction):
    reference = schedule(prediction)
    objective = Diffusion(reference.alphas_cumprod, prediction)
    x0, noise, _, t = batch()
    torch.testing.assert_close(objective.add_noise(x0, noise, t), reference.add_noise(x0, noise, t), rtol=0, atol=1e-6)
    expected = noise if prediction == "epsilon" else reference.get_velocity(x0, noise, t)
    torch.testing.assert_close(objective.target(x0, noise, t), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 1.0, 5.0])
def test_per_example_losses_equal_a_numpy_reference(prediction, gamma):
    """ε and v from their definitions, min-SNR-γ from section 3.4 of its paper, all in float64."""
    objective = Diffusion(schedule(prediction).alphas_cumprod, prediction)
    abar = objective.alphas_cumprod.double().numpy()
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    np.testing.assert_allclose(abar, np.cumprod(1 - betas), rtol=2e-5)
    x0, noise, predicted, t = batch()
    losses = objective.loss(predicted, x0, noise, t, gamma)
    for i in range(len(t)):
        a = abar[t[i]]
        x, e, p = (v[i].double().numpy() for v in (x0, noise, predicted))
        target = e if prediction == "epsilon" else math.sqrt(a) * e - math.sqrt(1 - a) * x
        expected = np.mean((p - target) ** 2)
        if gamma is not None:
            snr = a / (1 - a)
            expected *= min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
        assert float(losses[i]) == pytest.approx(expected, rel=1e-5)


def test_a_masked_loss_is_the_mean_over_what_is_shown():
    objective = Diffusion(DDPMScheduler().alphas_cumprod, "epsilon")
    g = torch.Generator().manual_seed(0)
    prediction, x0, noise = (torch.randn(3, 4, 5, 6, generator=g) for _ in range(3))
    t, mask = torch.tensor([1, 500, 999]), (torch.rand(3, 5, 6, generator=g) > 0.4).float()
    error = (prediction.double() - noise.double()).square().numpy()
    shown = mask.bool().numpy()
    expected = [error[i][:, shown[i]].mean() for i in range(3)]
    np.testing.assert_allclose(objective.loss(prediction, x0, noise, t, mask=mask), expected, rtol=1e-6)
    whole = objective.loss(prediction, x0, noise, t)
    assert torch.equal(objective.loss(prediction, x0, noise, t, mask=torch.ones(3, 5, 6)), whole)


def test_zero_terminal_snr_gives_finite_targets_and_weights():
    betas = schedule("v_prediction", rescale_betas_zero_snr=True)
    objective = Diffusion(betas.alphas_cumprod, "v_prediction")
    x0, noise, predicted, _ = batch(1)
    t = torch.tensor([999])
    torch.testing.assert_close(objective.add_noise(x0, noise, t), noise, rtol=0, atol=1e-3)
    torch.testing.assert_close(objective.target(x0, noise, t), -x0, rtol=0, atol=1e-3)
    assert torch.isfinite(objective.loss(predicted, x0, noise, t, gamma=5.0)).all()


def test_dreambooth_loss_is_the_papers_sum_and_reports_its_parts():
    losses = torch.tensor([1.0, 3.0, 10.0, 20.0])
    loss = dreambooth_loss(losses, instances=2, prior_weight=0.5)
    assert (float(loss.instance), float(loss.prior), float(loss.total)) == (2.0, 15.0, 9.5)
    alone = dreambooth_loss(losses[:2], instances=2, prior_weight=0.5)
    assert alone.prior is None
    assert float(alone.total) == 2.0


def test_prior_weight_scales_the_class_images_gradient_and_nothing_else():
    def gradient(weight):
        losses = torch.tensor([1.0, 3.0, 10.0, 20.0], requires_grad=True)
        dreambooth_loss(losses, 2, weight).total.backward()
        return losses.grad.tolist()

    assert gradient(1.0) == [0.5, 0.5, 0.5, 0.5]
    assert gradient(0.25) == [0.5, 0.5, 0.125, 0.125]
    assert gradient(0.0) == [0.5, 0.5, 0.0, 0.0]


def test_timesteps_are_uniform_and_spread_over_each_batch():
    objective = Diffusion(schedule("epsilon").alphas_cumprod, "epsilon")
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([objective.sample_timesteps(4, g) for _ in range(3000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert torch.equal((drawn // 250).sort(1).values, torch.arange(4).expand(3000, 4)), "one from each quarter"
    for place in range(4):  # and each place in the batch sees all of them
        counts = torch.histc(drawn[:, place].float(), bins=10, min=0, max=1000)
        assert (counts / 3000 - 0.1).abs().max() < 0.03
    repeated = objective.sample_timesteps(4, torch.Generator().manual_seed(5))
    assert torch.equal(repeated, objective.sample_timesteps(4, torch.Generator().manual_seed(5)))


def test_other_predictions_are_refused():
    with pytest.raises(ModelError, match="sample"):
        Diffusion(torch.ones(10), "sample")
