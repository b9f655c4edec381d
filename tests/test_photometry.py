"""Reading photometry: units, missing data, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from sfhzoo.errors import DataError
from sfhzoo.forward.bands import load_filters
from sfhzoo.spectra.photometry import Photometry, read_photometry


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_ab_magnitudes_become_maggies(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "filter,mag,mag_err\nsdss_u0,18.2,0.05\nsdss_r0,16.5,0.02\n")
    photometry = read_photometry(file)
    assert photometry.names == ["sdss_u0", "sdss_r0"]
    assert photometry.maggies == pytest.approx([10**-7.28, 10**-6.6])
    # to first order, an error of 0.05 mag is 4.6 %
    assert photometry.error / photometry.maggies == pytest.approx([0.04605, 0.01842], rel=1e-3)
    assert photometry.mask.all() and photometry.warnings == ()
    assert photometry.wave_pivot == pytest.approx([3551, 6166], rel=0.01)
    assert len(photometry.meta["sha256"]) == 64


@pytest.mark.parametrize("name", ["t.fits", "t.ecsv"])
@pytest.mark.parametrize(
    ("column", "unit", "value", "expected"),
    [
        ("maggies", None, 3e-8, 3e-8),
        ("maggies", "nanomaggy", 30.0, 3e-8),
        ("flux", "nanomaggy", 30.0, 3e-8),
        ("flux", "uJy", 36.31, 1e-8),
        ("mag", "mag", 20.0, 1e-8),
    ],
)
def test_fluxes_in_all_their_units(tmp_path, name, column, unit, value, expected) -> None:
    table = Table({"Filter": ["wise_w1"], column: [value], "error": [value / 10]})
    if name.endswith(".fits"):
        hdu = fits.table_to_hdu(table)
        hdu.columns[column].unit = unit
        hdu.writeto(tmp_path / name)
    else:
        table[column].unit = unit and u.Unit(unit, parse_strict="silent")
        table.write(tmp_path / name)
    photometry = read_photometry(tmp_path / name)
    assert photometry.maggies == pytest.approx([expected])


def test_an_error_may_have_a_unit_of_its_own(tmp_path: Path) -> None:
    table = Table({"filter": ["wise_w1"], "flux": [1.0] * u.mJy, "error": [50.0] * u.uJy})
    table.write(tmp_path / "t.ecsv")
    photometry = read_photometry(tmp_path / "t.ecsv")
    assert photometry.error / photometry.maggies == pytest.approx([0.05])


def test_bands_without_data_are_kept_but_not_used(tmp_path: Path) -> None:
    text = "filter,mag,mag_err\nsdss_u0,18.2,0.05\nwise_w1,,\nwise_w2,17,nan\n"
    photometry = read_photometry(write(tmp_path / "a.csv", text))
    assert photometry.mask.tolist() == [True, False, False]
    assert "not used: wise_w1, wise_w2" in photometry.warnings[0]


def test_negative_fluxes_are_data_and_tiny_errors_are_remarked(tmp_path: Path) -> None:
    text = "filter,maggies,error\nsdss_u0,-1e-9,2e-9\nsdss_r0,1e-6,1e-9\n"
    photometry = read_photometry(write(tmp_path / "a.csv", text))
    assert photometry.maggies[0] == -1e-9 and photometry.mask.all()
    assert "errors below 0.5%" in photometry.warnings[0]


HOSTILE = {
    "no filter": ("a,b\n1,2\n", "expected a column filter, got a, b"),
    "no flux": ("filter,error\nsdss_u0,1\n", "expected a column mag or maggies"),
    "no error": ("filter,mag\nsdss_u0,18\n", "expected a column error"),
    "two fluxes": ("filter,mag,maggies,error\nsdss_u0,18,1,1\n", "got maggies and mag"),
    "no unit": ("filter,flux,error\nsdss_u0,18,1\n", "flux has no unit"),
    "no rows": ("filter,mag,error\n", "got 0 rows"),
    "too many rows": ("filter,mag,error\n" + "sdss_u0,18,1\n" * 1001, "got 1001 rows"),
    "unknown band": ("filter,mag,error\nsdss_x0,18,.1\n", "did you mean"),
    "a path": ("filter,mag,error\n../../etc/passwd,18,.1\n", "a filter that sedpy knows"),
    "twice": ("filter,mag,error\nsdss_u0,18,.1\nsdss_u0,19,.1\n", "got sdss_u0 twice"),
    "sentinel": ("filter,mag,error\nsdss_u0,99,.1\n", "AB magnitudes from -5 to 40, got 99"),
    "words": ("filter,mag,error\nsdss_u0,bright,.1\n", "numbers in mag, got 'bright'"),
    "negative error": ("filter,mag,error\nsdss_u0,18,-.1\n", "errors > 0"),
    "zero error": ("filter,maggies,error\nsdss_u0,1e-8,0\n", "errors > 0"),
    "nothing usable": ("filter,mag,error\nsdss_u0,nan,nan\n", "at least one band"),
    "html": ("<html><body>404</body></html>", "HTML or XML"),
    "case": ("filter,mag,error,MAG\nsdss_u0,18,.1,2\n", "each column once"),
    "empty": ("", "the file is empty"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_unusable_photometry_is_one_line_that_names_the_file(tmp_path, case) -> None:
    text, message = HOSTILE[case]
    file = write(tmp_path / "bad.csv", text)
    with pytest.raises(DataError, match=r"bad\.csv") as caught:
        read_photometry(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"\x00\x01\x02", b"SIMPLE  =" + bytes(3000), b"\x1f\x8b broken", b"\xff" * 100],
)
def test_files_that_are_no_table_end_in_one_line(tmp_path, content) -> None:
    file = tmp_path / "bad.fits"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.fits") as caught:
        read_photometry(file)
    assert "\n" not in str(caught.value)


def test_vega_magnitudes_are_not_taken_for_ab(tmp_path: Path) -> None:
    table = Table({"filter": ["twomass_J"], "mag": [14.0], "error": [0.1]})
    table["mag"].unit = u.STmag
    table.write(tmp_path / "t.ecsv")
    with pytest.raises(DataError, match=r"expected AB magnitudes, got the unit 'mag\(ST\)'"):
        read_photometry(tmp_path / "t.ecsv")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Photometry.read(tmp_path / "nowhere.csv")


def test_arrays_must_fit_the_bands() -> None:
    filters = load_filters(["sdss_u0", "sdss_r0"])
    with pytest.raises(DataError, match="each of 2 bands"):
        Photometry(filters, np.ones(3), np.ones(3))
    photometry = Photometry(filters, np.ones(2), 0.1 * np.ones(2), np.array([True, False]))
    assert photometry.mask.tolist() == [True, False]
