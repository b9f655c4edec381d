"""The data files of FSPS (below SPS_HOME), checked before the engine meets them.

Where a file is missing the Fortran code stops the process, with exit code 0; where a spectral
library is cut short or is a Git LFS pointer it may read on. So each file that the libraries need
is looked at first: it is there, it is no pointer, binary libraries have the size that their axes
demand, isochrones end at the last age, and, where a recipe pins it, the content is the recipe's.

Names, after `sps_setup.f90` of FSPS v3.3 (in python-fsps 0.4.8).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from sfhzoo.errors import GridError

ISOCHRONES = {
    "mist": ("ISOCHRONES/MIST", "isoc_z{}.dat"),
    "pdva": ("ISOCHRONES/Padova/Padova2007", "isoc_z{}.dat"),
    "prsc": ("ISOCHRONES/PARSEC", "isoc_z{}.dat"),
}
"""Directory and name of the isochrones of each set, by the names of `zlegend.dat`."""

SPECTRA = {
    "miles": ("SPECTRA/MILES", "miles", "imiles_z{}.spectra.bin"),
    "basel": ("SPECTRA/BaSeL3.1", "basel", "basel_wlbc_z{}.spectra.bin"),
}
"""Directory, stem and binary files of each spectral library."""

_GRID_AXES = ("SPECTRA/BaSeL3.1/basel_logt.dat", "SPECTRA/BaSeL3.1/basel_logg.dat")
_METALLICITIES = (
    "0.0001 0.0010 0.0020 0.0030 0.0040 0.0060 0.0080 0.0100 0.0140 0.0200 0.0300 0.0400"
)
_XRB = "-1.30 -1.00 -0.80 -0.70 -0.50 -0.40 -0.30 -0.20 +0.00 +0.20 +0.30"
_COMMON = (
    "data/emlines_info.dat", "data/allfilters.dat", "data/FILTER_LIST",
    "SPECTRA/A0V_KURUCZ_92.SED", "SPECTRA/SUN_STScI.SED",
    "SPECTRA/Hot_spectra/WMBASIC.teff", "SPECTRA/Hot_spectra/WMBASIC_zlegend.dat",
    *(f"SPECTRA/Hot_spectra/WMBASIC_z{z}.spec" for z in _METALLICITIES.split()),
    *(f"SPECTRA/Hot_spectra/ipagb{end}" for end in (".teff", "_solar.spec", "_halo.spec")),
    *(f"SPECTRA/Hot_spectra/CMFGEN_{k}.teff" for k in ("WN", "WC")),
    *(f"SPECTRA/Hot_spectra/CMFGEN_{k}_Zall.spec" for k in ("WN", "WC")),
    *(f"SPECTRA/AGB_spectra/{k}" for k in (
        "Orich.teff", "Crich.teff", "Orich.spec", "Crich.spec",
        "Crich_Aringer.teff", "Crich_Aringer.spec",
    )),
    *(f"dust/dustem/DL07_MW3.1_{k}0.dat" for k in range(7)),
    "dust/dusty/Orich_dusty.spec", "dust/dusty/Crich_dusty.spec",
    "dust/Nenkova08_y010_torusg_n10_q2.0.dat",
    "SPECTRA/xrb/xsp.lambda", *(f"SPECTRA/xrb/xsp_feh{z}.spec" for z in _XRB.split()),
)  # fmt: skip
_POINTER = b"version https://git-lfs"
_ADVICE = "get it from the FSPS repository (tag v3.3 for python-fsps 0.4.8)"


def find_home() -> Path:
    """SPS_HOME; GridError where it is not set or is no directory."""
    home = os.environ.get("SPS_HOME", "")
    if not home or not Path(home).is_dir():
        raise GridError(
            "the engine fsps expected the directory of the FSPS data in the environment variable "
            f"SPS_HOME, got {home or 'nothing'}; {_ADVICE.replace('it', 'the data')} and set "
            "SPS_HOME"
        )
    return Path(home)


def check_data(home: Path, isochrones: str, library: str, pinned: Mapping[str, str]) -> str:
    """sha256 over the names and contents of all files that these libraries need.

    Parameters
    ----------
    isochrones, library : names as `StellarPopulation.libraries` has them ("mist", "miles")
    pinned : {path below SPS_HOME: git blob id}

    Raises GridError naming the file that is missing, cut short, a pointer or another one.
    """
    if isochrones not in ISOCHRONES or library not in SPECTRA:
        raise GridError(
            f"expected isochrones among {sorted(ISOCHRONES)} and a library among "
            f"{sorted(SPECTRA)}, got {isochrones!r} and {library!r}; these have no file list yet"
        )
    nebular = [f"nebular/ZAU_ND_{isochrones}.{end}" for end in ("cont", "lines")]
    names = [*_COMMON, *_GRID_AXES, *nebular]
    isochrone_files = _check_isochrones(home, *ISOCHRONES[isochrones])
    spectrum_files = _check_spectra(home, *SPECTRA[library])
    digest = hashlib.sha256()
    for name in sorted({*names, *isochrone_files, *spectrum_files, *pinned}):
        content = _read(home, name)
        if name in pinned and (found := _calc_blob_id(content)) != pinned[name]:
            raise GridError(
                f"{home / name}: expected the git blob {pinned[name]} (the recipe's), got "
                f"{found}; {_ADVICE}"
            )
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _check_isochrones(home: Path, directory: str, pattern: str) -> list[str]:
    legend = f"{directory}/zlegend.dat"
    names = [f"{directory}/{pattern.format(z)}" for z in _read(home, legend).decode().split()]
    last = {}
    for name in names:
        line = _read(home, name).rstrip(b"\n").rpartition(b"\n")[2]
        last[name] = line.split()[0] if line.split() else b""
    oldest = max(last.values(), key=_as_number)
    for name, age in last.items():
        if age != oldest or not _read(home, name).endswith(b"\n"):
            raise GridError(
                f"{home / name}: expected isochrones up to log age {oldest.decode()}, got a file "
                f"that ends at {age.decode(errors='replace')!r}: it was cut short; {_ADVICE}"
            )
    return [legend, *names]


def _check_spectra(home: Path, directory: str, stem: str, pattern: str) -> list[str]:
    legend, wave = f"{directory}/zlegend.dat", f"{directory}/{stem}.lambda"
    names = [f"{directory}/{pattern.format(z)}" for z in _read(home, legend).decode().split()]
    size = 4
    for axis in (wave, *_GRID_AXES):
        size *= len(_read(home, axis).split())
    for name in names:
        found = len(_read(home, name))
        if found != size:
            raise GridError(
                f"{home / name}: expected {size:,} bytes, got {found:,}: it was cut short or is "
                f"another library's; {_ADVICE}"
            )
    return [legend, wave, f"{directory}/{stem}.res", *names]


def _read(home: Path, name: str) -> bytes:
    try:
        content = (home / name).read_bytes()
    except OSError as error:
        raise GridError(
            f"{home / name}: expected a data file of FSPS, got {error.strerror}; {_ADVICE}"
        ) from error
    if content.startswith(_POINTER):
        raise GridError(
            f"{home / name}: expected a data file of FSPS, got a Git LFS pointer to it; run: "
            f"git -C {home} lfs pull"
        )
    if not content:
        raise GridError(f"{home / name}: expected a data file of FSPS, got nothing; {_ADVICE}")
    return content


def _as_number(age: bytes) -> float:
    try:
        return float(age)
    except ValueError:
        return -1.0


def _calc_blob_id(content: bytes) -> str:
    """As `git hash-object` gives it; a name for content here, not a safeguard."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
