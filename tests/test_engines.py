"""Which sampler serves which observation, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from galaxies import BINS, load_grid, make_observation, make_scaling

from sfhzoo.engines import (
    Engine,
    Observation,
    calc_snr_per_rest_pixel,
    choose_engine,
    list_outside_domain,
)
from sfhzoo.errors import ArtifactError, DataError, Incompatible, SamplingError, UsageError
from sfhzoo.forward.model import ForwardModel
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.priors.network import SpectralMLP
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.samplers.encoding import PIXEL_KMS
from sfhzoo.samplers.posterior_network import PosteriorNetwork

DOMAIN = {
    "redshift": [0.001, 1.2], "snr": [2.0, 200.0], "lsf_extra": [0.0, 250.0],
    "calibration": [0.0, 0.04], "min_segments": 8,
}  # fmt: skip


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


def change(case, **changes):
    return replace(case, problem=replace(case.problem, **changes))


def cut_to(case, n):
    """Only the first n pixels carry data."""
    ivar = case.problem.ivar.clone()
    ivar[n:] = 0
    return change(case, ivar=ivar)


class Failing:
    def __init__(self, error):
        self.error = error

    def sample(self, problem, n, generator):
        raise self.error


class Drawing:
    """Returns draws whose facts say how far they were moved."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def sample(self, problem, n, generator):
        one = torch.ones(n, 1)
        return Draws(one, one, one[:, 0], 1, {}, {"shift_per_coordinate": self.shift})


def serve(sampler, with_fallback=True):
    other = Engine(Drawing(), "pnpdm", "cpu", ())
    fallback = (lambda reason: other._replace(notes=(reason,))) if with_fallback else None
    engine = Engine(sampler, "amortized", "cpu", (), fallback)
    return engine.draw(make_case().problem, 3, torch.Generator())[1]


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        (Failing(SamplingError("too few arrived")), "too few arrived"),
        (Failing(DataError("no segment is filled")), "no segment is filled"),
        (Failing(torch.linalg.LinAlgError("not positive-definite")), "check the flux unit"),
        (Drawing(shift=1.4), "far from the data (1.4)"),
    ],
)
def test_where_the_network_turns_out_not_to_fit_another_serves_and_says_why(sampler, reason):
    engine = serve(sampler)
    assert engine.name == "pnpdm" and reason in engine.notes[0]


def test_draws_that_fit_are_kept():
    assert serve(Drawing(shift=0.6)).name == "amortized"


def test_without_a_fallback_failures_are_errors_of_the_sampler():
    with pytest.raises(SamplingError, match="too few"):
        serve(Failing(SamplingError("too few")), with_fallback=False)
    with pytest.raises(SamplingError, match="out of range"):
        serve(Failing(torch.linalg.LinAlgError("singular")), with_fallback=False)
    assert serve(Drawing(shift=1.4), with_fallback=False).name == "amortized"


def test_only_the_unasked_network_has_a_fallback(prior):
    assert choose("auto", prior, make_network()).fallback("late").notes == (
        "late: pnpdm is used, slower",
    )
    assert choose("amortized", prior, make_network()).fallback is None
    assert choose("pnpdm", prior).fallback is None


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
        (change(make_case(), calibration_order=9), "the calibration (order 9, 0.02) is beyond"),
        (change(make_case(), calibration_order=2, calibration_rms=0.1), "(order 2, 0.1)"),
        (cut_to(make_case(), 200), "fill 4 segments of 3 %"),
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
        calibration_order=0, calibration_rms=0.02,
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
