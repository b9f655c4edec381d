"""Cutouts and tables of stars: the same histories as from the snapshot, and clear refusals."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from astropy.cosmology import Planck15
from astropy.table import Table
from tngtree import HUBBLE, random_stars

from sfhzoo.errors import DataError
from sfhzoo.simulations import particles, startable, trainingset
from sfhzoo.simulations.galaxies import read_galaxies
from sfhzoo.timebins import TimeBins

BINS = TimeBins()
MSUN = 1e10 / HUBBLE
N_GALAXIES = 12
IDS = 1000 + 7 * np.arange(N_GALAXIES)


def write_recipe(directory, engine, source, columns=None, **changes):
    table = {
        "engine": engine, "source": str(source), "n_test": 2, "citation": "Somebody 2026",
        **changes,
    }  # fmt: skip
    lines = ['name = "mine-v1"', "[simulation]"]
    lines += [f"{k} = {v!r}".replace("'", '"') for k, v in table.items()]
    lines += (
        ["[simulation.columns]", *(f"{k} = {v!r}" for k, v in columns.items())] if columns else []
    )
    path = directory / "mine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def build(directory, engine, source, columns=None, workers=1, **changes):
    path = write_recipe(directory, engine, source, columns, **changes)
    return trainingset.load(trainingset.build(path, directory / "set.zarr", workers=workers))


@pytest.fixture(scope="module")
def sample():
    """Stars [star, 3] of each galaxy (scale factor, 1e10 Msun/h, metal fraction), float32."""
    rng = np.random.default_rng(8)
    sizes = rng.integers(5, 90, N_GALAXIES)
    found = [random_stars(rng, int(n)).astype(np.float32) for n in sizes]
    # the star that some tests spoil must not be wind
    found[0][3, 0] = 0.7
    return found


def check(data, sample, ids=IDS):
    """Every history against astropy's ages of its stars."""
    assert sorted(data.galaxy["source_id"]) == sorted(ids)
    for i, id in enumerate(data.galaxy["source_id"]):
        stars = sample[list(IDS).index(id)].astype(float)
        stars = stars[stars[:, 0] > 0]
        age = Planck15.age(1 / stars[:, 0] - 1).value
        mass, _ = np.histogram(age, BINS.edges, weights=stars[:, 1])
        metals, _ = np.histogram(age, BINS.edges, weights=stars[:, 1] * stars[:, 2])
        np.testing.assert_allclose(data.sfr[i], mass * MSUN / (BINS.width * 1e9), rtol=1e-5)
        full = mass > 0
        logz = np.log10(metals[full] / mass[full] / 0.0142)
        np.testing.assert_allclose(data.logzsol[i][full], logz, atol=1e-4)


# ---- cutouts ------------------------------------------------------------------------------------


@pytest.fixture
def cutouts(tmp_path, sample):
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for id, stars in zip(IDS, sample, strict=True):
        with h5py.File(folder / f"cutout_{id}.hdf5", "w") as f:
            f.create_group("Header").attrs.update(HubbleParam=HUBBLE, Time=1.0, Redshift=0.0)
            names = ("GFM_StellarFormationTime", "GFM_InitialMass", "GFM_Metallicity")
            for name, column in zip(names, stars.T, strict=True):
                f[f"PartType4/{name}"] = column
            f["PartType4/Masses"] = 0.6 * stars[:, 1]
    return folder


def test_cutouts_give_the_histories_of_their_stars(tmp_path, cutouts, sample):
    data = build(tmp_path, "cutouts", cutouts)
    check(data, sample)
    formed = data.sfr.sum(axis=1) * BINS.width * 1e9
    np.testing.assert_allclose(10.0 ** data.galaxy["log_mass_surviving"], 0.6 * formed, rtol=1e-5)
    assert data.attributes["checks"]["formed_over_surviving"] == pytest.approx(1 / 0.6, rel=1e-4)


