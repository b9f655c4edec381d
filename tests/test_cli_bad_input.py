"""What a user can get wrong ends in one line and the right exit code, with nothing written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sfhzoo.cli import run
from sfhzoo.cli.infer import EXAMPLE
from sfhzoo.zoo.artifacts import BUNDLED, DEFAULT_PRIOR

WAVE = np.arange(4000.0, 7000.0, 2.0)


def write_table(path: Path, wave=WAVE, flux=None, error=None, mask=None, head=()) -> Path:
    """A CSV spectrum of a flat galaxy at S/N 20, with units; `head` are comment lines."""
    flux = np.full(wave.size, 2e-16) if flux is None else flux
    error = np.full(wave.size, 1e-17) if error is None else error
    columns = {"wavelength": wave, "flux": flux, "error": error}
    if mask is not None:
        columns["mask"] = mask.astype(int)
    rows = zip(*columns.values(), strict=True)
    lines = [*head, ",".join(columns), *(",".join(f"{v:.8g}" for v in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SFHZOO_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def fails(here, capsys):
    """Runs `sfhzoo infer ARGS`, asserts one error line, no output, and returns (code, line)."""

    def call(*args):
        before = sorted(here.iterdir())
        code = run(["infer", *map(str, args)])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: "), captured.err
        assert captured.err.count("\n") == 1, captured.err
        assert len(captured.err) < 700
        assert sorted(here.iterdir()) == before
        return code, captured.err

    return call


PRIOR_ALONE = ("--sampler", "cla")
"""Checks of the pixels come before sampling; this sampler needs no posterior network."""
TABLE = ("--redshift", "0.05", "--flux-unit", "erg/s/cm2/AA")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (bytes(range(256)) * 20, "binary"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"not a spectrum, but a letter\nof two lines\n", "wavelength"),
        (b"\x1f\x8b\x08\x00 cut gzip", ""),
        (b"SIMPLE  =                    T" + b" " * 40, ""),
    ],
    ids=["empty", "garbage", "error page", "prose", "gzip", "FITS stub"],
)
def test_a_file_that_is_no_spectrum_is_bad_input(fails, here, content, says):
    (here / "s.fits").write_bytes(content)
    code, line = fails("s.fits", *TABLE)
    assert code == 3
    assert "s.fits" in line
    assert says in line


def test_a_directory_is_bad_input(fails, here):
    (here / "night1").mkdir()
    code, line = fails("night1")
    assert code == 3
    assert "directory" in line


@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.9])
def test_a_truncated_fits_file_is_bad_input_or_refused_for_what_is_lost(fails, here, kept):
    content = EXAMPLE.read_bytes()
    (here / "s.fits").write_bytes(content[: int(kept * len(content))])
    assert fails("s.fits")[0] == 3


def test_a_path_with_a_line_break_is_still_one_line(fails):
    assert fails("a\nb.fits")[0] == 3


def test_a_spectrum_without_redshift_asks_for_one(fails, here):
    write_table(here / "s.csv")
    code, line = fails("s.csv", *TABLE[2:])
    assert code == 3
    assert "--redshift" in line


def test_negative_errors_are_bad_input_and_located(fails, here):
    error = np.full(WAVE.size, 1e-17)
    error[500] = -1e-17
    code, line = fails(write_table(here / "s.csv", error=error), *TABLE)
    assert code == 3
    assert f"{WAVE[500]:.2f} Å" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mask": np.zeros(WAVE.size, bool)}, "no pixel of 1500 is left to fit"),
        ({"flux": np.full(WAVE.size, np.nan)}, "no data 1500"),
        ({"flux": np.zeros(WAVE.size)}, "flux is zero"),
        ({"wave": WAVE / 1e4}, "which is not Å"),
        ({"wave": np.repeat(WAVE[::2], 2)}, "repeated"),
    ],
    ids=["all masked", "all NaN", "no flux", "micrometres", "twice"],
)
def test_a_table_without_usable_data_is_bad_input(fails, here, changes, says):
    code, line = fails(write_table(here / "s.csv", **changes), *TABLE)
    assert code == 3
    assert says in line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--mask", "3000:8000"), "excluded 1500"),
        (("--wave-range", "8000:9000"), "wave range 1500"),
        (("--wave-range", "5000:5060"), "usable pixels"),
    ],
    ids=["all excluded", "range beyond the data", "range of thirty pixels"],
)
def test_leaving_out_too_many_pixels_is_bad_input_and_says_what_did(fails, here, args, says):
    code, line = fails(write_table(here / "s.csv"), *TABLE, *PRIOR_ALONE, *args)
    assert code == 3
    assert says in line


def test_no_overlap_with_the_grid_names_the_ranges_of_both(fails, here):
    table = write_table(here / "s.csv", wave=WAVE + 40_000.0)
    code, line = fails(table, *TABLE, *PRIOR_ALONE)
    assert code == 3
    assert f"0 usable pixels between {44_000 / 1.05:.0f} and {46_998 / 1.05:.0f} Å" in line
    assert "bc03-miles-v1" in line


@pytest.mark.parametrize(
    ("option", "wrong", "closest"),
    [
        ("--prior", "difstarpop-tng-v1", DEFAULT_PRIOR),
        ("--prior", "tng", "tng50-v1"),
        ("--grid", "bc03-mils-v1", "bc03-miles-v1"),
    ],
)
def test_an_unknown_artifact_is_code_4_and_names_the_closest(fails, option, wrong, closest):
    code, line = fails(EXAMPLE, option, wrong)
    assert code == 4
    assert repr(wrong) in line
    assert re.search(rf"did you mean .*\b{closest}\b", line)


@pytest.mark.parametrize("option", ["--prior", "--grid"])
@pytest.mark.parametrize("place", ["nowhere/at-all", "empty", "s.csv"])
def test_a_path_that_is_no_artifact_is_code_4(fails, here, option, place):
    (here / "empty").mkdir()
    write_table(here / "s.csv")
    code, _ = fails(EXAMPLE, option, place)
    assert code == 4


def test_a_damaged_prior_is_code_4_and_says_which_hash_was_expected(fails, here):
    shutil.copytree(BUNDLED / DEFAULT_PRIOR, here / "mine")
    weights = here / "mine" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, line = fails(EXAMPLE, "--prior", here / "mine")
    assert code == 4
    assert re.search(r"model\.safetensors: sha256 expected \w{64}, got \w{64}", line)


def test_a_damaged_grid_is_code_4(fails, here):
    content = (BUNDLED / "bc03-miles-v1.zarr.zip").read_bytes()
    (here / "mine.zarr.zip").write_bytes(content[: len(content) // 2])
    assert fails(EXAMPLE, "--grid", here / "mine.zarr.zip")[0] == 4


@pytest.mark.parametrize(
    "args",
    [
        ["--lsf", "2000"],
        ["--lsf", "R=0"],
        ["--flux-unit", "parrots"],
        ["--flux-unit", "km/s"],
        ["--ebv", "-0.1"],
        ["--calibration-order", "31"],
        ["--sampler", "mcmc"],
        ["--no-such-option"],
        ["a-second-spectrum.fits"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_code_2_whatever_the_file(args, here, capsys):
    assert run(["infer", "nothing.fits", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error: " in captured.err
    assert "Traceback" not in captured.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("typed", "meant"), [("infr", "infer"), ("exmaple", "example")])
def test_an_unknown_command_suggests_the_closest(typed, meant, capsys):
    assert run([typed]) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_on_a_terminal_the_status_line_is_wiped_before_the_error(here, capsys, monkeypatch):
    write_table(here / "s.csv")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert run(["infer", "s.csv", *TABLE[2:]]) == 3
    shown = capsys.readouterr().err
    assert re.fullmatch(r"fitting .* …\r\x1b\[Kerror: [^\n]*\n", shown)
