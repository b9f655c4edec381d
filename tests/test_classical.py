"""The classical priors as populations: against closed forms, and through training."""

from __future__ import annotations

import re
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sfhzoo.diagnostics.quality import evaluate
from sfhzoo.errors import DataError
from sfhzoo.priors.training import train
from sfhzoo.simulations import checks, classical, diffstarpop, trainingset
from sfhzoo.timebins import TimeBins

ROOT = Path(__file__).parents[1]
BINS = TimeBins()
TODAY = BINS.age_today
COMMON = {
    "n": 1000, "n_test": 200, "seed": 7, "chunk": 4000, "log_mass_formed": [8.0, 12.5],
    "intervals": 7, "logzsol": [-2.0, 0.4], "logzsol_rms": 0.05, "logzsol_timescale": 1.5,
}  # fmt: skip
OWN = {
    "continuity": {"nu": 2, "scale": 0.3},
    "dirichlet": {"concentration": 1.0},
}
ENGINES = pytest.mark.parametrize("engine", list(OWN))


def draw(engine, chunks=1, **changes):
    """The chunks of a recipe, side by side."""
    recipe = {"engine": engine, **COMMON, **OWN[engine], **changes}
    drawn = list(islice(classical.generate(recipe, BINS), chunks))
    return {k: np.concatenate([c[k] for c in drawn]).astype(float) for k in drawn[0]}


def calc_log_mass(sfr):
    return np.log10(sfr.sum(axis=1) * BINS.width * 1e9)


# ---- both ---------------------------------------------------------------------------------------


@ENGINES
def test_masses_are_uniform_in_the_logarithm_and_metallicities_too(engine):
    drawn = draw(engine)
    mass = calc_log_mass(drawn["sfr"])
    assert stats.kstest(mass, "uniform", (8.0, 4.5)).pvalue > 1e-3
    mean = drawn["logzsol"].mean(axis=1)
    # the scatter in time moves a mean by 0.03 dex at most, against a range of 2.4
    assert stats.kstest(mean, "uniform", (-2.0, 2.4)).statistic < 0.03
    assert abs(np.corrcoef(mass, mean)[0, 1]) < 4.5 / np.sqrt(len(mass))


@ENGINES
def test_metallicities_are_constant_but_for_the_scatter_asked_for(engine):
    scatter = draw(engine, logzsol=[-1.0, -1.0])["logzsol"] + 1.0
    assert scatter.std() == pytest.approx(0.05, rel=0.02)
    lag = np.mean(scatter[:, :-7] * scatter[:, 7:]) / scatter.var()
    assert lag == pytest.approx(np.exp(-7 * BINS.width / 1.5), abs=0.02)
    assert np.ptp(draw(engine, logzsol_rms=0.0)["logzsol"], axis=1).max() == 0


@ENGINES
def test_the_numbers_depend_on_seed_and_chunk_only(engine):
    one, again, other = (draw(engine, 2, seed=s) for s in (7, 7, 8))
    assert all(np.array_equal(one[k], again[k]) for k in one)
    assert np.mean(one["sfr"] == other["sfr"]) < 0.01
    assert not np.array_equal(one["sfr"][:4000], one["sfr"][4000:])
    assert np.array_equal(one["sfr"][:4000], draw(engine, 1)["sfr"])


@ENGINES
def test_missing_and_unknown_keys_are_named(engine):
    recipe = {"engine": engine, **COMMON, **OWN[engine], "halo": 1}
    del recipe["seed"]
    with pytest.raises(DataError, match=r"unknown: \['halo', 'seed'\]"):
        next(classical.generate(recipe, BINS))


@pytest.mark.parametrize("given", [3.0, [10.0, 0.3], [0.3], [0.3, "ten"]])
def test_a_range_that_is_none_is_named(given):
    with pytest.raises(DataError, match=r"logzsol: expected two numbers \[low, high\], got"):
        draw("dirichlet", logzsol=given)


# ---- intervals ----------------------------------------------------------------------------------

EDGES = classical.calc_lookback_edges(TODAY, 7)
# bins that lie wholly in the four oldest intervals
INSIDE = [int((TODAY - lookback) / BINS.width) for lookback in (0.7, 2.0, 6.0, 12.5)]


def test_the_intervals_are_those_of_the_paper():
    # Leja et al. 2019 list 0, 30, 100, 330 Myr, 1.1, 3.6, 11.7 and 13.7 Gyr
    edges = classical.calc_lookback_edges(13.76, 7)
    np.testing.assert_allclose(edges, [0, 0.03, 0.1, 0.33, 1.1, 3.6, 11.7, 13.76], rtol=0.02)
    with pytest.raises(DataError, match="at least 4 intervals"):
        classical.calc_lookback_edges(TODAY, 3)


def test_a_jump_inside_a_bin_keeps_the_mass_of_both_sides():
    rate = np.array([[10.0, 10.0, 10.0, 1.0, 1.0, 1.0, 1.0]])  # ten times more since EDGES[3]
    sfr = classical.calc_steps(rate, np.array([10.0]), EDGES, BINS)[0]
    low = 1e10 / (TODAY + 9 * EDGES[3]) / 1e9
    assert sfr[0] == pytest.approx(low) and sfr[-1] == pytest.approx(10 * low)
    # the edge at 0.329 Gyr of lookback lies in the last bin but one
    part = (EDGES[3] - BINS.width) / BINS.width
    assert sfr[-2] == pytest.approx(low * (1 + 9 * part))
    assert calc_log_mass(sfr[None])[0] == pytest.approx(10.0)