def test_the_header_of_a_cutout_knows_its_subhalo_better_than_the_files_name(
    tmp_path, cutouts, sample
):
    with h5py.File(cutouts / f"cutout_{IDS[0]}.hdf5", "r+") as f:
        f["Header"].attrs["CutoutID"] = IDS[0]
    (cutouts / f"cutout_{IDS[0]}.hdf5").rename(cutouts / "download(3).hdf5")
    check(build(tmp_path, "cutouts", cutouts), sample)


def test_a_table_of_galaxies_selects_and_describes_them(tmp_path, cutouts, sample):
    known = IDS[::-1][:-1]
    table = Table(
        {
            "source_id": known,
            "flag": np.arange(len(known)) != 2,
            "log_halo_mass": 11 + 0.001 * known,
            "satellite": known % 2 == 0,
            "name": ["x"] * len(known),
        }
    )
    table.write(tmp_path / "galaxies.fits")
    data = build(tmp_path, "cutouts", cutouts, galaxies=str(tmp_path / "galaxies.fits"))
    check(data, sample, np.delete(known, 2))
    ids = data.galaxy["source_id"]
    np.testing.assert_allclose(data.galaxy["log_halo_mass"], 11 + 0.001 * ids)
    assert data.galaxy["satellite"].tolist() == (ids % 2 == 0).tolist()
    counts = data.attributes["checks"]["galaxies"]
    assert counts["not in the table of galaxies"] == 1 and counts["flagged as no galaxy"] == 1
    assert counts["found"] == sum(v for k, v in counts.items() if k != "found") == N_GALAXIES


def test_a_cutout_without_stars_is_dropped_and_counted(tmp_path, cutouts, sample):
    with h5py.File(cutouts / f"cutout_{IDS[4]}.hdf5", "r+") as f:
        del f["PartType4"]
    data = build(tmp_path, "cutouts", cutouts)
    check(data, sample, np.delete(IDS, 4))
    assert data.attributes["checks"]["galaxies"]["too few stars"] == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GFM_Metallicity", np.nan, r"cutout_1000\.hdf5: PartType4/GFM_Metallicity is nan"),
        ("GFM_InitialMass", -2.0, r"GFM_InitialMass is -2"),
        ("Masses", None, r"1 cutouts have no PartType4/Masses, first .*cutout_1000"),
        ("Masses", -1.0, r"Masses is -1"),
        ("GFM_StellarFormationTime", None, "expected a dataset PartType4/GFM_StellarFormation"),
        ("GFM_InitialMass", None, "expected a dataset PartType4/GFM_InitialMass, got only"),
    ],
)
def test_a_bad_cutout_is_named(tmp_path, cutouts, sample, name, value, message):
    with h5py.File(cutouts / f"cutout_{IDS[0]}.hdf5", "r+") as f:
        if value is None:
            del f[f"PartType4/{name}"]
        else:
            f[f"PartType4/{name}"][3] = value
    with pytest.raises(DataError, match=message):
        build(tmp_path, "cutouts", cutouts)


def test_the_surviving_mass_is_not_needed(tmp_path, cutouts, sample):
    for path in cutouts.iterdir():
        with h5py.File(path, "r+") as f:
            del f["PartType4/Masses"]
    data = build(tmp_path, "cutouts", cutouts)
    check(data, sample)
    assert "log_mass_surviving" not in data.galaxy


@pytest.mark.parametrize("key", ["Time", "CutoutID"])
def test_a_cutout_of_another_redshift_or_without_an_id_is_refused(tmp_path, cutouts, key):
    with h5py.File(cutouts / f"cutout_{IDS[0]}.hdf5", "r+") as f:
        f["Header"].attrs[key] = {"Time": 0.5, "CutoutID": "none"}[key]
    with pytest.raises(DataError, match=f"scale factor 0.5|{key} of Header cannot be"):
        build(tmp_path, "cutouts", cutouts)


def test_a_directory_without_cutouts_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a directory of cutouts .*--source"):
        build(tmp_path, "cutouts", tmp_path / "none")


# ---- tables of stars ----------------------------------------------------------------------------

COLUMNS = {"galaxy": "gal", "time": "t", "mass": "m", "metallicity": "z"}


