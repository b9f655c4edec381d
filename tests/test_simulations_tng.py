"""TNG's own files: every number of a small simulation, and every file that can be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units as u
from astropy.cosmology import Planck15, z_at_value
from tngtree import HUBBLE, Group, Subhalo, random_groups, random_stars, write_tree

from sfhzoo.errors import DataError, UsageError
from sfhzoo.simulations import chunks, hdf5, particles, tng, trainingset
from sfhzoo.timebins import TimeBins

BINS = TimeBins()
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
MSUN = 1e10 / HUBBLE


def scale_factor(gyr):
    return float(1 / (1 + z_at_value(Planck15.age, gyr * u.Gyr).value))


def star(index, mass=1.0, z=0.0142, part=0.5):
    """A star of `mass` code units formed at `part` of bin `index`."""
    return [scale_factor((index + part) * BINS.width), mass, z]


WIND = [-0.5, 3.0, 0.9]


def stars(*rows):
    return np.array(rows, float).reshape(-1, 3)


def known_groups():
    """Subhalos 0 to 8, each with a story (see the tests)."""
    return [
        Group(
            [
                # 0: two stars of one bin, one on its neighbour's side of the border, today's
                Subhalo(stars(star(10, 1.0, 0.0142), star(10, 3.0, 0.0284, 0.999),
                              star(11, 2.0, 0.00142, 0.001), WIND, star(63, 0.5, 0.0142, 0.999))),
                # 1: flagged
                Subhalo(stars(star(3), star(4)), flag=False),
                # 2: one bin above log Z/Z_sun = 0.5, though not on average
                Subhalo(stars(star(20, 9.0, 0.001), star(40, 0.1, 0.0142 * 10**0.52))),
                # 3: the first stars of a bin metal-rich, its mean is not
                Subhalo(stars(star(20, 1.0, 0.08), star(20, 9.0, 0.0142))),
            ],
            fuzz=stars(star(1), star(2), WIND),
            mass=200.0,
        ),
        # no subhalo at all
        Group([], fuzz=stars(star(5), star(6)), mass=0.0),
        Group(
            [
                # 4: six stars over three files of the snapshot
                Subhalo(stars(*(star(i, 1.0 + i) for i in (30, 31, 31, 32, 33, 34)))),
                # 5: too light
                Subhalo(stars(star(7, 4e-6)), mass=4e-6),
                # 6: wind only
                Subhalo(stars(WIND, WIND)),
                # 7: no stars
                Subhalo(stars(), mass=1.0),
                # 8: kept
                Subhalo(stars(star(0, 1.0, 0.0), star(50, 1.0, 0.001))),
            ],
            mass=50.0,
        ),
    ]  # fmt: skip


COUNTS = [3, 0, 14, 4]
"""Stars in the files of the known simulation: borders within subhalo 0 and twice within 4."""


def recipe(tmp_path, source, **changes):
    table = {
        "engine": "tng", "source": str(source), "n_test": 1, "min_mass": 1e5, "seed": 2,
        "citation": "Nelson et al. 2019", "empty_metallicity": 1e-11, **changes,
    }  # fmt: skip
    lines = ['name = "toy-v1"', "[simulation]"]
    for key, value in table.items():
        text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        lines.append(f"{key} = {text}")
    path = tmp_path / "toy.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def build(tmp_path, source, out="toy.zarr", *, setting=None, **changes):
    path = recipe(tmp_path, source, **changes)
    return trainingset.load(trainingset.build(path, tmp_path / out, **(setting or {})))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    where = tmp_path_factory.mktemp("known")
    outer = stars(star(8), WIND)
    output = write_tree(where / "sim", known_groups(), outer, COUNTS, catalogue_files=3)
    return output, build(where, output)


# ---- every number -------------------------------------------------------------------------------


def by_id(data, name):
    return dict(zip(data.galaxy["source_id"].tolist(), getattr(data, name), strict=True))


def expected_sfr(*pairs):
    sfr = np.zeros(64)
    for index, mass in pairs:
        sfr[index] += mass * MSUN / (BINS.width * 1e9)
    return sfr


def test_the_galaxies_kept_are_those_of_the_published_selection(known):
    _, data = known
    assert sorted(data.galaxy["source_id"]) == [0, 3, 4, 8]
    assert data.attributes["checks"]["galaxies"] == {
        "found": 9, "flagged as no galaxy": 1, "below the mass limit": 1, "too few stars": 2,
        "metallicity above the limit": 1, "kept": 4,
    }  # fmt: skip


def test_every_star_is_accounted_for(known):
    _, data = known
    # 17 stars in the galaxies read (0, 2, 3, 4, 6, 8) of 27, of them 3 wind
    assert data.attributes["checks"]["stars"] == {
        "read": 29, "outside the galaxies": 10, "wind": 3, "binned": 16,
    }  # fmt: skip
    assert by_count(data) == {0: 4, 3: 2, 4: 6, 8: 2}


def by_count(data):
    return dict(zip(data.galaxy["source_id"].tolist(), data.galaxy["n_stars"].tolist()))


def test_a_stars_initial_mass_over_the_width_of_its_bin_is_the_sfr(known):
    _, data = known
    sfr = by_id(data, "sfr")
    np.testing.assert_allclose(sfr[0], expected_sfr((10, 4), (11, 2), (63, 0.5)), rtol=1e-6)
    pairs = [(i, 1.0 + i) for i in (30, 31, 31, 32, 33, 34)]
    np.testing.assert_allclose(sfr[4], expected_sfr(*pairs), rtol=1e-6)
    np.testing.assert_allclose(sfr[8], expected_sfr((0, 1), (50, 1)), rtol=1e-6)


def test_metallicities_are_means_weighted_by_initial_mass(known):
    _, data = known
    logzsol = by_id(data, "logzsol")
    assert logzsol[0][10] == pytest.approx(np.log10((1 + 3 * 2) / 4), abs=1e-6)
    assert logzsol[0][11] == pytest.approx(-1, abs=1e-6)
    assert logzsol[3][20] == pytest.approx(np.log10((0.08 / 0.0142 + 9) / 10), abs=1e-6)


def test_bins_without_stars_get_the_metallicity_of_the_recipe(known):
    _, data = known
    logzsol = by_id(data, "logzsol")
    empty = by_id(data, "sfr")[0] == 0
    np.testing.assert_allclose(logzsol[0][empty], np.log10(1e-11 / 0.0142), rtol=1e-6)
    # stars without metals stand at the smallest metallicity, not at minus infinity
    assert logzsol[8][0] == pytest.approx(np.log10(1e-11 / 0.0142), rel=1e-6)


def test_empty_bins_may_carry_the_last_metallicity_on(known, tmp_path):
    data = build(tmp_path, known[0], empty_metallicity="carry")
    row = by_id(data, "logzsol")[0]
    np.testing.assert_allclose(row[:11], np.log10(7 / 4), atol=1e-6)
    np.testing.assert_allclose(row[11:63], -1, atol=1e-6)
    np.testing.assert_allclose(row[63], 0, atol=1e-6)


def test_what_the_catalogue_says_of_a_galaxy_stays_with_it(known):
    _, data = known
    order = np.argsort(data.galaxy["source_id"])
    column = {k: v[order] for k, v in data.galaxy.items()}
    assert column["satellite"].tolist() == [False, True, False, True]
    np.testing.assert_allclose(
        column["log_halo_mass"], np.log10(np.array([200, 200, 50, 50]) * MSUN), rtol=1e-6
    )
    surviving = [0.6 * 9.5, 0.6 * 10, 0.6 * 197, 0.6 * 2]
    np.testing.assert_allclose(
        column["log_mass_surviving"], np.log10(np.array(surviving) * MSUN), rtol=1e-6
    )


def test_the_set_says_what_it_was_made_of_and_leaves_nothing_beside_it(known):
    output, data = known
    assert data.attributes["sampling"] == "volume"
    assert data.attributes["citation"] == "Nelson et al. 2019"
    where = output.parents[1]
    assert sorted(p.name for p in where.iterdir()) == ["sim", "toy.toml", "toy.zarr"]
    import zarr

    test = zarr.open_group(str(where / "toy.zarr"), mode="r")["test"][...]
    assert test.tolist() == [False, False, False, True]


def test_min_mass_may_refer_to_the_total_mass_and_min_stars_to_stars_without_wind(known, tmp_path):
    data = build(tmp_path, known[0], mass="total", min_stars=4)
    assert sorted(data.galaxy["source_id"]) == [0, 4]
    assert data.attributes["checks"]["galaxies"]["below the mass limit"] == 0


def test_the_edges_of_the_bins_are_scale_factors_of_equal_steps_in_time():
    edges = particles.calc_scale_factor_edges(BINS)
    ages = Planck15.age(1 / edges[1:] - 1).value
    np.testing.assert_allclose(ages, BINS.edges[1:], rtol=1e-7)
    assert edges[0] == 0 and edges[-1] == 1
    np.testing.assert_array_equal(particles.calc_bin_index(edges, edges), [*range(64), 63])


# ---- many galaxies, against independent readers -------------------------------------------------


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    """A random simulation, its groups, and its training set made in one process."""
    where = tmp_path_factory.mktemp("random")
    rng = np.random.default_rng(11)
    groups = random_groups(rng)
    output = write_tree(
        where / "sim", groups, random_stars(rng, 50), [500, 0, 1, 3000, 1500], catalogue_files=4,
        offsets=True,
    )  # fmt: skip
    return output, groups, build(where, output)


def reference(stars_of, id):
    """SFR of one galaxy, by the definition, with astropy's age of each star."""
    rows = stars_of(id)
    rows = rows[rows[:, 0] > 0]
    age = Planck15.age(1 / rows[:, 0] - 1).value
    mass, _ = np.histogram(age, BINS.edges, weights=rows[:, 1])
    metals, _ = np.histogram(age, BINS.edges, weights=rows[:, 1] * rows[:, 2])
    return mass * MSUN / (BINS.width * 1e9), metals / np.maximum(mass, 1e-30)


