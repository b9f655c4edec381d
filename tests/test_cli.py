"""The command line: what it prints where, what it returns, and what it costs to start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sfhzoo import __version__
from sfhzoo.cli import cli, main, run
from sfhzoo.cli.infer import EXAMPLE, default_output
from sfhzoo.errors import SamplingError

ROOT = Path(__file__).parents[1]


def sfhzoo(*args, cwd=None):
    code = "from sfhzoo.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=cwd, text=True, capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def inference(posterior, monkeypatch, tmp_path):
    """`sfhzoo infer` with a ready posterior in place of the sampler; the calls it received."""
    from matplotlib.figure import Figure

    from sfhzoo.posterior import Posterior

    calls = []

    def infer(spectrum, **options):
        calls.append(options)
        return posterior

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sfhzoo.inference.infer", infer)
    monkeypatch.setattr(Posterior, "plot", lambda self: (Figure((1, 1)), Figure((1, 1))))
    return calls


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\nfrom sfhzoo.cli import run\n"
        "run(['--help']); run(['infer', '--help']); run(['--version'])\n"
        "heavy = {'torch', 'astropy', 'numpy', 'matplotlib', 'xarray'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"sfhzoo, version {__version__}" in done.stdout


def commands(group, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands(cli)], ids=" ".join)
def test_every_command_explains_itself(path):
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0
    assert len(done.output.splitlines()) > 4


def test_infer_has_every_option_of_the_contract():
    offered = CliRunner().invoke(cli, ["infer", "--help"]).output
    expected = """--prior --grid --redshift --samples --sampler --av --sigma-v --calibration-order
        --redshift-offset --jitter --ebv --air --lsf --flux-unit --mask --lines --wave-range
        --seed --device --out --overwrite --json --quiet""".split()
    assert [name for name in expected if not re.search(rf"{name}\b", offered)] == []


@pytest.mark.parametrize(
    "args",
    [
        ["infer"],
        ["infr"],
        ["infer", "s.fits", "--samples", "1"],
        ["infer", "s.fits", "--av", "free-ish"],
        ["infer", "s.fits", "--av", "nan"],
        ["infer", "s.fits", "--av", "-1"],
        ["infer", "s.fits", "--sigma-v", "inf"],
        ["infer", "s.fits", "--mask", "5000"],
        ["infer", "s.fits", "--mask", "5000:4000"],
        ["infer", "s.fits", "--mask", "nan:4000"],
        ["infer", "s.fits", "--wave-range", "a:b"],
        ["infer", "s.fits", "--lines", "maybe"],
        ["infer", "s.fits", "--redshift", "0"],
        ["infer", "s.fits", "--redshift", "nan"],
        ["infer", "s.fits", "--seed", "-1"],
        ["train", "no-such-recipe.toml", "--out", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2_without_traceback(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error: " in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_spectrum_is_bad_input_in_one_line(tmp_path):
    done = sfhzoo("infer", "nothing.fits", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*nothing\.fits.*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_found_before_the_spectrum_is_read(tmp_path):
    (tmp_path / "nothing.sfhzoo").mkdir()
    (tmp_path / "nothing.sfhzoo" / "thesis.tex").write_text("")
    done = sfhzoo("infer", "nothing.fits", "--overwrite", cwd=tmp_path)
    assert done.returncode == 2
    assert "thesis.tex" in done.stderr
    assert (tmp_path / "nothing.sfhzoo" / "thesis.tex").exists()


def test_the_example_is_a_file_whose_path_goes_to_stdout(capsys):
    assert run(["example"]) == 0
    printed = capsys.readouterr().out.strip()
    assert Path(printed) == EXAMPLE
    assert EXAMPLE.is_file()


def test_infer_prints_the_table_on_stdout_and_warnings_on_stderr(inference, capsys, tmp_path):
    assert run(["infer", str(EXAMPLE)]) == 0
    captured = capsys.readouterr()
    assert re.search(r"^log_mass_formed +11\.\d+ .*log10\(Msun\)$", captured.out, re.MULTILINE)
    assert "warning" not in captured.out
    assert "warning: the mock is not a galaxy\n" in captured.err
    assert (tmp_path / "spec-NGC3522.sfhzoo" / "summary.json").is_file()


def test_json_on_stdout_is_the_summary_alone(inference, capsys, tmp_path):
    assert run(["infer", str(EXAMPLE), "--json", "--quiet", "--out", "here"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(Path("here/summary.json").read_text())
    assert captured.err == ""


def test_options_arrive_at_the_sampler_as_given(inference, tmp_path):
    args = "--av 0.3 --sigma-v free --mask 5570:5590 --mask 6000:6010 --wave-range 4000:7000"
    assert run(["infer", str(EXAMPLE), *args.split(), "--samples", "7", "--jitter", "fixed"]) == 0
    assert len(inference) == 1
    expected = {
        "a_v": 0.3, "sigma_v": "free", "exclude": ((5570.0, 5590.0), (6000.0, 6010.0)),
        "wave_range": (4000.0, 7000.0), "samples": 7, "jitter": "fixed", "seed": 0,
        "redshift_offset": "free", "lines": "mask",
        "calibration_order": "auto", "calibration_rms": 0.02, "network": None,
    }  # fmt: skip
    assert {name: inference[0][name] for name in expected} == expected


def test_a_second_run_needs_overwrite_and_does_not_sample_without(inference, capsys):
    args = ["infer", str(EXAMPLE), "--quiet"]
    assert run(args) == 0
    assert run(args) == 2
    assert len(inference) == 1
    assert "exists" in capsys.readouterr().err
    assert run([*args, "--overwrite"]) == 0


def test_nothing_is_written_when_the_sampler_fails(inference, monkeypatch, capsys, tmp_path):
    def fail(spectrum, **options):
        raise SamplingError("chi2 per pixel stays\nat 100")

    monkeypatch.setattr("sfhzoo.inference.infer", fail)
    assert run(["infer", str(EXAMPLE), "--quiet"]) == 5
    assert capsys.readouterr().err == "error: chi2 per pixel stays at 100\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd (please report"),
        (ModuleNotFoundError("x", name="jax.numpy"), 1, "pip install 'sfhzoo[simulations]'"),
        (
            PermissionError(13, "Permission denied", "a.fits"),
            1,
            "error: a.fits: Permission denied",
        ),
    ],
    ids=["interrupt", "bug", "missing package", "file system"],
)
def test_other_errors_are_one_line_too(inference, monkeypatch, capsys, error, code, text):
    def fail(spectrum, **options):
        raise error

    monkeypatch.delenv("SFHZOO_DEBUG", raising=False)
    monkeypatch.setattr("sfhzoo.inference.infer", fail)
    assert run(["infer", str(EXAMPLE), "--quiet"]) == code
    captured = capsys.readouterr()
    assert text in captured.err
    # a terminal shows ^C without a line break of its own, so an interruption begins with one
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_debugging_shows_the_traceback(inference, monkeypatch):
    def fail(spectrum, **options):
        raise RuntimeError("odd")

    monkeypatch.setenv("SFHZOO_DEBUG", "1")
    monkeypatch.setattr("sfhzoo.inference.infer", fail)
    with pytest.raises(RuntimeError, match="odd"):
        run(["infer", str(EXAMPLE), "--quiet"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spec-0266-51602-0013.fits", "spec-0266-51602-0013.sfhzoo"),
        ("a/b.c.fits.gz", "b.c.sfhzoo"),
        ("table.ecsv", "table.sfhzoo"),
    ],
)
def test_the_output_is_named_after_the_spectrum_and_lies_here(name, expected):
    assert default_output(Path(name)) == Path(expected)


def test_a_quantity_that_is_undefined_prints_as_a_dash(posterior):
    from sfhzoo.report import format_table

    empty = replace(posterior, sfr=0 * posterior.sfr)
    rows = [line.split() for line in format_table(empty.summary()).splitlines()]
    assert next(row for row in rows if row[:1] == ["t50"]) == ["t50", "-", "-", "-", "Gyr"]


@pytest.mark.parametrize("given, kept", [(None, "10000"), ("77", "77")])
def test_threads_spin_little_unless_the_user_says_so(monkeypatch, given, kept):
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    else:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == kept
    os.environ.pop("GOMP_SPINCOUNT")
