"""A grid of simple stellar populations (SSPs), and its file.

    flux[metallicity, age, wave]      Lsun/Å per Msun formed

The file is one `<name>.zarr.zip`: a Zarr v3 group in an uncompressed zip, chunks compressed with
zstd. `flux` is rounded to a few mantissa bits before it is written (Klöwer et al. 2021, Nature
Computational Science 1, 713), which is what makes it small; what is read equals what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import ArtifactError, GridError, Incompatible

FORMAT_VERSION = 1
_ARRAYS = ("logzsol", "age", "wave", "flux", "surviving_mass_fraction", "resolution_fwhm", "valid")
# blosc would be smaller, but its decoder crashes the process on forged chunks
_CODECS = {"bytes", "zstd", "crc32c"}
_MAX_BYTES = 4 * 2**30
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_WAVE_CHUNK = 2048
_ZSTD_LEVEL = 19
_UNREADABLE = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, zarr and zstd raise on damaged input (NotImplementedError as RuntimeError)."""


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
        for name in ("flux", "surviving_mass_fraction"):
            if np.min(getattr(self, name)) < 0:
                raise GridError(
                    f"grid {self.name!r}: expected `{name}` >= 0, got "
                    f"{np.min(getattr(self, name))}; rebuild the grid"
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
        sha256 = _check_archive(path)
        try:
            with ZipStore(path, mode="r") as store:
                group = zarr.open_group(store, mode="r", zarr_format=3)
                attributes = dict(group.attrs)
                arrays = {name: _open_whole(group, name, path) for name in _ARRAYS}
                wave = arrays["wave"][:]
                keep = _calc_slice(wave, wave_range)
                fields = {
                    name: array[..., keep]
                    if name in ("flux", "wave", "resolution_fwhm")
                    else array[...]
                    for name, array in arrays.items()
                }
        except _UNREADABLE as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from error
        attributes.pop("format_version")
        return cls(
            str(attributes.pop("name", path.name.removesuffix(".zarr.zip"))),
            attributes=attributes,
            sha256=sha256,
            **fields,
        )

    def write(self, path: str | Path) -> Path:
        """Write a `.zarr.zip`; the same grid gives the same bytes. Returns the path."""
        import zarr
        from zarr.codecs import ZstdCodec
        from zarr.storage import MemoryStore

        store = MemoryStore()
        group = zarr.create_group(
            store,
            zarr_format=3,
            attributes={"format_version": FORMAT_VERSION, "name": self.name, **self.attributes},
        )
        for name in _ARRAYS:
            values = np.ascontiguousarray(getattr(self, name))
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=(1, values.shape[1], _WAVE_CHUNK) if name == "flux" else values.shape,
                compressors=ZstdCodec(level=_ZSTD_LEVEL),
                config={"write_empty_chunks": True},
            )
            array[...] = values
        content = {key: value.to_bytes() for key, value in store._store_dict.items()}
        return _write_zip(Path(path), content)


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


def _damaged(path: Path, reason: str) -> ArtifactError:
    reason = " ".join(reason.split())
    return ArtifactError(
        f"{path}: expected a grid (.zarr.zip with {', '.join(_ARRAYS)}), got a file that cannot "
        f"be read ({reason}); fetch or build it again"
    )


def _check_archive(path: Path) -> str:
    """sha256 of the file, after its metadata were found harmless."""
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a grid file, got nothing there; check the path")
    if not zipfile.is_zipfile(path):
        raise _damaged(path, "not a whole zip archive")
    try:
        with zipfile.ZipFile(path) as archive:
            root = json.loads(archive.read("zarr.json"))
            version = root["attributes"]["format_version"]
            if version == FORMAT_VERSION:
                members = {name: archive.read(f"{name}/zarr.json") for name in _ARRAYS}
                metadata = {name: json.loads(content) for name, content in members.items()}
    except _UNREADABLE as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if version != FORMAT_VERSION:
        raise Incompatible(
            f"{path}: expected grid format {FORMAT_VERSION}, got {version!r}; "
            "update sfhzoo or fetch another version of the grid"
        )
    _check_metadata(path, metadata)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse sizes, types and codecs that no grid has, before anything is allocated."""
    n_bytes = 0
    for name, array in metadata.items():
        try:
            shape = [int(n) for n in array["shape"]]
            codecs = {codec["name"] for codec in array["codecs"]}
            data_type = array["data_type"]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"metadata of `{name}`: {error}") from error
        if data_type not in ("float32", "float64", "bool"):
            raise _damaged(path, f"`{name}` has type {data_type!r}")
        if not codecs <= _CODECS:
            raise _damaged(path, f"`{name}` uses codecs {sorted(codecs - _CODECS)}")
        n_bytes += 8 * int(np.prod(shape, dtype=object))
    if n_bytes > _MAX_BYTES:
        raise _damaged(path, f"it claims {n_bytes / 2**30:.1f} GiB")


def _open_whole(group: Any, name: str, path: Path) -> Any:
    array = group[name]
    # zarr fills chunks that are missing without a word
    if array.nchunks_initialized != array.nchunks:
        raise _damaged(path, f"`{name}` lacks chunks")
    return array


def _write_zip(path: Path, content: dict[str, bytes]) -> Path:
    """An uncompressed zip without dates, written beside its place and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(content):
            entry = zipfile.ZipInfo(key, _ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[key])
    os.replace(part, path)
    return path
