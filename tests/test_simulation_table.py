"""Training sets from a table of histories: mass is kept, mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from sfhzoo.errors import DataError
from sfhzoo.simulations import checks, trainingset
from sfhzoo.simulations.table import calc_rebinning
from sfhzoo.timebins import TimeBins

BINS = TimeBins()
N = 50


def make_table(n_times=64):
    rng = np.random.default_rng(3)
    return Table(
        {
            "sfr": rng.lognormal(size=(N, n_times)),
            "logzsol": rng.uniform(-2, 0.3, (N, n_times)),
            "log_halo_mass": np.linspace(11, 14, N),
            "name": [f"galaxy {i}" for i in range(N)],
        }
    )


def build(directory, table, suffix=".fits", recipe=""):
    table.write(directory / f"histories{suffix}", overwrite=True)
    path = directory / "recipe.toml"
    path.write_text(
        f'name = "mine-v1"\n[simulation]\nengine = "table"\n'
        f'file = "{directory}/histories{suffix}"\n'
        f'{recipe or "n_test = 10"}\ncitation = "Somebody 2026"\n'
    )
    return trainingset.load(trainingset.build(path, directory / "set.zarr"))


@pytest.mark.parametrize("suffix", [".fits", ".ecsv"])
def test_histories_on_the_bins_are_kept_as_they_are_in_another_order(tmp_path, suffix):
    table = make_table()
    found = build(tmp_path, table, suffix)
    mass = found.galaxy["log_halo_mass"]
    assert not np.array_equal(mass, table["log_halo_mass"])
    order = np.searchsorted(table["log_halo_mass"], mass)
    np.testing.assert_allclose(found.sfr, table["sfr"][order], rtol=1e-6)
    np.testing.assert_allclose(found.logzsol, table["logzsol"][order], rtol=1e-5)
    assert found.n_test == 10 and found.attributes["citation"] == "Somebody 2026"
    assert "name" not in found.galaxy


def test_other_intervals_keep_the_mass_formed_and_the_mass_of_metals(tmp_path):
    table = make_table(n_times=23)
    edges = np.append(0.0, np.geomspace(0.2, BINS.age_today, 23))
    found = build(tmp_path, table, recipe=f"n_test = 10\nedges_gyr = {edges.tolist()}")
    order = np.searchsorted(table["log_halo_mass"], found.galaxy["log_halo_mass"])
    formed = table["sfr"][order] * np.diff(edges)
    metals = (formed * 10 ** table["logzsol"][order]).sum(axis=1)
    np.testing.assert_allclose(found.sfr.sum(axis=1) * BINS.width, formed.sum(axis=1), rtol=1e-5)
    carried = (found.sfr * 10.0**found.logzsol).sum(axis=1) * BINS.width
    # the floor of the weights moves the metallicity of a bin by 1e-4 at most
    np.testing.assert_allclose(carried, metals, rtol=1e-3)


def test_every_interval_is_shared_out_whole_between_the_bins():
    edges = np.append(0.0, np.geomspace(0.01, BINS.age_today, 100))
    shared = calc_rebinning(edges, BINS)
    np.testing.assert_allclose(shared.sum(axis=1), np.diff(edges), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(shared.sum(axis=0), BINS.width, rtol=1e-12)


def spoil(column, value):
    table = make_table()
    table[column][7, 5] = value
    return table


def without(column):
    table = make_table()
    table.remove_column(column)
    return table


@pytest.mark.parametrize(
    ("table", "recipe", "message"),
    [
        (spoil("sfr", np.nan), "", r"sfr\[7, 5\] is nan, expected Msun/yr"),
        (spoil("sfr", -1.0), "", r"sfr\[7, 5\] is -1"),
        (spoil("logzsol", -99.0), "", r"logzsol\[7, 5\] is -99, expected log10"),
        (without("logzsol"), "", "expected a column logzsol"),
        (make_table(30), "", "30 times, expected the 64 bins; give edges_gyr, the 31 edges"),
        (make_table(2), "n_test = 10\nedges_gyr = [0, 1]", "as many edges_gyr and one"),
        (
            make_table(2),
            "n_test = 10\nedges_gyr = [0, 3, 9]",
            "from 0 .* to 13.798 .*, got 0 to 9",
        ),
        (make_table(), "n_test = 50", "0 < n_test < 50 galaxies, got 50"),
        (make_table(), "n_test = 10\ntest = 5", r"unknown \['test'\]"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_what_is_wrong(tmp_path, table, recipe, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path, table, recipe=recipe)
    assert not (tmp_path / "set.zarr").exists()


def test_a_file_that_is_no_table_is_refused_by_its_path(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'name = "mine-v1"\n[simulation]\nengine = "table"\nfile = "none.fits"\ncitation = "x"\n'
    )
    with pytest.raises(DataError, match=r"none\.fits"):
        trainingset.build(tmp_path / "recipe.toml", tmp_path / "set.zarr")


def test_a_population_without_halo_masses_is_not_compared(tmp_path):
    table = make_table()
    table.remove_column("log_halo_mass")
    build(tmp_path, table)
    with pytest.raises(DataError, match=r"expected log_halo_mass .*, got \[\]"):
        checks.check(tmp_path / "set.zarr", tmp_path / "out")
