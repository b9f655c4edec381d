"""A grid of simple stellar populations (SSPs), and its file.

    flux[metallicity, age, wave]      Lsun/Å per Msun formed

The file is one `<name>.zarr.zip`: a Zarr v3 group in an uncompressed zip, chunks compressed with
zstd. `flux` is rounded to a few mantissa bits before it is written (Klöwer et al. 2021, Nature
Computational Science 1, 713), which is what makes it small; what is read equals what was written.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import GridError
from sfhzoo.zoo.archives import UNREADABLE, check_zarr_zip, damaged

FORMAT_VERSION = 1
_ARRAYS = ("logzsol", "age", "wave", "flux", "surviving_mass_fraction", "resolution_fwhm", "valid")
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_WAVE_CHUNK = 2048
_ZSTD_LEVEL = 19


@dataclass(frozen=True, eq=False)
class SSPGrid:
    """Spectra of simple stellar populations on a grid of metallicity and age.

    Parameters
    ----------
    name : `<name>-v<N>`
    logzsol : [metallicity] log10(Z / 0.0142), increasing
    age : [age] yr, increasing and positive
    wave : [wave] vacuum Å, increasing
    flux : [metallicity, age, wave] Lsun/Å per Msun formed
    surviving_mass_fraction : [metallicity, age] surviving mass per mass formed; what counts as
        surviving (living stars only, or remnants too) is in `attributes["surviving_mass"]`
    resolution_fwhm : [wave] FWHM of the spectra's own resolution, Å
    valid : [metallicity] the nodes that may be used
    attributes : engine, version, isochrones, library, imf, z_sun, solar_luminosity (erg/s), …
    sha256 : of the file it was read from

    Raises GridError where shapes, order or values are wrong.
    """

    name: str
    logzsol: NDArray[np.float64]
    age: NDArray[np.float64]
    wave: NDArray[np.float64]
    flux: NDArray[np.float32]
    surviving_mass_fraction: NDArray[np.float64]
    resolution_fwhm: NDArray[np.float64]
    valid: NDArray[np.bool_]
    attributes: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def __post_init__(self) -> None:
        for axis in ("logzsol", "age", "wave"):
            values = getattr(self, axis)
            if np.ndim(values) != 1 or len(values) < 2 or not np.all(np.diff(values) > 0):
                raise GridError(
                    f"grid {self.name!r}: expected `{axis}` to be one increasing axis of at "
                    "least two nodes; rebuild the grid"
                )
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        nz, na, nw = len(self.logzsol), len(self.age), len(self.wave)
        expected = {
            "flux": (nz, na, nw),
            "surviving_mass_fraction": (nz, na),
            "resolution_fwhm": (nw,),
            "valid": (nz,),
        }
        for name, shape in expected.items():
            if np.shape(getattr(self, name)) != shape:
                raise GridError(
                    f"grid {self.name!r}: expected `{name}` of shape {shape}, got "
                    f"{np.shape(getattr(self, name))}; rebuild the grid"
                )
        if self.valid.dtype != np.bool_ or self.valid.sum() < 2:
            raise GridError(
                f"grid {self.name!r}: expected `valid` to be booleans with at least two usable "
                f"metallicities, got {self.valid}; rebuild the grid"
            )

    def _check_values(self) -> None:
        for name in _ARRAYS:
            # the sum of finite numbers is finite here and needs no temporary of the grid's size
            if not np.isfinite(np.sum(getattr(self, name), dtype=np.float64)):
                raise GridError(
                    f"grid {self.name!r}: expected finite `{name}`, got NaN or infinity; the "
                    "file is damaged or the engine failed: fetch or build it again"
                )
        if np.min(self.flux) < 0:
            raise GridError(
                f"grid {self.name!r}: expected `flux` >= 0, got {np.min(self.flux)}; "
                "rebuild the grid"
            )
        mass = self.surviving_mass_fraction
        if np.min(mass) <= 0 or np.max(mass) > 1:
            raise GridError(
                f"grid {self.name!r}: expected `surviving_mass_fraction` in (0, 1], got "
                f"{np.min(mass):.4g} to {np.max(mass):.4g}; rebuild the grid"
            )
        if self.age[0] <= 0 or self.wave[0] <= 0 or not np.all(self.resolution_fwhm > 0):
            raise GridError(
                f"grid {self.name!r}: expected positive ages, wavelengths and resolution, got "
                f"{self.age[0]} yr, {self.wave[0]} Å, {np.min(self.resolution_fwhm)} Å; "
                "rebuild the grid"
            )

    @property
    def solar_luminosity(self) -> float:
        """The Lsun of `flux`, erg/s."""
        from sfhzoo.units import SOLAR_LUMINOSITY

        return float(self.attributes.get("solar_luminosity", SOLAR_LUMINOSITY))

    @classmethod
    def read(cls, path: str | Path, wave_range: tuple[float, float] | None = None) -> SSPGrid:
        """Read a `.zarr.zip`; `wave_range` (vacuum Å) loads those wavelengths only.

        Raises
        ------
        ArtifactError : no such file, or not a whole archive of the grid's arrays
        Incompatible : the file is of a newer format
        GridError : the arrays do not form a grid
        """
        import zarr
        from zarr.storage import ZipStore

        path = Path(path)
        check_zarr_zip(path, _ARRAYS, FORMAT_VERSION)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            with ZipStore(path, mode="r") as store:
                # consolidated metadata would bypass what was checked
                group = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
                attributes = dict(group.attrs)
                arrays: dict[str, Any] = {name: group[name] for name in _ARRAYS}
                wave = arrays["wave"][:]
                keep = _calc_slice(wave, wave_range)
                fields = {
                    name: array[..., keep]
                    if name in ("flux", "wave", "resolution_fwhm")
                    else array[...]
                    for name, array in arrays.items()
                }
        except UNREADABLE as error:
            raise damaged(path, f"{type(error).__name__}: {error}") from error
        attributes.pop("format_version")
        return cls(
            str(attributes.pop("name", path.name.removesuffix(".zarr.zip"))),
            attributes=attributes,
            sha256=sha256,
            **fields,
        )

    def write(self, path: str | Path) -> Path:
        """Write a `.zarr.zip`; the same grid gives the same bytes. Returns the path."""
        from zarr.storage import MemoryStore

        store = MemoryStore()
        group = create_group(store, self.name, self.attributes)
        for name in _ARRAYS:
            values = np.ascontiguousarray(getattr(self, name))
            create_array(group, name, values.shape, values.dtype)[...] = values
        content = {key: value.to_bytes() for key, value in store._store_dict.items()}
        return write_zip(Path(path), sorted(content.items()))


def create_group(store: Any, name: str, attributes: dict[str, Any]) -> Any:
    """The Zarr group of a new grid in an empty store."""
    import zarr

    return zarr.create_group(
        store,
        zarr_format=3,
        attributes={"format_version": FORMAT_VERSION, "name": name, **attributes},
    )


def create_array(
    group: Any, name: str, shape: tuple[int, ...], dtype: Any, level: int = _ZSTD_LEVEL
) -> Any:
    """An empty Zarr array of a grid's group, compressed with zstd of this level.

    `flux` has a chunk for each metallicity and 2048 wavelengths, so that metallicities can be
    written one by one and part of the spectrum can be read; the others are one chunk.
    """
    from zarr.codecs import ZstdCodec

    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(1, shape[1], _WAVE_CHUNK) if name == "flux" else shape,
        compressors=ZstdCodec(level=level),
        config={"write_empty_chunks": True},
    )


def calc_bit_rounded(values: NDArray[np.float32], keep_bits: int) -> NDArray[np.float32]:
    """Float32 values [...] rounded to `keep_bits` explicit mantissa bits, ties to even.

    The relative error is at most 2^-(keep_bits + 1): 0.05 % for 10 bits. Subnormals become 0.
    """
    if not 1 <= keep_bits <= 22:
        raise ValueError(f"expected 1 to 22 mantissa bits, got {keep_bits}")
    drop = 23 - keep_bits
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    rounded = bits + half + ((bits >> np.uint32(drop)) & np.uint32(1))
    rounded &= np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1))
    result = rounded.view(np.float32)
    return np.where(np.abs(result) < np.finfo(np.float32).tiny, np.float32(0), result)


def _calc_slice(wave: NDArray[np.float64], wave_range: tuple[float, float] | None) -> slice:
    if wave_range is None:
        return slice(None)
    # one node beyond each end, so that the range itself can be interpolated
    start = max(int(np.searchsorted(wave, wave_range[0])) - 1, 0)
    return slice(start, int(np.searchsorted(wave, wave_range[1], side="right")) + 1)


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """An uncompressed zip without dates, written beside its place and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for key, content in members:
            entry = zipfile.ZipInfo(key, _ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    os.replace(part, path)
    return path
