"""Prior networks and their sampler against the exact denoiser of a Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfhzoo.errors import Incompatible
from sfhzoo.histories import HistoryScaling
from sfhzoo.priors.network import SpectralMLP, build_network, build_score_model
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
N_BINS = 8
SHAPE = (2, N_BINS)
EIGENVALUES = torch.tensor(
    [80.0, 9.0, 3.0, 1.0, 0.5, 0.3, 0.1, 0.03, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6]
)


def make_basis(d: int = 2 * N_BINS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.linalg.qr(torch.randn((d, d), generator=generator, dtype=torch.float64))[0]


def make_gaussian_network() -> SpectralMLP:
    """Untrained: the exact score of N(0, Q diag(lambda) Q^T), but for Q and lambda in float32."""
    network = SpectralMLP(SHAPE, 16, 1, SCHEDULE, basis=make_basis(), eigenvalues=EIGENVALUES)
    return network.eval()


def make_prior(network: torch.nn.Module, n_bins: int = N_BINS) -> Prior:
    scaling = HistoryScaling("log", np.zeros((2, n_bins)), np.ones((2, n_bins)))
    config = {
        "name": "gaussian-v1",
        "kind": "prior",
        "sde": SCHEDULE.to_dict(),
        "scaling": scaling.to_dict(),
        "cosmology": "Planck15",
        "n_bins": n_bins,
    }
    return Prior(network, config)


# ---- schedule -----------------------------------------------------------------------------------


def test_time_and_noise_level_are_inverse_and_geometric():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma_t = SCHEDULE.sigma_at(t)
    torch.testing.assert_close(SCHEDULE.time_of(sigma_t), t)
    assert sigma_t[0].item() == pytest.approx(1e-3) and sigma_t[-1].item() == pytest.approx(16.0)
    assert sigma_t[5].item() == pytest.approx(np.sqrt(1e-3 * 16.0))


def test_the_noise_levels_are_those_of_score_models():
    model = build_score_model(make_gaussian_network(), SCHEDULE)
    t = torch.linspace(0, 1, 7)
    torch.testing.assert_close(model.sde.sigma(t).flatten(), SCHEDULE.sigma_at(t))


def test_training_levels_stay_on_the_schedule_and_follow_their_mixture():
    level = SCHEDULE.draw(200_000, torch.Generator().manual_seed(3)).log()
    assert level.min() >= np.log(1e-3) - 1e-5 and level.max() <= np.log(16.0) + 1e-5
    # 80 % N(-1.4, 1.6) and 20 % uniform, half of which lies below the middle of the range
    middle = 0.5 * (np.log(1e-3) + np.log(16.0))
    normal_below = 0.5 * (1 + torch.erf(torch.tensor((middle + 1.4) / (1.6 * 2**0.5))).item())
    assert (level < middle).float().mean().item() == pytest.approx(
        0.8 * normal_below + 0.1, abs=5e-3
    )


def test_sampling_levels_fall_from_the_largest_to_the_smallest_and_then_to_zero():
    levels = SCHEDULE.steps(40)
    assert len(levels) == 41
    assert levels[0].item() == pytest.approx(16.0) and levels[-2].item() == pytest.approx(1e-3)
    assert levels[-1] == 0 and torch.all(levels.diff() < 0)


# ---- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_t", [1e-3, 0.1, 1.0, 16.0])
def test_the_untrained_default_network_is_the_exact_denoiser_of_its_gaussian(sigma_t):
    prior = make_prior(make_gaussian_network())
    x = 3 * torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(1))
    q, lam = make_basis(), EIGENVALUES.double()
    wiener = q @ torch.diag(lam / (lam + sigma_t**2)) @ q.T
    expected = (x.double().flatten(1) @ wiener).view(-1, *SHAPE)
    found = prior.denoise(x, torch.full((5,), sigma_t))
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("sigma_t", [1e-3, 0.3, 16.0])
def test_the_untrained_score_is_minus_v_over_the_noised_variance_in_each_component(sigma_t):
    prior = make_prior(make_gaussian_network())
    # one history per component: its score points back along the same component
    x = make_basis().T.float().reshape(-1, *SHAPE)
    score = prior.score(x, torch.full((len(x),), sigma_t)).flatten(1).double() @ make_basis()
    expected = torch.diag(-1 / (EIGENVALUES.double() + sigma_t**2))
    off_diagonal = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(score, expected, rtol=2e-3, atol=off_diagonal)


def test_the_residual_has_unit_variance_for_the_gaussian_denoiser():
    """(D - x_0) / s has variance lambda / (lambda + s²) per component: the weight undoes it."""
    network, g = make_gaussian_network(), torch.Generator().manual_seed(2)
    n, q = 20_000, make_basis().float()
    v = torch.randn((n, 16), generator=g) * EIGENVALUES.sqrt()
    sigma_t = torch.full((n,), 0.2)
    x0 = (v @ q.T).view(-1, *SHAPE)
    noise = torch.randn(x0.shape, generator=g)
    with torch.no_grad():
        residual = network(SCHEDULE.time_of(sigma_t), x0 + 0.2 * noise) + noise
    weighed = network.weigh_residual(residual, sigma_t)
    # components far below float32's resolution of x / s carry rounding noise
    np.testing.assert_allclose(weighed.var(dim=0)[:8], 1, atol=4.5 * np.sqrt(2 / n))


@pytest.mark.parametrize(
    ("architecture", "hyperparameters"),
    [
        ("spectral-mlp", {"width": 32, "blocks": 2}),
        ("mlp", {"units": 32, "layers": 2}),
        ("ncsnpp", {"nf": 8, "ch_mult": [1, 2]}),
    ],
)
def test_every_architecture_runs_through_score_models(architecture, hyperparameters, capsys):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = build_network(architecture, hyperparameters, SCHEDULE).eval()
    prior = make_prior(network, 64)
    x = torch.randn((3, 2, 64), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        score = prior.score(x, torch.tensor([0.01, 1.0, 16.0]))
        again = prior.score(x, torch.tensor([0.01, 1.0, 16.0]))
        # a network output of order one is a score of order 1 / sigma
        output = network(SCHEDULE.time_of(torch.tensor([0.01, 1.0, 16.0])), x)
    assert score.shape == (3, 2, 64) and torch.isfinite(score).all()
    assert torch.equal(score, again) and prior.nfe == 2
    torch.testing.assert_close(score * torch.tensor([0.01, 1.0, 16.0]).view(3, 1, 1), output)
    assert capsys.readouterr().out == ""


def test_histories_of_one_batch_do_not_see_each_other():
    network = build_network("spectral-mlp", {"width": 32, "blocks": 2}, SCHEDULE).eval()
    torch.nn.init.normal_(network.out.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn((4, 2, 64), generator=torch.Generator().manual_seed(6))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    with torch.no_grad():
        alone = torch.cat([network(t[i : i + 1], x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(network(t, x), alone, rtol=1e-4, atol=1e-4)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(Incompatible, match=r"spectral-mlp.*got 'transformer'"):
        build_network("transformer", {}, SCHEDULE)


def test_hyperparameters_that_do_not_exist_are_refused():
    with pytest.raises(Incompatible, match="heads"):
        build_network("spectral-mlp", {"heads": 8}, SCHEDULE)


# ---- sampling -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def components() -> np.ndarray:
    """Draws of the Gaussian prior in units of its components' standard deviations [draw, 16]."""
    prior = make_prior(make_gaussian_network())
    x = prior.sample_x(20_000, torch.Generator().manual_seed(8), batch=20_000)
    return (x.flatten(1).double() @ make_basis() / EIGENVALUES.double().sqrt()).numpy()


