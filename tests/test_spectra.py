"""Reading spectra: what a good file gives, and that a bad one ends in one clear line."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable

from sfhzoo.errors import DataError
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.spectra.table import calc_flux_scale, calc_lsf_sigma, parse_unit
from sfhzoo.wavelengths import calc_vacuum_from_air

N_WAVE = 60
LOGLAM = 3.6 + 1e-4 * np.arange(N_WAVE)
NGC3522 = Path(str(files("sfhzoo") / "data" / "spec-NGC3522.fits"))


def make_spectrum(**changes: object) -> Spectrum:
    arrays: dict[str, object] = {
        "wave_obs": np.linspace(4000.0, 5000.0, N_WAVE),
        "flux": np.full(N_WAVE, 2e-16),
        "ivar": np.full(N_WAVE, 1e34),
    }
    return Spectrum(**(arrays | changes))


def write_sdss(
    path: Path,
    *,
    bunit: str | None = "1E-17 erg/cm^2/s/Ang",
    row: dict[str, object] | None = None,
    **columns: np.ndarray,
) -> Path:
    data = {
        "flux": np.full(N_WAVE, 20.0),
        "loglam": LOGLAM,
        "ivar": np.full(N_WAVE, 4.0),
        "and_mask": np.zeros(N_WAVE, dtype=np.int32),
        "wdisp": np.full(N_WAVE, 0.9),
    } | columns
    formats = {"and_mask": "J"}
    primary = fits.PrimaryHDU()
    primary.header.update({"PLATEID": 266, "MJD": 51602, "FIBERID": 13, "COEFF0": 3.5})
    if bunit:
        primary.header["BUNIT"] = bunit
    hdus = [primary, make_table(data, formats)]
    fit = {"Z": 0.05, "ZWARNING": 0, "CLASS": "GALAXY", "SUBCLASS": "", "VDISP": 150.0}
    if row is not None:
        hdus.append(fits.BinTableHDU(QTable(rows=[tuple((fit | row).values())], names=list(fit))))
    fits.HDUList(hdus).writeto(path)
    return path


def make_table(data: dict[str, np.ndarray], formats: dict[str, str]) -> fits.BinTableHDU:
    return fits.BinTableHDU.from_columns(
        [fits.Column(name, formats.get(name, "E"), array=a) for name, a in data.items()]
    )


def write_text(path: Path, head: str, wave: np.ndarray, *columns: np.ndarray) -> Path:
    rows = [",".join(f"{value!r}" for value in map(float, row)) for row in zip(wave, *columns)]
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


WAVE = np.linspace(4000.0, 5000.0, N_WAVE)
FLUX = np.full(N_WAVE, 20.0)
ERROR = np.full(N_WAVE, 0.5)
HEAD = "wavelength [Angstrom],flux [1e-17 erg/s/cm2/AA],error [1e-17 erg/s/cm2/AA]"


# ---- Spectrum -----------------------------------------------------------------------------------


def test_a_pixel_without_flux_or_error_is_no_data():
    flux, ivar = np.full(N_WAVE, 2e-16), np.full(N_WAVE, 1e34)
    flux[3], flux[4], ivar[5], ivar[6] = np.nan, np.inf, 0.0, np.inf
    ivar[3] = np.nan
    spectrum = make_spectrum(flux=flux, ivar=ivar)
    assert spectrum.n_pixels == N_WAVE - 4
    assert not spectrum.mask[3:7].any() and not spectrum.ivar[3:7].any()
    assert np.isfinite(spectrum.flux).all()


@pytest.mark.parametrize(
    "changes",
    [{"flux": np.full(N_WAVE, np.nan)}, {"mask": np.zeros(N_WAVE, bool)}],
    ids=["no flux", "all masked"],
)
def test_a_spectrum_may_hold_nothing_and_then_has_no_signal_to_noise(changes):
    spectrum = make_spectrum(**changes)
    assert spectrum.n_pixels == 0 and np.isnan(spectrum.snr) and spectrum.warnings == ()


def test_a_pixel_with_an_absurdly_small_error_is_left_out_and_told():
    ivar = np.full(N_WAVE, 1e34)
    ivar[3] = 1e41
    spectrum = make_spectrum(ivar=ivar)
    assert not spectrum.mask[3] and spectrum.n_pixels == N_WAVE - 1
    assert "1 pixels have errors below 0.001 of the median" in spectrum.warnings[0]


@pytest.mark.parametrize("value", [-1e30, np.nan])
def test_a_negative_or_nan_error_is_refused_with_count_and_place(value):
    ivar = np.full(N_WAVE, 1e34)
    ivar[[7, 9]] = value
    with pytest.raises(DataError, match=r"2 pixels .* first at 4118.64 Å"):
        make_spectrum(ivar=ivar)


def test_a_broken_error_in_a_masked_pixel_does_no_harm():
    ivar, mask = np.full(N_WAVE, 1e34), np.ones(N_WAVE, dtype=bool)
    ivar[7], mask[7] = -1.0, False
    assert make_spectrum(ivar=ivar, mask=mask).n_pixels == N_WAVE - 1


def test_wavelengths_in_any_order_give_the_same_spectrum():
    flux = np.linspace(1e-16, 3e-16, N_WAVE)
    order = np.random.default_rng(1).permutation(N_WAVE)
    straight = make_spectrum(flux=flux)
    mixed = make_spectrum(wave_obs=WAVE[order], flux=flux[order])
    assert np.array_equal(mixed.flux, straight.flux)
    assert any("sorted" in line for line in mixed.warnings)
    assert make_spectrum(wave_obs=WAVE[::-1], flux=flux[::-1]).warnings == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": np.ones(3)}, "equal length"),
        ({"wave_obs": np.full(N_WAVE, 5000.0)}, "every wavelength once"),
        ({"wave_obs": np.linspace(0.4, 0.9, N_WAVE)}, "nm or µm"),
        ({"wave_obs": np.linspace(-1.0, 9e3, N_WAVE)}, "positive wavelengths"),
        ({"flux": np.zeros(N_WAVE)}, "is zero in all"),
        ({"flux": np.full(N_WAVE, -1e-16)}, "negative or zero in all"),
        ({"lsf_sigma": np.nan}, "lsf_sigma"),
        ({"redshift": 0.0}, "redshift above 0"),
        ({"redshift": np.nan}, "redshift above 0"),
        ({"flux": ["a"] * N_WAVE}, "numbers in flux"),
    ],
)
def test_impossible_spectra_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make_spectrum(**changes)


def test_flux_in_the_wrong_unit_and_absurd_errors_are_warned_of_once():
    spectrum = make_spectrum(flux=np.full(N_WAVE, 20.0))
    assert any("flux unit" in line for line in spectrum.warnings)
    assert any("signal-to-noise" in line for line in spectrum.warnings)
    assert replace(spectrum, name="again").warnings == spectrum.warnings


# ---- SDSS ---------------------------------------------------------------------------------------


def test_the_bundled_spectrum_is_ngc3522():
    spectrum = Spectrum.read(NGC3522)
    assert spectrum.name == "NGC3522"
    assert spectrum.redshift == pytest.approx(0.0040180, abs=1e-7)
    assert spectrum.snr == pytest.approx(47.78, abs=0.05)  # SDSS's own SN_MEDIAN_ALL
    assert spectrum.warnings == ()
    assert spectrum.meta["class"] == "GALAXY"
    assert spectrum.meta["sha256"] == hashlib.sha256(NGC3522.read_bytes()).hexdigest()
    # the Ca II K line (3934.78 Å in vacuum) is where the redshift says: a 26-pixel error shows
    near = np.abs(spectrum.wave_obs / 1.004018 - 3934.78) < 15
    darkest = spectrum.wave_obs[near][np.argmin(spectrum.flux[near])] / 1.004018
    assert darkest == pytest.approx(3934.78, abs=2.5)


def test_sdss_units_wavelengths_and_line_spread_function(tmp_path):
    spectrum = Spectrum.read(write_sdss(tmp_path / "spec.fits", row={}))
    # float32 would leave errors of 1e-3 Å
    assert np.allclose(spectrum.wave_obs, 10**LOGLAM, rtol=1e-12)
    assert np.allclose(spectrum.flux, 2e-16, rtol=1e-6)
    assert np.allclose(spectrum.ivar, 4.0 / 1e-17**2, rtol=1e-6)
    assert np.allclose(spectrum.lsf_sigma, 0.9 * 69.03, rtol=1e-4)
    assert spectrum.redshift == pytest.approx(0.05)
    assert spectrum.name == "SDSS 266-51602-0013"
    assert spectrum.warnings == ()


def test_loglam_off_the_grid_is_not_rounded(tmp_path):
    shifted = LOGLAM + 5e-5
    spectrum = Spectrum.read(write_sdss(tmp_path / "spec.fits", row={}, loglam=shifted))
    assert np.allclose(spectrum.wave_obs, 10**shifted, rtol=1e-6)


def test_sdss_pixels_with_fatal_flags_are_masked_and_others_kept(tmp_path):
    flags = np.zeros(N_WAVE, dtype=np.int32)
    flags[10], flags[11], flags[12:40] = 1 << 23, 1 << 16, 1 << 4
    ivar = np.full(N_WAVE, 4.0)
    ivar[50], ivar[51] = 0.0, -1.0
    wdisp = np.full(N_WAVE, 0.9)
    wdisp[50] = 0.0
    path = write_sdss(tmp_path / "spec.fits", row={}, and_mask=flags, ivar=ivar, wdisp=wdisp)
    spectrum = Spectrum.read(path)
    assert np.flatnonzero(~spectrum.mask).tolist() == [10, 50, 51]
    assert spectrum.ivar[10] > 0 and spectrum.lsf_sigma[50] > 60
    assert any("28 of 60 pixels MANYBADCOLUMNS" in line for line in spectrum.warnings)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"CLASS": "QSO"}, "QSO: it is not a galaxy"),
        ({"ZWARNING": 4}, "ZWARNING = 4"),
        ({"Z": -0.0003}, "gives no distance"),
        (None, "no table with redshift"),
    ],
)
def test_a_doubtful_redshift_is_warned_of(tmp_path, row, words):
    spectrum = Spectrum.read(write_sdss(tmp_path / "spec.fits", row=row))
    assert any(words in line for line in spectrum.warnings)


def test_the_redshift_option_wins_over_the_file(tmp_path):
    path = write_sdss(tmp_path / "spec.fits", row={})
    assert Spectrum.read(path, redshift=0.07).redshift == 0.07
    without = write_sdss(tmp_path / "lite.fits", row=None)
    assert Spectrum.read(without).redshift is None
    assert Spectrum.read(without, redshift=0.07).redshift == 0.07
    with pytest.raises(DataError, match="redshift above 0"):
        Spectrum.read(path, redshift=-1.0)


def test_sdss_without_unit_is_assumed_standard_and_says_so(tmp_path):
    spectrum = Spectrum.read(write_sdss(tmp_path / "spec.fits", row={}, bunit=None))
    assert spectrum.flux[0] == pytest.approx(2e-16)
    assert any("BUNIT" in line for line in spectrum.warnings)


def test_sdss_wavelengths_are_never_taken_for_air(tmp_path):
    with pytest.raises(DataError, match="in vacuum"):
        Spectrum.read(write_sdss(tmp_path / "spec.fits", row={}), air=True)


def test_a_gzipped_file_is_read_as_the_plain_one(tmp_path):
    path = write_sdss(tmp_path / "spec.fits", row={})
    packed = tmp_path / "spec.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(Spectrum.read(packed).flux, Spectrum.read(path).flux)


# ---- generic tables -----------------------------------------------------------------------------


def test_csv_ecsv_and_fits_tables_give_the_same_spectrum(tmp_path):
    csv = write_text(tmp_path / "a.csv", f"# redshift = 0.1\n{HEAD}", WAVE, FLUX, ERROR)
    unit = u.Unit("1e-17 erg / (s cm2 Angstrom)")
    table = QTable({"Wave": WAVE * u.AA, "FLUX": FLUX * unit, "err": ERROR * unit})
    table.meta["REDSHIFT"] = 0.1
    table.write(tmp_path / "a.ecsv")
    table.write(tmp_path / "a.fits")
    for path in (csv, tmp_path / "a.ecsv", tmp_path / "a.fits"):
        spectrum = Spectrum.read(path, lsf="R=2000")
        assert np.allclose(spectrum.wave_obs, WAVE, rtol=1e-12), path
        assert np.allclose(spectrum.flux, 2e-16, rtol=1e-12), path
        assert np.allclose(spectrum.ivar, 1 / 5e-18**2, rtol=1e-12), path
        assert spectrum.redshift == 0.1
        assert spectrum.warnings == ()


def test_flux_per_frequency_becomes_flux_per_wavelength(tmp_path):
    head = "wavelength [nm],flux [uJy],error [nJy]"
    path = write_text(tmp_path / "a.csv", head, WAVE / 10, FLUX, ERROR)
    spectrum = Spectrum.read(path, lsf="R=2000")
    # f_λ = f_ν c / λ², with 1 µJy = 1e-29 erg/s/cm²/Hz and c in Å/s
    assert np.allclose(spectrum.wave_obs, WAVE)
    assert np.allclose(spectrum.flux, 20e-29 * 2.99792458e18 / WAVE**2)
    assert np.allclose(spectrum.ivar**-0.5, 0.5e-32 * 2.99792458e18 / WAVE**2)


def test_a_row_of_arrays_with_air_wavelengths_and_odd_units_is_read(tmp_path):
    error = ERROR.copy()
    error[4] = 0.0
    arrays = {"WAVE": WAVE, "FLUX": FLUX, "ERR": error}
    hdu = fits.BinTableHDU.from_columns(
        [fits.Column(k, f"{N_WAVE}D", array=v[None, :]) for k, v in arrays.items()]
    )
    unit = "10**(-19).erg.cm**(-2).s**(-1).angstrom**(-1)"
    hdu.header.update({"TUNIT1": "angstrom", "TUNIT2": unit, "TUNIT3": unit})
    hdu.header.update({"TUCD1": "em.wl;obs.atmos", "OBJECT": "M1"})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    spectrum = Spectrum.read(tmp_path / "a.fits", redshift=0.67, lsf="R=2500")
    assert np.allclose(spectrum.wave_obs, calc_vacuum_from_air(WAVE))
    assert np.allclose(spectrum.flux, 2e-18)
    assert spectrum.n_pixels == N_WAVE - 1 and spectrum.ivar[4] == 0
    assert spectrum.name == "M1"
    assert any("in air" in line for line in spectrum.warnings)


def test_the_air_option_converts_to_vacuum(tmp_path):
    path = write_text(tmp_path / "a.csv", HEAD, WAVE, FLUX, ERROR)
    assert np.allclose(Spectrum.read(path, air=True).wave_obs, calc_vacuum_from_air(WAVE))


def test_ivar_mask_and_lsf_columns_are_used(tmp_path):
    head = "loglam,flux [1e-17 erg/s/cm2/A],ivar,mask,lsf_sigma"
    use = np.arange(N_WAVE) != 5
    columns = (LOGLAM, FLUX, np.full(N_WAVE, 4.0), use, np.full(N_WAVE, 80.0))
    path = write_text(tmp_path / "a.csv", head, *columns)
    spectrum = Spectrum.read(path, flux_unit="1e-17 erg/s/cm2/Ang")
    assert np.allclose(spectrum.wave_obs, 10**LOGLAM)
    assert np.allclose(spectrum.ivar, 4e34)
    assert np.allclose(spectrum.lsf_sigma, 80.0)
    assert np.flatnonzero(~spectrum.mask).tolist() == [5]


def test_blank_separated_columns_with_a_commented_head_are_read(tmp_path):
    rows = "\n".join(f"{w} 20.0 0.5" for w in WAVE)
    (tmp_path / "a.txt").write_text(f"# wavelength flux error\n{rows}\n")
    spectrum = Spectrum.read(tmp_path / "a.txt", flux_unit="1e-17 erg/s/cm2/AA")
    assert np.allclose(spectrum.flux, 2e-16) and np.allclose(spectrum.ivar, 4e34)


def test_a_missing_line_spread_function_is_warned_of(tmp_path):
    spectrum = Spectrum.read(write_text(tmp_path / "a.csv", HEAD, WAVE, FLUX, ERROR))
    assert spectrum.lsf_sigma is None
    assert any("line-spread function" in line for line in spectrum.warnings)


def test_the_lsf_option_is_a_resolving_power_or_a_width():
    # R = λ/FWHM: 2000 is 149.9 km/s FWHM, 63.66 km/s sigma; 2.5 Å at 5000 Å is R = 2000 too
    wave = np.array([5000.0, 10000.0])
    assert np.allclose(calc_lsf_sigma("R=2000", wave), 63.656, atol=1e-3)
    assert np.allclose(calc_lsf_sigma("FWHM = 2.5 A", wave), [63.656, 31.828], atol=1e-3)
    for text in ("2000", "R=", "R=0", "FWHM=2nm", "R=-5", "R=1e99"):
        with pytest.raises(DataError, match="R=2000"):
            calc_lsf_sigma(text, wave)


def test_the_letter_a_is_angstrom_not_ampere():
    for text in ("erg s-1 cm-2 A-1", "erg/s/cm^2/A", "erg/cm^2/s/Ang", "ergs/s/cm2/AA"):
        assert calc_flux_scale(parse_unit(text), np.array([5000.0])) == pytest.approx(1.0)
    for text in ("mag(AB)", "Lsun/AA", "1e-17", "furlong"):
        with pytest.raises(DataError, match="flux_unit"):
            calc_flux_scale(parse_unit(text), np.array([5000.0]))


@pytest.mark.parametrize(
    ("head", "columns", "message"),
    [
        ("wavelength,flux [Jy],error", (WAVE / 1e4, FLUX, ERROR), "give the column its unit"),
        ("wavelength,flux [Jy],error", (WAVE / 10, FLUX, ERROR), "give the column its unit"),
        ("wavelength,flux [Jy],error", (LOGLAM, FLUX, ERROR), "name it loglam"),
        ("wavelength [kg],flux [Jy],error", (WAVE, FLUX, ERROR), "unit of length"),
        ("wavelength,flux,error", (WAVE, FLUX, ERROR), "has no unit; give flux_unit"),
        ("wavelength,flux [Jy],brightness", (WAVE, FLUX, ERROR), "column error or ivar"),
        ("wavelength,counts,error", (WAVE, FLUX, ERROR), "column flux"),
        ("a,b,c", (WAVE, FLUX, ERROR), "first line naming the columns"),
        ("4000,1,1", (WAVE, FLUX, ERROR), "first line naming the columns"),
        (HEAD, (np.full(N_WAVE, 4e3), FLUX, ERROR), "every wavelength once"),
        (HEAD, (WAVE, FLUX, -ERROR), "negative or NaN errors"),
        (HEAD, (WAVE, FLUX, ERROR * np.nan), "negative or NaN errors"),
        (HEAD, (WAVE[:0], FLUX, ERROR), "0 rows"),
        (HEAD, (WAVE, FLUX), "3 columns in every row"),
    ],
)
def test_unusable_tables_say_what_is_wrong_in_one_line(tmp_path, head, columns, message):
    path = write_text(tmp_path / "a.csv", head, *columns)
    with pytest.raises(DataError, match=message) as caught:
        Spectrum.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# ---- hostile files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"  \n \n", "first line"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"Lorem ipsum dolor sit amet,\nconsectetur 1 2 3\n", "first line"),
        (bytes(range(256)) * 20, "binary"),
        (b"\x1f\x8b" + bytes(50), "cannot be read"),
        (gzip.compress(bytes(9999))[:30], "gzip"),
        (b"SIMPLE  =" + bytes(3000), "."),
        (b"# %ECSV 1.0\n# ---\n# datatype: [\n", "."),
        (b"wavelength,flux,error\n4000,one,2\n", "numbers in every row"),
    ],
)
def test_files_that_are_no_spectra_end_in_one_line(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Spectrum.read(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Spectrum.read(tmp_path / "nothing.fits")
    with pytest.raises(DataError, match="directory"):
        Spectrum.read(tmp_path)


def test_fits_images_and_other_tables_are_refused(tmp_path):
    fits.PrimaryHDU(np.ones((9, 9))).writeto(tmp_path / "image.fits")
    with pytest.raises(DataError, match="without a table"):
        Spectrum.read(tmp_path / "image.fits")
    make_table({"ra": WAVE, "dec": FLUX}, {}).writeto(tmp_path / "catalogue.fits")
    with pytest.raises(DataError, match="got ra, dec"):
        Spectrum.read(tmp_path / "catalogue.fits")


def test_a_file_too_large_to_be_a_spectrum_is_not_read(tmp_path):
    path = tmp_path / "cube.fits"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(DataError, match="1024 MiB"):
        Spectrum.read(path)


def make_valid_contents(tmp_path: Path) -> list[bytes]:
    unit = u.Unit("1e-17 erg / (s cm2 Angstrom)")
    table = QTable({"wave": WAVE * u.AA, "flux": FLUX * unit, "error": ERROR * unit})
    table.write(tmp_path / "a.fits")
    table.write(tmp_path / "a.ecsv")
    paths = [write_sdss(tmp_path / "sdss.fits", row={}), tmp_path / "a.fits", tmp_path / "a.ecsv"]
    paths.append(write_text(tmp_path / "a.csv", HEAD, WAVE, FLUX, ERROR))
    return [path.read_bytes() for path in paths]


def read_or_refuse(path: Path, content: bytes) -> bool:
    """Whether the content is a spectrum; any exception but DataError fails the test."""
    path.write_bytes(content)
    try:
        return isinstance(Spectrum.read(path), Spectrum)
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return False


def test_truncated_files_are_read_or_refused_but_never_crash(tmp_path):
    for content in make_valid_contents(tmp_path):
        lengths = np.linspace(0, len(content), 60).astype(int)
        outcomes = [read_or_refuse(tmp_path / "cut", content[:n]) for n in lengths]
        assert outcomes[-1] and not all(outcomes)


def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path):
    rng = np.random.default_rng(7)
    for content in make_valid_contents(tmp_path):
        outcomes = []
        for _ in range(150):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            where = rng.integers(0, damaged.size, size=rng.integers(1, 6))
            damaged[where] = rng.integers(0, 256, size=where.size)
            outcomes.append(read_or_refuse(tmp_path / "damaged", damaged.tobytes()))
        assert any(outcomes) and not all(outcomes)
