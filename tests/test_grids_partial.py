"""Grids written one metallicity at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfhzoo.errors import GridError
from sfhzoo.grids.partial import PartialGrid
from sfhzoo.grids.ssp import SSPGrid

AXES = {
    "logzsol": np.array([-1.0, 0.0, 0.5]),
    "age": np.array([1e6, 1e8, 1e10, 2e10]),
    "wave": np.linspace(3000.0, 8000.0, 3000),
    "resolution_fwhm": np.full(3000, 2.0),
    "valid": np.array([True, True, False]),
}
FLUX = np.random.default_rng(5).uniform(0.1, 1.0, (3, 4, 3000))
MASS = np.array([1.0, 0.8, 0.5, 0.4]) * np.array([[1.0], [0.99], [0.98]])


def start(path: Path, build: dict[str, int] | None = None) -> PartialGrid:
    partial = PartialGrid.open(path, build or {"recipe": 1})
    if not partial.ready:
        partial.create("fake-v1", AXES, {"engine": "fake"})
    return partial


def write(partial: PartialGrid, k: int) -> None:
    partial.write_node(k, FLUX[k], MASS[k], 10)


def test_the_file_is_the_one_that_writing_at_once_gives(tmp_path: Path) -> None:
    path = tmp_path / "fake-v1.zarr.zip"
    partial = start(path)
    for k in (2, 0, 1):
        write(partial, k)
    grid = SSPGrid.read(partial.finish(path))
    assert np.abs(grid.flux / FLUX - 1).max() <= 2.0**-11 * 1.0001
    assert np.array_equal(grid.surviving_mass_fraction, MASS)
    for name, values in AXES.items():
        assert np.array_equal(getattr(grid, name), values), name
    assert (grid.name, grid.attributes) == ("fake-v1", {"engine": "fake"})
    again = SSPGrid.read(grid.write(tmp_path / "again.zarr.zip"))
    assert np.array_equal(again.flux, grid.flux)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.zarr.zip", path.name]


def test_the_order_and_the_interruptions_leave_no_trace_in_the_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "fake-v1.zarr.zip", tmp_path / "b" / "fake-v1.zarr.zip"
    partial = start(first)
    for k in range(3):
        write(partial, k)
    partial.finish(first)
    write(start(second), 2)
    # what a killed process leaves: chunks without their node, and a file not renamed yet
    half = start(second)
    half._open()["flux"][0] = 7.0
    (half.directory / "grid" / "flux" / "c" / "0.x.partial").write_bytes(b"half")
    partial = start(second)
    assert partial.done() == {2}
    for k in (0, 1):
        write(partial, k)
    partial.finish(second)
    assert first.read_bytes() == second.read_bytes()


def test_another_build_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "fake-v1.zarr.zip"
    write(start(path), 1)
    assert start(path).done() == {1}
    assert PartialGrid.open(path, {"recipe": 2}).done() == set()


def test_a_directory_that_is_no_build_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "fake-v1.partial"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    with pytest.raises(GridError, match="move it away"):
        PartialGrid.open(tmp_path / "fake-v1.zarr.zip", {})
    assert (taken / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_spectra_that_no_stars_have_are_refused(tmp_path: Path, value: float) -> None:
    partial = start(tmp_path / "fake-v1.zarr.zip")
    flux = FLUX[1].copy()
    flux[2] = value
    with pytest.raises(GridError, match="metallicity 1: expected spectra"):
        partial.write_node(1, flux, MASS[1], 10)
    assert partial.done() == set()


@pytest.mark.parametrize("value", [np.nan, 0.0, -0.1, 1.1])
def test_masses_that_are_no_fractions_are_refused(tmp_path: Path, value: float) -> None:
    mass = MASS[0].copy()
    mass[3] = value
    with pytest.raises(GridError, match="surviving mass fractions"):
        start(tmp_path / "fake-v1.zarr.zip").write_node(0, FLUX[0], mass, 10)