def test_draws_have_the_variance_of_every_component_even_of_one_close_to_sigma_max(components):
    n = len(components)
    # the last step, from sigma_min to 0, ends on the posterior mean: it takes lambda / (lambda +
    # sigma_min²) of the variance. A start that ignores lambda would leave 0.76 of lambda = 80.
    lam = EIGENVALUES.double().numpy()
    expected = lam / (lam + SCHEDULE.sigma_min**2)
    np.testing.assert_allclose(components.var(axis=0), expected, atol=3 * np.sqrt(2 / n))


def test_draws_are_centred_uncorrelated_and_gaussian(components):
    n = len(components)
    np.testing.assert_allclose(components.mean(axis=0), 0, atol=4 / np.sqrt(n))
    correlation = np.corrcoef(components.T) - np.eye(16)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)
    kurtosis = np.mean(components[:, :8] ** 4, axis=0) / components[:, :8].var(axis=0) ** 2
    np.testing.assert_allclose(kurtosis, 3, atol=4 * np.sqrt(24 / n))


def test_draws_depend_on_the_generator_only():
    prior = make_prior(make_gaussian_network())
    a, b, c = (
        prior.sample_x(10, torch.Generator().manual_seed(seed), steps=8) for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_heun_draw_costs_two_evaluations_a_step_less_one():
    prior = make_prior(make_gaussian_network())
    prior.sample_x(4, torch.Generator().manual_seed(1), steps=12)
    assert prior.nfe == 2 * 12 - 1


def test_sampled_histories_are_those_of_sampled_x():
    prior = make_prior(make_gaussian_network())
    x = prior.sample_x(6, torch.Generator().manual_seed(9), steps=8)
    drawn = prior.sample(6, torch.Generator().manual_seed(9), steps=8)
    expected = np.maximum(10.0 ** x[:, 0].double().numpy() - 1e-4, 0)
    np.testing.assert_allclose(drawn.sfr, expected, rtol=1e-10)