def star_table(sample, **columns):
    """All stars in random order, some of them in no galaxy."""
    table = {
        "gal": np.concatenate([np.repeat(IDS, [len(s) for s in sample]), [-1, -1, -1]]),
        **{k: np.concatenate([v, [0.5, 0.5, 0.5]]) for k, v in columns.items()},
    }
    order = np.random.default_rng(4).permutation(len(table["gal"]))
    return {k: v[order] for k, v in table.items()}


def plain(sample):
    """Scale factor, 1e10 Msun/h, metal fraction."""
    t, m, z = np.concatenate(sample).T
    return star_table(sample, t=t, m=m, z=z)


def write(path, table, paths=1):
    """The table in as many files, by suffix; returns the pattern."""
    n = len(table["gal"])
    for i, some in enumerate(np.array_split(np.arange(n), paths)):
        part = {k: v[some] for k, v in table.items()}
        name = path.with_name(f"{path.stem}_{i}{path.suffix}")
        if path.suffix == ".hdf5":
            with h5py.File(name, "w") as f:
                for k, v in part.items():
                    f[f"PartType4/{k}"] = v
        elif path.suffix == ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pytest.importorskip("pyarrow").table(part), name)
        else:
            Table(part).write(name)
    return path.with_name(f"{path.stem}_*{path.suffix}")


@pytest.mark.parametrize("suffix", [".hdf5", ".parquet", ".fits"])
def test_stars_in_any_order_file_and_format_give_the_histories(
    tmp_path, sample, suffix, monkeypatch
):
    monkeypatch.setattr(particles, "BLOCK", 101)
    pattern = write(tmp_path / f"stars{suffix}", plain(sample), 3)
    prefix = "PartType4/" if suffix == ".hdf5" else ""
    columns = {k: prefix + v for k, v in COLUMNS.items()}
    data = build(tmp_path, "stars", pattern, columns, mass_unit=MSUN)
    check(data, sample)
    stars = data.attributes["checks"]["stars"]
    assert stars["read"] == sum(map(len, sample)) + 3 and stars["outside the galaxies"] == 3
    assert stars["wind"] == sum(int((s[:, 0] <= 0).sum()) for s in sample)


@pytest.mark.parametrize(
    ("unit", "convert"),
    [
        ("redshift", lambda a, age: 1 / a - 1),
        ("age-gyr", lambda a, age: BINS.age_today - age),
        ("age-yr", lambda a, age: (BINS.age_today - age) * 1e9),
        ("time-gyr", lambda a, age: age),
        ("time-yr", lambda a, age: age * 1e9),
    ],
)
def test_times_in_other_units_give_the_same_histories(tmp_path, sample, unit, convert):
    born = [s[s[:, 0] > 0].astype(float) for s in sample]
    a, m, z = np.concatenate(born).T
    time = convert(a, Planck15.age(1 / a - 1).value)
    table = star_table(born, t=time, m=m * MSUN, z=np.log10(z / 0.0142))
    pattern = write(tmp_path / "stars.fits", table)
    data = build(tmp_path, "stars", pattern, COLUMNS, time_unit=unit, metallicity_unit="logzsol")
    check(data, born)


