"""Training sets: the stochastic parts against closed forms, the files against tampering."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sfhzoo.errors import ArtifactError, DataError, SfhzooError
from sfhzoo.simulations import checks, diffstarpop, trainingset
from sfhzoo.timebins import TimeBins

RECIPE = """
name = "tiny-v1"

[simulation]
engine = "{engine}"
fit = "{fit}"
n = 2000
n_test = 300
seed = {seed}
chunk = 500
log_halo_mass = [10.75, 14.75]
max_baryon_fraction = 0.8
burst_rms = 0.25
burst_timescales = [0.1, 1.0]

[simulation.metallicity]
ytp = 0.374
slope_lo = 0.60
slope_hi = 0.30
evolution = 0.70
surviving = 0.6
galaxy_rms = 0.10
time_rms = 0.07
time_timescale = 1.5
burst_slope = -0.2
relation_floor = -2.5
floor = -3.0
cap = 0.5
cap_width = 0.08
"""


def write_recipe(directory: Path, seed: int = 5, engine: str = "diffstarpop", fit: str = "tng"):
    path = directory / f"recipe-{seed}.toml"
    path.write_text(RECIPE.format(seed=seed, engine=engine, fit=fit), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Training sets of one recipe twice and of another seed once."""
    for name in ("diffstar", "diffmah", "dsps"):
        pytest.importorskip(name)
    where = tmp_path_factory.mktemp("sets")
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        trainingset.build(write_recipe(where, seed), where / f"{name}.zarr")
    return where


@pytest.fixture
def fake_set(tmp_path):
    """A training set written without any engine: constant SFR 1, solar metallicity."""
    sfr = np.ones((400, 64), np.float32)
    logzsol = np.zeros((400, 64), np.float32)
    mass = np.linspace(11, 13, 400).astype(np.float32)
    attributes = {
        "name": "fake-v1",
        "recipe": json.dumps({"metallicity": {"surviving": 0.5}}),
        "cosmology": "Planck15",
        "n_test": 100,
        "sha256": trainingset.content_hash([sfr, logzsol]),
    }
    path = tmp_path / "fake.zarr"
    data = {"sfr": sfr, "logzsol": logzsol, "log_halo_mass": mass}
    trainingset._write(path, data, attributes)
    return path


# ---- the stochastic parts -----------------------------------------------------------------------


def test_the_ornstein_uhlenbeck_paths_have_unit_variance_and_an_exponential_correlation():
    paths = diffstarpop.calc_ornstein_uhlenbeck(np.random.default_rng(1), (40_000, 30), 0.2, 1.0)
    # the variance of a variance of n Gaussians is 2 / n, of a correlation at most 1 / n
    np.testing.assert_allclose(paths.var(axis=0), 1, atol=4.5 * np.sqrt(2 / 40_000))
    for lag in (1, 5, 15):
        found = np.mean(paths[:, 3] * paths[:, 3 + lag])
        assert found == pytest.approx(np.exp(-0.2 * lag), abs=4 * np.sqrt(2 / 40_000))


def test_bursts_have_the_rms_asked_for():
    burst = diffstarpop.calc_burst_modulation(
        np.random.default_rng(2), 4000, TimeBins(), 0.25, [0.1, 1.0]
    )
    assert burst.shape == (4000, 640)
    assert burst.std() == pytest.approx(0.25, rel=0.02)
    # at a lag of 0.5 Gyr only the slow half is left: (e^-5 + e^-0.5) / 2
    lag = round(0.5 / (TimeBins().width / 10))
    found = np.mean(burst[:, :-lag] * burst[:, lag:]) / burst.var()
    step = lag * TimeBins().width / 10
    assert found == pytest.approx((np.exp(-step / 0.1) + np.exp(-step)) / 2, abs=0.03)


def test_the_soft_cap_leaves_low_values_alone_and_is_never_crossed():
    value = np.linspace(-3, 50, 2000)
    capped = diffstarpop.calc_soft_cap(value, 0.5, 0.08)
    np.testing.assert_allclose(capped[value < -1], value[value < -1], atol=1e-8)
    assert capped.max() <= 0.5
    assert np.all(np.diff(capped) >= 0)
    assert diffstarpop.calc_soft_cap(np.array([0.5]), 0.5, 0.08)[0] == pytest.approx(
        0.5 - 0.08 * np.log(2)
    )


# ---- training sets ------------------------------------------------------------------------------


def test_the_same_recipe_gives_the_same_histories_bit_for_bit(built):
    one, again = (trainingset.load(built / f"{k}.zarr") for k in ("one", "again"))
    assert one.sha256 == again.sha256
    assert np.array_equal(one.sfr, again.sfr) and np.array_equal(one.logzsol, again.logzsol)
    assert np.array_equal(one.galaxy["log_halo_mass"], again.galaxy["log_halo_mass"])


def test_another_seed_gives_other_histories(built):
    one, other = (trainingset.load(built / f"{k}.zarr") for k in ("one", "other"))
    assert one.sha256 != other.sha256
    assert np.mean(one.sfr == other.sfr) < 0.1


def test_histories_respect_the_baryons_the_floor_and_the_cap(built):
    data = trainingset.load(built / "one.zarr")
    assert data.sfr.shape == data.logzsol.shape == (2000, 64)
    formed = data.sfr.sum(axis=1, dtype=float) * data.bins.width * 1e9
    assert np.all(formed <= 0.8 * 0.1581 * 10.0 ** data.galaxy["log_halo_mass"])
    assert np.all(data.sfr >= 0) and np.isfinite(data.sfr).all()
    assert data.logzsol.min() >= -3.0 and data.logzsol.max() <= 0.5