def compare(data, stars_of):
    for i, id in enumerate(data.galaxy["source_id"]):
        sfr, z = reference(stars_of, id)
        np.testing.assert_allclose(data.sfr[i], sfr, rtol=1e-5, atol=1e-12)
        full = sfr > 0
        np.testing.assert_allclose(10.0 ** data.logzsol[i][full] * 0.0142, z[full], rtol=1e-4)


def test_a_random_simulation_agrees_with_its_definition_galaxy_by_galaxy(simulation):
    _, groups, data = simulation
    subhalos = [s for g in groups for s in g.subhalos]
    good = [i for i, s in enumerate(subhalos) if s.flag and (s.stars[:, 0] > 0).any()]
    assert sorted(data.galaxy["source_id"]) == good
    compare(data, lambda id: subhalos[id].stars.astype(np.float32).astype(float))


@pytest.mark.parity
def test_the_stars_of_a_subhalo_are_those_that_illustris_python_loads(simulation):
    il = pytest.importorskip("illustris_python")
    output, _, data = simulation
    names = ["GFM_StellarFormationTime", "GFM_InitialMass", "GFM_Metallicity"]

    def stars_of(id):
        columns = il.snapshot.loadSubhalo(str(output), 99, id, "stars", fields=names)
        return np.column_stack([columns[name] for name in names]).astype(float)

    compare(data, stars_of)


