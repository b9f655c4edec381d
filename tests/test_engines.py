"""Which sampler serves which observation, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from galaxies import BINS, load_grid, make_observation, make_scaling

from sfhzoo.engines import Observation, calc_snr_per_rest_pixel, choose_engine, list_outside_domain
from sfhzoo.errors import ArtifactError, Incompatible, UsageError
from sfhzoo.forward.model import ForwardModel
from sfhzoo.likelihood.problem import Problem
from sfhzoo.priors.network import SpectralMLP
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.samplers.encoding import PIXEL_KMS
from sfhzoo.samplers.posterior_network import PosteriorNetwork

DOMAIN = {"redshift": [0.001, 1.2], "snr": [2.0, 200.0], "lsf_extra": [0.0, 250.0]}


@pytest.fixture
def prior():
    schedule = NoiseSchedule()
    config = {
        "name": "normal", "sde": schedule.to_dict(), "scaling": make_scaling().to_dict(),
        "cosmology": "Planck15", "n_bins": 64, "training_set": {"sha256": "a" * 64},
    }  # fmt: skip
    return Prior(SpectralMLP(width=8, blocks=1, schedule=schedule), config)


def make_network(training_set="a" * 64, grid=None):
    network = object.__new__(PosteriorNetwork)
    grid = load_grid().sha256 if grid is None else grid
    network.name = "toy"
    network.config = {
        "domain": DOMAIN, "training_set": {"sha256": training_set}, "grid": {"sha256": grid},
    }  # fmt: skip
    return network


def make_case(snr=50.0, lsf_extra=30.0):
    model, _, _, error, y = make_observation(snr=snr)
    return Observation(Problem(model, y, error**-2, make_scaling()), lsf_extra, 1.0)


def choose(wanted, prior, network=None, case=None):
    return choose_engine(wanted, prior, load_grid(), network, case or make_case(), "cpu", False)


def test_a_network_that_fits_serves(prior):
    engine = choose("auto", prior, make_network())
    assert engine.name == "amortized (toy)" and engine.notes == ()


@pytest.mark.parametrize("name", ["pnpdm", "mmps", "cla"])
def test_samplers_by_score_are_served_by_name(prior, name):
    engine = choose(name, prior)
    assert engine.name == name and engine.sampler.prior is prior


def test_without_a_network_split_gibbs_serves_and_says_so(prior):
    engine = choose("auto", prior)
    assert engine.name == "pnpdm"
    assert "no posterior network for normal with" in engine.notes[0]
    with pytest.raises(ArtifactError, match="--network"):
        choose("amortized", prior)


def test_a_network_of_another_prior_or_grid_is_refused(prior):
    with pytest.raises(Incompatible, match="trained on the histories bbbb"):
        choose("auto", prior, make_network("b" * 64))
    with pytest.raises(Incompatible, match="another file of"):
        choose("amortized", prior, make_network(grid="c" * 64))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (make_case(lsf_extra=400.0), "broadening"),
        (make_case(snr=0.3), "below the posterior network's 2"),
    ],
)
def test_outside_its_domain_the_network_does_not_serve_unasked(prior, case, reason):
    engine = choose("auto", prior, make_network(), case)
    assert engine.name == "pnpdm" and reason in engine.notes[0]
    asked = choose("amortized", prior, make_network(), case)
    assert asked.name == "amortized (toy)" and "may be wrong" in asked.notes[0]


def test_a_redshift_outside_the_domain_is_found():
    far = SimpleNamespace(redshift=1.5)
    case = make_case()
    problem = replace(case.problem, ivar=case.problem.ivar)
    observed = replace(case, problem=SimpleNamespace(
        model=SimpleNamespace(redshift=far.redshift, wave_obs=problem.model.wave_obs),
        flux=problem.flux, ivar=problem.ivar, has_pixels=True,
    ))  # fmt: skip
    assert "redshift 1.5 is outside" in list_outside_domain(make_network(), observed)[0]


def test_without_data_no_network_serves(prior):
    case = make_case()
    dark = replace(case, problem=replace(case.problem, ivar=torch.zeros_like(case.problem.ivar)))
    assert choose("auto", prior, make_network(), dark).name == "pnpdm"


def test_the_signal_is_counted_per_pixel_of_the_networks_grid():
    case = make_case(snr=40.0)
    wave = torch.as_tensor(case.problem.model.wave_obs)
    step = float(torch.log(wave).diff().median()) * 299792.458
    expected = 40.0 * (PIXEL_KMS / step) ** 0.5
    assert calc_snr_per_rest_pixel(case.problem) == pytest.approx(expected, rel=0.2)
    assert isinstance(case.problem.model, ForwardModel) and BINS.n == 64


def test_an_unknown_name_is_refused(prior):
    with pytest.raises(UsageError, match=r"'pnpdm'.*got 'nuts'"):
        choose("nuts", prior)