def test_two_columns_together_name_a_galaxy_and_a_number_stands_for_none(tmp_path, sample):
    table = plain(sample)
    table["z"] = np.column_stack([table["z"], 9 + table["z"]])
    table["sub"] = np.where(table["gal"] < 0, 2**30, table["gal"] % 3)
    table["gal"] = np.where(table["gal"] < 0, 5, table["gal"] // 3)
    pattern = write(tmp_path / "stars.fits", table)
    data = build(
        tmp_path, "stars", pattern, {**COLUMNS, "galaxy": ["gal", "sub"]}, mass_unit=MSUN,
        unbound=2**30,
    )  # fmt: skip
    ids = data.galaxy["source_id"]
    data.galaxy["source_id"] = ids // 2**31 * 3 + ids % 2**31
    check(data, sample)


def spoil(column, value):
    def change(table):
        table[column] = table[column].astype(float)
        table[column][table["gal"] == IDS[3]] = value

    return change


def nothing(table):
    pass


@pytest.mark.parametrize(
    ("change", "recipe", "message"),
    [
        (spoil("t", np.nan), {}, r"the time \(t, scale-factor\) is nan"),
        (spoil("t", 7.0), {}, r"is 7 .* expected a scale factor, 0 to 1"),
        (spoil("t", 99.0), {"time_unit": "age-gyr"}, r"expected 0 to 13\.798 Gyr"),
        (spoil("m", -1.0), {}, r"the mass \(m\) is -1"),
        (spoil("m", np.nan), {}, r"the mass \(m\) is nan"),
        (spoil("z", 1.7), {}, r"the metallicity \(z\) is 1\.7 .* a mass fraction"),
        (spoil("gal", 0.5), {}, "expected whole numbers as ids"),
        (lambda t: t.pop("z"), {}, r"no columns \['z'\], only"),
        (lambda t: t["gal"].fill(-1), {}, "no star is in a galaxy"),
        (nothing, {"time_unit": "myr"}, "expected time_unit of .*'age-gyr'.*, got 'myr'"),
        (nothing, {"metallicity_unit": "x"}, "expected metallicity_unit"),
        (nothing, {"galaxies": "none.fits"}, "expected a table of galaxies at none.fits"),
    ],
)  # fmt: skip
def test_a_table_of_stars_that_cannot_be_used_is_refused_by_what_is_wrong(
    tmp_path, sample, change, recipe, message
):
    table = plain([s[s[:, 0] > 0] for s in sample])
    change(table)
    pattern = write(tmp_path / "stars.fits", table)
    with pytest.raises(DataError, match=message):
        build(tmp_path, "stars", pattern, COLUMNS, mass_unit=MSUN, **recipe)
    assert not (tmp_path / "set.zarr").exists()


@pytest.mark.parametrize("suffix", [".hdf5", ".parquet", ".fits", ".txt"])
def test_a_file_that_is_something_else_is_refused_by_its_name(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"stars{suffix}"
    path.write_bytes(b"neither one nor the other" * 300)
    with pytest.raises(DataError, match=rf"stars\{suffix}"):
        build(tmp_path, "stars", path, COLUMNS)


def test_missing_columns_of_the_recipe_are_named(tmp_path):
    with pytest.raises(DataError, match="galaxy, time, mass, metallicity, got galaxy"):
        build(tmp_path, "stars", tmp_path / "x.fits", {"galaxy": "gal"})


def test_unknown_galaxies_of_the_table_are_an_error_when_none_is_left(tmp_path, sample):
    Table({"source_id": [1, 2]}).write(tmp_path / "galaxies.ecsv")
    pattern = write(tmp_path / "stars.fits", plain(sample))
    with pytest.raises(DataError, match="none of its galaxies is among the 12 with stars"):
        build(tmp_path, "stars", pattern, COLUMNS, galaxies=str(tmp_path / "galaxies.ecsv"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ([np.array([2**40, 1]), np.array([1, 2])], "up to 2147483648"),
        ([np.array([0, 1]), np.array([2**31 + 5, 5])], "up to 2147483647"),
        ([np.array([2.0**60, 1.0])], "ids above 2.53 need integers"),
        ([np.array([[1, 2], [3, 4]])], "whole numbers"),
    ],
)
def test_ids_that_would_collide_are_refused(columns, says):
    with pytest.raises(DataError, match=says):
        startable.calc_galaxy_id(columns, -1, "stars.hdf5")


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("flag", ["True", "False"], "expected numbers .* in flag"),
        ("satellite", [1.0, np.nan], "satellite has gaps"),
        ("log_halo_mass", ["high", "low"], "in log_halo_mass"),
    ],
)
def test_what_is_known_of_galaxies_is_not_left_out_in_silence(tmp_path, column, values, says):
    path = tmp_path / "galaxies.ecsv"
    Table({"source_id": [1, 2], column: values}).write(path)
    with pytest.raises(DataError, match=says):
        read_galaxies(str(path), np.array([1, 2]))