def test_the_population_has_the_masses_and_quenched_fractions_of_its_simulation(built, tmp_path):
    result = checks.check(built / "one.zarr", tmp_path)
    rows = result["tables"]["star_formation"]
    for row in rows[3:]:
        assert row["quenched"] == pytest.approx(row["quenched_tng100"], abs=0.15)
        assert row["t50"] == pytest.approx(row["t50_tng100"], abs=1.5)
    assert (tmp_path / "population.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "population.json").read_text()) == result


def test_the_test_split_is_the_end_of_the_set(fake_set):
    data = trainingset.load(fake_set)
    assert data.split("train") == slice(0, 300)
    assert len(data.histories("train")[0]) == 300 and len(data.histories("test")[1]) == 100


def test_a_changed_value_is_refused_with_both_hashes(fake_set):
    import zarr

    expected = trainingset.load(fake_set).sha256
    array = zarr.open_group(str(fake_set), mode="r+")["sfr"]
    array[7, 7] = 1.5
    with pytest.raises(ArtifactError, match=f"expected {expected}, got [0-9a-f]{{64}}"):
        trainingset.load(fake_set)


def test_what_is_not_a_training_set_is_refused_by_its_path(tmp_path):
    with pytest.raises(ArtifactError, match=r"nothing\.zarr"):
        trainingset.load(tmp_path / "nothing.zarr")


def test_an_unknown_engine_is_refused_by_its_name(tmp_path):
    recipe = write_recipe(tmp_path, engine="eagle")
    with pytest.raises(DataError, match="eagle"):
        trainingset.build(recipe, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_an_unknown_fit_is_refused_with_the_known_ones(tmp_path):
    pytest.importorskip("diffstar")
    pytest.importorskip("dsps")
    with pytest.raises(SfhzooError, match="tng"):
        trainingset.build(write_recipe(tmp_path, fit="eagle"), tmp_path / "out.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe-5.toml"]


def test_a_recipe_that_is_not_toml_is_refused_by_its_path(tmp_path):
    (tmp_path / "bad.toml").write_text("name = ", encoding="utf-8")
    for name in ("bad.toml", "missing.toml"):
        with pytest.raises(DataError, match=name):
            trainingset.read_recipe(tmp_path / name)


def test_an_existing_training_set_is_never_overwritten(fake_set, tmp_path):
    before = trainingset.load(fake_set).sha256
    with pytest.raises(FileExistsError, match=r"fake\.zarr"):
        trainingset.build(write_recipe(tmp_path), fake_set)
    assert trainingset.load(fake_set).sha256 == before


# ---- the population checks ----------------------------------------------------------------------


def test_equal_weights_give_the_median_and_a_heavy_galaxy_its_own_value():
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert checks.calc_weighted_quantile(values, np.ones(5), 0.5) == 3.0
    heavy = np.array([1e-9, 1e-9, 1e-9, 1.0, 1e-9])
    assert checks.calc_weighted_quantile(values, heavy, 0.5) == pytest.approx(5.0, abs=1e-6)
    assert np.isnan(checks.calc_weighted_quantile(values[:0], heavy[:0], 0.5))


def test_the_halo_mass_function_falls_as_in_the_universe():
    log_n = checks.calc_log_halo_mass_function(np.array([11.0, 12.0, 13.0, 14.0, 15.0]))
    assert np.all(np.diff(log_n) < 0)
    # about 4e-3 halos per cubic Mpc and dex at 1e12 Msun, and an exponential end at clusters
    assert 2e-3 < 10 ** log_n[1] < 8e-3
    assert log_n[4] - log_n[3] < 1.5 * (log_n[2] - log_n[1])


def test_a_constant_sfr_population_has_its_closed_forms(fake_set):
    p = checks.calc_population(trainingset.load(fake_set))
    age = TimeBins().age_today
    np.testing.assert_allclose(p.log_mass_surviving, np.log10(0.5 * age * 1e9), rtol=1e-6)
    np.testing.assert_allclose(p.t50, age / 2, rtol=1e-6)
    np.testing.assert_allclose(p.ssfr, 1e-9 / (0.5 * age), rtol=1e-6)
    np.testing.assert_allclose([p.logzsol_mass, p.logzsol_light], 0, atol=1e-6)


def test_light_leans_to_the_young_stars_metallicity(fake_set):
    data = trainingset.load(fake_set)
    rising = np.broadcast_to(np.linspace(-2, 0, 64, dtype=np.float32), data.sfr.shape)
    p = checks.calc_population(
        trainingset.TrainingSet(data.sfr, rising, 100, data.attributes, data.galaxy)
    )
    assert np.all(p.logzsol_light > p.logzsol_mass + 0.05)


def test_empty_mass_bins_are_blank_in_the_table(fake_set, tmp_path):
    result = checks.check(fake_set, tmp_path / "out")
    rows = result["tables"]["star_formation"]
    assert [r["t50"] is None for r in rows] == [True, True, False, True, True]
    assert "| 8.75-9.25 | 0 |  |" in (tmp_path / "out" / "population.md").read_text()


def test_a_damaged_training_set_is_an_artifact_error(fake_set, tmp_path):
    import zarr

    broken = tmp_path / "broken.zarr"
    shutil.copytree(fake_set, broken)
    group = zarr.open_group(broken, mode="r+")
    group.attrs["n_test"] = "many"
    with pytest.raises(ArtifactError, match="expected a training set"):
        trainingset.load(broken)
    group.attrs["n_test"] = 10**6
    with pytest.raises(ArtifactError, match="test galaxies"):
        trainingset.load(broken)
    group.attrs.update(n_test=1, cosmology="Foo")
    with pytest.raises(ArtifactError, match="Foo"):
        trainingset.load(broken)
