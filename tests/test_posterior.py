"""A posterior's numbers follow from closed forms; its files come back, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfhzoo.errors import DataError
from sfhzoo.output import OUTPUT_FILES, OutputError, check_output
from sfhzoo.posterior import Posterior
from sfhzoo.report import format_table, write_ecsv
from sfhzoo.timebins import TimeBins

SUMMARY_KEYS = [
    "schema", "object", "redshift", "prior", "grid", "sampler", "n_samples", "seed", "device",
    "versions", "nfe", "wall_s", "n_pixels", "chi2_per_pixel", "warnings",
    "options", "input", "cosmology", "predictive", "facts", "quantities",
]  # fmt: skip


@pytest.fixture
def constant(posterior):
    """One Msun/yr at solar metallicity in all of cosmic time; half of the mass survives."""
    mass = posterior.cosmic_time * 1e9
    return replace(
        posterior,
        sfr=np.ones_like(posterior.sfr),
        logzsol=np.zeros_like(posterior.logzsol),
        mass_surviving=np.full(posterior.n_samples, 0.5 * mass),
    )


@pytest.fixture
def small(posterior, monkeypatch):
    """The posterior, saved without its figures: they are slow and tested elsewhere."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Posterior, "plot", lambda self: (Figure((1, 1)), Figure((1, 1))))
    return posterior


def medians(posterior):
    return {name: row["median"] for name, row in posterior.summary()["quantities"].items()}


def test_a_constant_history_has_the_quantities_of_its_closed_form(constant):
    now, found = constant.cosmic_time, medians(constant)
    assert found["log_mass_formed"] == pytest.approx(np.log10(now * 1e9), abs=1e-12)
    assert found["log_mass_surviving"] == pytest.approx(np.log10(0.5 * now * 1e9), abs=1e-12)
    assert found["age_mass_weighted"] == pytest.approx(now / 2, rel=1e-12)
    assert found["t50"] == pytest.approx(0.5 * now, rel=1e-12)
    assert found["t90"] == pytest.approx(0.9 * now, rel=1e-12)
    assert found["logzsol_mass_weighted"] == pytest.approx(0.0, abs=1e-12)
    assert found["log_sfr_100myr"] == pytest.approx(0.0, abs=1e-12)
    assert found["log_ssfr_1gyr"] == pytest.approx(-np.log10(0.5 * now * 1e9), abs=1e-12)


def test_stars_after_the_observation_count_nowhere(posterior):
    later = posterior.bins.edges[:-1] > posterior.cosmic_time
    assert later.sum() > 3
    changed = replace(posterior, sfr=np.where(later, 1e6, posterior.sfr))
    assert medians(changed) == medians(posterior)


def test_a_dead_galaxy_has_the_floors_of_its_star_formation_rates(constant):
    recent = constant.bins.edges[1:] > constant.cosmic_time - 1.5
    found = medians(replace(constant, sfr=np.where(recent, 0.0, constant.sfr)))
    assert found["log_sfr_100myr"] == -4.0
    assert found["log_ssfr_1gyr"] == -14.0


def test_the_summary_has_the_keys_of_its_schema_and_the_percentiles_of_the_samples(posterior):
    summary = posterior.summary()
    assert list(summary) == SUMMARY_KEYS
    row, values = summary["quantities"]["a_v"], posterior.parameters["a_v"].values
    assert row["unit"] == "mag"
    for key, level in (("median", 50), ("p16", 16), ("p84", 84), ("p2_5", 2.5), ("p97_5", 97.5)):
        assert row[key] == pytest.approx(np.percentile(values, level), rel=1e-12)
    assert summary["n_samples"] == 100
    assert summary["warnings"] == ["the mock is not a galaxy"]


def test_chi2_is_that_of_the_median_spectrum_with_the_files_errors_in_the_used_pixels(posterior):
    seen = posterior.observed
    offset = np.where(seen.used, 2.0, 1e4) / np.sqrt(np.where(seen.ivar > 0, seen.ivar, 1.0))
    shifted = replace(
        posterior, observed=replace(seen, flux=np.median(posterior.model_flux, axis=0) + offset)
    )
    assert shifted.summary()["chi2_per_pixel"] == pytest.approx(4.0, rel=1e-9)
    assert shifted.summary()["n_pixels"] == seen.mask.sum()


def test_a_sample_without_stars_is_named_in_a_warning_and_left_out(constant):
    sfr = constant.sfr.copy()
    sfr[0] = 0.0
    summary = replace(constant, sfr=sfr).summary()
    assert "t50 is undefined in 1 of 100 samples" in summary["warnings"]
    expected = constant.cosmic_time / 2
    assert summary["quantities"]["t50"]["median"] == pytest.approx(expected, rel=1e-12)
    json.dumps(summary, allow_nan=False)


def test_nothing_but_finite_numbers_or_null_reaches_the_summary(constant):
    seen = constant.observed
    empty = replace(
        constant,
        sfr=np.zeros_like(constant.sfr),
        observed=replace(seen, mask=np.zeros_like(seen.mask)),
    )
    summary = empty.summary()
    assert summary["chi2_per_pixel"] is None
    assert summary["quantities"]["log_mass_formed"]["median"] is None
    json.dumps(summary, allow_nan=False)
    assert "log_mass_formed" in format_table(summary)


def test_arrays_of_unequal_shape_are_refused(posterior):
    with pytest.raises(ValueError, match=r"expected logzsol of shape \(100, 64\), got \(99, 64\)"):
        replace(posterior, logzsol=posterior.logzsol[1:])