def test_offsets_computed_and_read_from_their_file_are_the_same(simulation):
    output, _, _ = simulation
    options = tng.TngOptions(engine="tng", citation="x", n_test=1)
    catalogue = tng.read_catalogue(output, options)
    found = tng.read_offsets(output, options, catalogue)
    np.testing.assert_array_equal(tng.calc_offsets(catalogue), found)
    assert found.max() > 1000


def same(one, other):
    assert one.sha256 == other.sha256
    assert one.attributes["checks"] == other.attributes["checks"]


def test_two_processes_and_computed_offsets_change_nothing(simulation, tmp_path):
    output, _, data = simulation
    copy = shutil.copytree(output, tmp_path / "alone" / "output")
    same(data, build(tmp_path, copy, setting={"workers": 2}))


def test_the_size_of_the_blocks_changes_roundings_only(simulation, tmp_path, monkeypatch):
    output, _, data = simulation
    monkeypatch.setattr(particles, "BLOCK", 37)
    found = build(tmp_path, output)
    assert found.attributes["checks"] == data.attributes["checks"]
    np.testing.assert_allclose(found.sfr, data.sfr, rtol=1e-6)
    np.testing.assert_allclose(found.logzsol, data.logzsol, atol=1e-6)


@pytest.mark.filterwarnings("default")
def test_a_dask_scheduler_may_do_the_work(simulation, tmp_path):
    distributed = pytest.importorskip("distributed")
    output, _, data = simulation
    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address=None, scheduler_port=0
    ) as cluster:
        found = build(
            tmp_path, output, "dask.zarr", setting={"scheduler": cluster.scheduler_address}
        )
    same(data, found)