# ---- continuity ---------------------------------------------------------------------------------


def test_log_ratios_of_whole_intervals_have_the_quartiles_of_students_t():
    # what underflows in the file has left the quartiles long before
    log_sfr = np.log10(np.maximum(draw("continuity", 4)["sfr"], 1e-37))
    for young, old in pairwise(INSIDE):
        ratio = log_sfr[:, young] - log_sfr[:, old]
        # quartiles of t(2) are +- sqrt(2/3); the error of a quartile from its density there
        expected = 0.3 * np.sqrt(2 / 3)
        error = np.sqrt(0.1875 / len(ratio)) / stats.t.pdf(np.sqrt(2 / 3), 2) * 0.3
        found = np.quantile(ratio, [0.25, 0.5, 0.75])
        np.testing.assert_allclose(found, [-expected, 0, expected], atol=4.5 * error)
        assert np.abs(ratio).max() > 5  # and its tails


def test_extreme_ratios_leave_finite_numbers_and_the_mass():
    rng = np.random.default_rng(0)
    rate = classical.draw_continuity(rng, (1000, 7), {"nu": 2, "scale": 300.0})
    assert (rate == 0).any() and (rate.max(axis=1) == 1).all()
    sfr = classical.calc_steps(rate, np.linspace(8, 12, 1000), EDGES, BINS)
    assert np.isfinite(sfr).all() and (sfr >= 0).all()
    np.testing.assert_allclose(calc_log_mass(sfr), np.linspace(8, 12, 1000), rtol=1e-12)


# ---- Dirichlet ----------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [1.0, 0.2])
def test_a_share_of_the_rates_has_the_beta_distribution(concentration):
    sfr = draw("dirichlet", 2, concentration=concentration)["sfr"][:, INSIDE]
    # of four of Dirichlet's shares, over their own sum; float32 loses what is below 1e-38
    share = sfr[:, 0] / sfr.sum(axis=1)
    expected = stats.beta(concentration, 3 * concentration)
    assert stats.kstest(share, expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("given", [0, -1.0])
def test_a_concentration_that_is_none_is_named(given):
    with pytest.raises(DataError, match="concentration: expected more than 0"):
        draw("dirichlet", concentration=given)


# ---- recipes, sets and training -----------------------------------------------------------------

SMALL = [
    (r"^n = .*", "n = 3000"), (r"^n_test = .*", "n_test = 900"), (r"^chunk = .*", "chunk = 1000"),
    (r"^steps = .*", "steps = 30"), (r"^batch = .*", "batch = 64"),
    (r"^network = .*", "network = { width = 16, blocks = 1 }"),
]  # fmt: skip


@pytest.fixture(scope="module", params=["continuity-v1", "dirichlet-v1"])
def workshop(request, tmp_path_factory):
    """(recipe, training set) of the project's recipe, made small."""
    place = tmp_path_factory.mktemp(request.param)
    text = (ROOT / f"recipes/{request.param}.toml").read_text(encoding="utf-8")
    # the prior it starts from has another width
    for pattern, small in [*SMALL, (r'"work/', '"'), (r"^start = .*\n", "")]:
        text, found = re.subn(pattern, small, text, flags=re.MULTILINE)
        assert found
    (place / "recipe.toml").write_text(text, encoding="utf-8")
    path = trainingset.build(place / "recipe.toml", place / f"{request.param}.zarr")
    return place / "recipe.toml", path


def test_a_set_says_what_it_rests_on_and_knows_no_halos(workshop):
    data = trainingset.load(workshop[1])
    assert data.attributes["sampling"] == "log-mass-formed" and data.galaxy == {}
    assert "Leja et al. 2019" in data.attributes["citation"]
    assert len(data.sfr) == 3000 and data.n_test == 900


def test_a_prior_is_trained_on_it_and_evaluated(workshop, tmp_path):
    recipe, path = workshop
    out = train(recipe, tmp_path / "prior")
    result = evaluate(out, path, n_draws=200)
    assert result["training_set"]["sha256"] == trainingset.load(path).sha256
    assert all(np.isfinite(m["value"]) for m in result["metrics"].values())


def test_its_population_is_checked_without_halos(workshop, tmp_path):
    result = checks.check(workshop[1], tmp_path)
    assert result["weights"] == "as drawn" and result["tables"]["stellar_to_halo_mass"] == []
    assert sum(row["n"] for row in result["tables"]["star_formation"]) > 500
    assert (tmp_path / "population.png").stat().st_size > 10_000


def test_each_fit_of_diffstarpop_cites_the_simulation_behind_it():
    names = {"tng": "IllustrisTNG", "smdpl_dr1": "UniverseMachine",
             "smdpl_dr1_nomerging": "UniverseMachine", "galacticus_in_situ": "Galacticus",
             "galacticus_in_plus_ex_situ": "Galacticus"}  # fmt: skip
    for fit, name in names.items():
        text = diffstarpop.cite(fit)
        assert text.startswith(diffstarpop.CITATION)
        assert [n for n in set(names.values()) if n in text] == [name]