def test_a_saved_posterior_comes_back(small, tmp_path):
    out = small.save(tmp_path / "deep" / "out")
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUT_FILES)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    back = Posterior.load(out)
    for name in ("sfr", "logzsol", "mass_surviving", "model_flux"):
        np.testing.assert_array_equal(getattr(back, name), getattr(small, name))
    assert list(back.observed.mask_reasons) == list(small.observed.mask_reasons)
    np.testing.assert_array_equal(back.observed.ivar, small.observed.ivar)
    np.testing.assert_array_equal(back.sample_stats["chi2"], small.sample_stats["chi2"])
    assert back.parameters.keys() == small.parameters.keys()
    assert back.provenance == small.provenance
    assert back.summary() == small.summary()
    assert json.loads((out / "summary.json").read_text()) == small.summary()


def test_a_cosmology_without_a_name_comes_back(small, tmp_path):
    from astropy.cosmology import FlatLambdaCDM

    bins = TimeBins(FlatLambdaCDM(70, 0.3, name="mine"))
    back = Posterior.load(replace(small, bins=bins).save(tmp_path / "out"))
    # Peebles (1993) eq. 13.20 for a flat universe; 977.79 / H0 is the Hubble time in Gyr
    expected = 977.7922 / 70 * 2 / 3 / np.sqrt(0.7) * np.arcsinh(np.sqrt(0.7 / 0.3))
    assert back.bins.age_today == pytest.approx(expected, rel=1e-5)


def test_arviz_opens_the_samples_and_every_variable_has_a_unit_and_a_name(small, tmp_path):
    arviz = pytest.importorskip("arviz")
    import xarray

    out = small.save(tmp_path / "out")
    with xarray.open_datatree(out / "posterior.zarr", engine="zarr") as tree:
        data = arviz.InferenceData.from_datatree(tree.load())
    assert set(data.groups()) == {
        "posterior", "posterior_predictive", "observed_data", "sample_stats",
    }  # fmt: skip
    assert data.posterior["sfr"].dims == ("chain", "draw", "bin")
    for group in data.groups():
        for name, variable in data[group].variables.items():
            assert {"units", "long_name"} <= set(variable.attrs), name
    table = arviz.summary(data, var_names=["a_v"], kind="stats")
    expected = small.parameters["a_v"].values.mean()
    assert table["mean"]["a_v"] == pytest.approx(expected, abs=5e-4)


def test_the_table_of_quantities_reads_back_with_missing_values_masked(posterior, tmp_path):
    from astropy.table import Table

    summary = posterior.summary()
    for key in ("median", "p16", "p84", "p2_5", "p97_5"):
        summary["quantities"]["t90"][key] = None
    write_ecsv(summary, tmp_path / "s.ecsv")
    table = Table.read(tmp_path / "s.ecsv", format="ascii.ecsv")
    rows = {row["quantity"]: row for row in table}
    assert rows["a_v"]["median"] == summary["quantities"]["a_v"]["median"]
    assert rows["t90"]["median"] is np.ma.masked
    assert table.meta["prior"]["name"] == "diffstarpop-tng-v1"


def test_an_earlier_output_is_replaced_only_when_asked(small, tmp_path):
    out = small.save(tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        small.save(out)
    renamed = replace(small, provenance={**small.provenance, "object": "second"})
    renamed.save(out, overwrite=True)
    assert Posterior.load(out).object_name == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("foreign", ["thesis.tex", "summary.json"])
def test_overwriting_never_touches_a_directory_of_somebody_else(small, tmp_path, foreign):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / foreign).write_text("{}")
    with pytest.raises(OutputError, match="not an earlier output"):
        small.save(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / foreign).read_text() == "{}"


def test_overwriting_spares_an_output_to_which_somebody_added_a_file(small, tmp_path):
    out = small.save(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        small.save(out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failure_on_the_way_leaves_the_earlier_output_and_nothing_else(
    small, tmp_path, monkeypatch
):
    out = small.save(tmp_path / "out")

    def fail(summary, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sfhzoo.report.write_ecsv", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        small.save(out, overwrite=True)
    with pytest.raises(OutputError, match="No space left on device"):
        small.save(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert Posterior.load(out).object_name == small.object_name


@pytest.mark.parametrize("error", [RuntimeError("no font"), MemoryError(), KeyboardInterrupt()])
def test_a_failing_figure_leaves_the_earlier_output_and_nothing_else(
    small, tmp_path, monkeypatch, error
):
    out = small.save(tmp_path / "out")

    def fail(self):
        raise error

    monkeypatch.setattr(Posterior, "plot", fail)
    with pytest.raises(type(error)):
        replace(small, provenance={}).save(out, overwrite=True)
    with pytest.raises(type(error)):
        small.save(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert Posterior.load(out).object_name == small.object_name


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_earlier_output_returns_when_the_last_rename_fails(
    small, tmp_path, monkeypatch, error
):
    out = small.save(tmp_path / "out")
    rename = Path.rename

    def fail(self, target):
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        small.save(out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUT_FILES)


def test_an_interruption_leaves_nothing(small, tmp_path, monkeypatch):
    def interrupt(summary, path):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfhzoo.report.write_ecsv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError) as caught:
            check_output(place)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
    assert check_output(tmp_path / "new") == tmp_path / "new"
    assert os.listdir(tmp_path) == ["file"]


def test_loading_what_is_no_output_says_so(small, tmp_path):
    with pytest.raises(DataError, match=r"posterior\.zarr"):
        Posterior.load(tmp_path)


def test_a_posterior_of_a_newer_schema_is_refused(small, tmp_path):
    tree = small.to_datatree()
    tree.attrs["schema"] = 2
    tree.to_zarr(tmp_path / "posterior.zarr", zarr_format=2)
    with pytest.raises(DataError, match="expected a posterior of schema 1, got 2"):
        Posterior.load(tmp_path)