def test_a_scheduler_that_does_not_answer_is_a_usage_error(simulation, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(*args, **options):
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(UsageError, match="no Dask scheduler answers at tcp://nowhere:1"):
        build(tmp_path, simulation[0], setting={"scheduler": "tcp://nowhere:1"})


# ---- resume -------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the signal that ends a build."""


def test_a_killed_build_goes_on_where_it_was_and_ends_the_same(simulation, tmp_path, monkeypatch):
    output, _, data = simulation
    calls = []

    def dying(job, fail=True):
        calls.append(job.path.name)
        if fail and len(calls) == 3:
            raise Killed
        return tng_sum_chunk(job)

    tng_sum_chunk = tng.sum_chunk
    monkeypatch.setattr(tng, "sum_chunk", dying)
    with pytest.raises(Killed):
        build(tmp_path, output)
    assert not (tmp_path / "toy.zarr").exists()
    left = sorted(p.name for p in (tmp_path / "toy.zarr.chunks").iterdir())
    assert left == ["chunk_00000.npz", "chunk_00001.npz", "plan.json"]
    # a damaged result is made again
    (tmp_path / "toy.zarr.chunks" / "chunk_00001.npz").write_bytes(b"PK\x03\x04 torn")
    monkeypatch.setattr(tng, "sum_chunk", lambda job: dying(job, fail=False))
    same(data, build(tmp_path, output))
    # the third file and those behind it, then the damaged one; file 1 has no stars
    assert calls[3:] == [f"snap_099.{i}.hdf5" for i in (3, 4, 5, 2)]


def test_results_of_another_recipe_are_not_taken(simulation, tmp_path):
    output, _, data = simulation
    folder = tmp_path / "toy.zarr.chunks"
    list(chunks.run_jobs(none, [Empty()], {"recipe": 1}, chunks.Setting(folder)))
    assert (folder / "chunk_00000.npz").exists()
    same(data, build(tmp_path, output))


class Empty:
    n = 1


def none(job):
    return particles.join_sums([])


# ---- files that are wrong -----------------------------------------------------------------------

GROUPS, SNAP = "groups_099/fof_subhalo_tab_099.{}.hdf5", "snapdir_099/snap_099.{}.hdf5"


def remove(name):
    return lambda output: (output / name).unlink()


def truncate(name):
    def change(output):
        data = (output / name).read_bytes()
        (output / name).write_bytes(data[: len(data) // 2])

    return change


def edit(name, dataset, value, row=0):
    def change(output):
        with h5py.File(output / name, "r+") as f:
            f[dataset][row] = value

    return change


def drop(name, dataset):
    def change(output):
        with h5py.File(output / name, "r+") as f:
            del f[dataset]

    return change


def header(name, key, value):
    def change(output):
        with h5py.File(output / name, "r+") as f:
            f["Header"].attrs[key] = value

    return change


def longer(name):
    def change(output):
        with h5py.File(output / name, "r+") as f:
            for dataset in (tng.TIME, tng.MASS, tng.METALS):
                values = f[dataset][...]
                del f[dataset]
                f[dataset] = np.concatenate([values, values])

    return change


def reshape(name, dataset, group=False):
    """One axis less, or no dataset at all."""

    def change(output):
        with h5py.File(output / name, "r+") as f:
            values = f[dataset][...]
            del f[dataset]
            if group:
                f.create_group(dataset)
            else:
                f[dataset] = values[:, :3]

    return change


def scale(dataset, factor):
    def change(output):
        for path in (output / "snapdir_099").iterdir():
            with h5py.File(path, "r+") as f:
                if dataset in f:
                    f[dataset][...] = f[dataset][...] * factor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(GROUPS.format(1)), r"tab_099\.1\.hdf5 is missing; fetch it"),
        (remove(SNAP.format(2)), r"snap_099\.2\.hdf5 is missing; fetch it"),
        (truncate(GROUPS.format(0)), r"tab_099\.0\.hdf5 is no readable .*fetch it again"),
        (truncate(SNAP.format(3)), r"snap_099\.3\.hdf5 is no readable HDF5 file"),
        (edit(SNAP.format(0), tng.TIME, np.nan), "FormationTime is nan at row 0"),
        (edit(SNAP.format(0), tng.TIME, 6.4), r"FormationTime is 6\.4 .* a scale factor up to 1"),
        (edit(SNAP.format(0), tng.MASS, -1.0), r"InitialMass is -1 .* 1e10 Msun/h"),
        (edit(SNAP.format(0), tng.METALS, 1.4), r"Metallicity is 1\.4 .* a mass fraction"),
        (edit(SNAP.format(0), tng.METALS, np.inf), "Metallicity is inf"),
        (scale(tng.MASS, 20), "times the galaxies' surviving mass"),
        (drop(SNAP.format(0), tng.METALS), "expected a dataset PartType4/GFM_Metallicity"),
        (drop(GROUPS.format(0), "Subhalo/SubhaloFlag"), "expected a dataset Subhalo/SubhaloFlag"),
        (header(GROUPS.format(0), "Nsubgroups_Total", 11), "9 subhalos in 3 files, expected 11"),
        (header(GROUPS.format(0), "HubbleParam", 0.704), r"h = 0\.704, Planck15 has 0\.6774"),
        (header(SNAP.format(4), "NumPart_ThisFile", [0, 0, 0, 0, 3, 0]), "expected 29"),
        (edit(GROUPS.format(0), "Group/GroupLenType", 2), "group 0 has fewer stars"),
        (edit(GROUPS.format(0), "Subhalo/SubhaloMassType", np.nan), "values that are no numbers"),
        (header(SNAP.format(2), "HubbleParam", 0.704), r"snap_099.2.hdf5: the simulation"),
        (header(SNAP.format(2), "HubbleParam", 0.678), "differ in HubbleParam or Time"),
        (header(SNAP.format(0), "HubbleParam", "abc"), "HubbleParam of Header cannot be 'abc'"),
        (header(SNAP.format(0), "Time", 0.5), r"scale factor 0\.5; histories to today"),
        (longer(SNAP.format(2)), "more stars than the 14 its header says"),
        (reshape(GROUPS.format(0), "Subhalo/SubhaloLenType"), r"expected 5 columns or more"),
        (reshape(SNAP.format(0), tng.MASS, group=True), "expected numbers in PartType4/GFM_Init"),
    ],
)  # fmt: skip
def test_a_damaged_or_wrong_file_is_named_with_what_was_expected(known, tmp_path, change, message):
    output = shutil.copytree(known[0], tmp_path / "output")
    if "h = 0" in message:
        for i in range(3):
            header(GROUPS.format(i), "HubbleParam", 0.704)(output)
    change(output)
    with pytest.raises(DataError, match=message) as e:
        build(tmp_path, output)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "toy.zarr").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_test": 4}, r"expected n_test < 4, the galaxies kept, got 4; .* 1 flagged"),
        ({"n_test": 0}, "n_test is 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"empty_metallicity": 0}, "empty_metallicity above 0 and up to 1, got 0"),
        ({"min_mass": 1e15}, "no galaxy passes the selection; dropped: 1 flagged"),
        ({"mass": "dark"}, "expected mass 'stars' or 'total', got 'dark'"),
        ({"empty_metallicity": "none"}, "'carry' or a number, got 'none'"),
        ({"min_masss": 1.0}, r"unknown \['min_masss'\]; known are .*min_mass"),
        ({"min_stars": 1.5}, r"min_stars cannot be 1\.5"),
        ({"cosmology": "Planck35"}, "expected one of astropy's cosmologies"),
        ({"snapshot": 98}, r"tab_098\.0\.hdf5 is missing"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_by_what_is_wrong(
    known, tmp_path, changes, message
):
    with pytest.raises(DataError, match=message):
        build(tmp_path, known[0], **changes)


def test_the_folder_of_partial_results_is_never_somebody_elses(known, tmp_path):
    mine = tmp_path / "toy.zarr.chunks"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'thesis\.txt'"):
        build(tmp_path, known[0])
    assert (mine / "thesis.txt").read_text() == "mine"


def test_what_was_summed_for_another_selection_is_not_used(known, tmp_path):
    output = shutil.copytree(known[0], tmp_path / "output")
    edit(SNAP.format(3), tng.TIME, np.nan)(output)
    with pytest.raises(DataError, match="FormationTime is nan"):
        build(tmp_path, output)
    assert list((tmp_path / "toy.zarr.chunks").glob("chunk_*.npz"))
    shutil.copy(known[0] / SNAP.format(3), output / SNAP.format(3))
    # subhalo 3, in the second file of the catalogue, is now no galaxy: rows move
    edit(GROUPS.format(1), "Subhalo/SubhaloFlag", False)(output)
    resumed, clean = build(tmp_path, output), build(tmp_path, output, out="clean.zarr")
    assert resumed.sha256 == clean.sha256 != known[1].sha256


def test_what_does_not_touch_the_sums_may_change_between_two_runs(known, tmp_path):
    output = shutil.copytree(known[0], tmp_path / "output")
    edit(SNAP.format(3), tng.TIME, np.nan)(output)
    with pytest.raises(DataError):
        build(tmp_path, output)
    done = lambda: {p.name: p.stat().st_mtime_ns for p in folder.glob("*.npz")}  # noqa: E731
    folder = tmp_path / "toy.zarr.chunks"
    before = done()
    with pytest.raises(DataError):
        build(tmp_path, output, seed=9, max_logzsol=1.0)
    assert before and done() == before


def test_sums_that_pile_up_become_one(monkeypatch):
    rng = np.random.default_rng(5)
    block = lambda: particles.sum_stars(  # noqa: E731
        particles.Stars(rng.integers(-1, 5, 300), rng.integers(-1, 8, 300), rng.random(300),
                        rng.random(300)), 8,
    )  # fmt: skip
    blocks = [block() for _ in range(6)]
    monkeypatch.setattr(particles, "PILE", 60)
    parts = []
    for b in blocks:
        particles.add_part(parts, b)
    assert sum(len(p["cell"]) for p in parts) <= 80
    whole, merged = (particles.StarSums(5, 8) for _ in range(2))
    whole.add(particles.join_sums(blocks))
    merged.add(particles.join_sums(parts))
    for name in ("mass", "metals", "count"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-5)
    assert (merged.read, merged.outside, merged.wind) == (whole.read, whole.outside, whole.wind)


def test_a_source_that_is_no_directory_is_refused_with_the_option_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"expected a directory with groups_099 .*--source"):
        build(tmp_path, tmp_path / "nowhere")


def test_files_of_the_first_illustris_have_other_names_and_no_flag(known, tmp_path):
    output = write_tree(tmp_path / "sim", known_groups(), snapshot=135, flags=False)
    (output / "groups_135").rename(tmp_path / "old")
    (output / "groups_135").mkdir()
    for i, path in enumerate(sorted((tmp_path / "old").iterdir())):
        path.rename(output / "groups_135" / f"groups_135.{i}.hdf5")
    data = build(tmp_path, output, snapshot=135, subhalo_flag=False)
    assert sorted(data.galaxy["source_id"]) == [0, 1, 3, 4, 8]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_recipes_of_particle_data_can_be_followed(path):
    from sfhzoo.priors.recipe import TrainingOptions

    table = trainingset.read_recipe(path)
    assert table["name"] == path.stem
    TrainingOptions.from_recipe(table, str(path))
    if table["simulation"]["engine"] == "tng":
        options = tng.TngOptions.from_table(table["simulation"])
        TimeBins(options.cosmology)
        assert options.max_logzsol == 0.5


def test_an_hdf5_file_is_opened_for_reading_only(known):
    with hdf5.open_hdf5(known[0] / GROUPS.format(0)) as f:
        assert f.mode == "r"


def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(known, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write into .*file"):
        build(tmp_path, known[0], out="file/toy.zarr")
