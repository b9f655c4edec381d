"""Zarr zips of grids, checked before anything is decompressed.

A grid is a zip that stores (never deflates) the entries of one Zarr v3 group. The entries must be
exactly the metadata and chunks that its arrays say they have, and each chunk one zstd frame
(RFC 8878) that says it unpacks to exactly one chunk: nothing is left that could unpack to more.
"""

from __future__ import annotations

import itertools
import math
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfhzoo.errors import ArtifactError, Incompatible
from sfhzoo.zoo.bounds import parse_json

MAX_GRID_BYTES = 4 * 2**30
MAX_RATIO = 64
"""Of unpacked to stored bytes; rounded spectra reach 4, zeros thousands."""
ALWAYS_BYTES = 16 * 2**20
"""May be unpacked whatever the ratio."""
MAX_METADATA_BYTES = 2**20
_ITEM_BYTES = {"float32": 4, "float64": 8, "bool": 1}
# blosc would be smaller, but its decoder crashes the process on forged chunks
_CODECS = (["bytes"], ["bytes", "zstd"])
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
UNREADABLE = (
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


def damaged(path: Path, reason: str) -> ArtifactError:
    """The error of an archive that cannot be used; one line."""
    return ArtifactError(
        f"{path}: expected a grid (.zarr.zip), got a file that cannot be read "
        f"({' '.join(reason.split())}); fetch or build it again"
    )


def check_zarr_zip(path: Path, arrays: Sequence[str], format_version: int) -> None:
    """Refuse an archive that is not just these arrays in this format.

    Raises
    ------
    ArtifactError : missing or damaged; names that leave the archive, links, repeated names,
        compressed entries; sizes, types or codecs that no grid has; chunks missing or too large
    Incompatible : of a newer format
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a grid file, got nothing there; check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _check_entries(archive, path.stat().st_size)
            version = _read_metadata(archive, entries, "zarr.json")["attributes"]["format_version"]
            if version == format_version:
                metadata = {
                    name: _read_metadata(archive, entries, f"{name}/zarr.json") for name in arrays
                }
                _check_arrays(archive, entries, metadata)
    except UNREADABLE as e:
        raise damaged(path, f"{type(e).__name__}: {e}") from e
    if version != format_version:
        raise Incompatible(
            f"{path}: expected grid format {format_version}, got {version!r}; "
            "update sfhzoo or fetch another version of the grid"
        )


def _check_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name; ValueError unless all are plain stored files of this archive."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        # zipfile cuts a name at a NUL and turns the system's separator into "/"
        name = entry.orig_filename
        if "\\" in name or ":" in name or any(p in ("", ".", "..") for p in name.split("/")):
            raise ValueError(f"the entry {name!r} is no plain file inside the archive")
        if name != entry.filename or name in entries:
            raise ValueError(f"the entry {name!r} occurs twice or hides another name")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"the entry {name!r} is a link or a device")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"the entry {name!r} is compressed; expected stored entries")
        entries[name] = entry
    if sum(e.file_size for e in entries.values()) > size:
        raise ValueError("entries overlap")
    return entries


def _read_metadata(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str
) -> dict[str, Any]:
    if entries[name].file_size > MAX_METADATA_BYTES:
        raise ValueError(f"{name} of {entries[name].file_size:,} bytes")
    content: dict[str, Any] = parse_json(archive.read(name))
    return content


def _check_arrays(
    archive: zipfile.ZipFile,
    entries: Mapping[str, zipfile.ZipInfo],
    metadata: Mapping[str, Mapping[str, Any]],
) -> None:
    expected, total = {"zarr.json", *(f"{name}/zarr.json" for name in metadata)}, 0
    stored = sum(entry.file_size for entry in entries.values())
    limit = min(MAX_GRID_BYTES, max(ALWAYS_BYTES, MAX_RATIO * stored))
    for name, array in metadata.items():
        chunks, n_bytes = _calc_layout(name, array)
        total += math.prod(chunks) * n_bytes
        # fewer than the entries, or the names below would fill the memory
        if total > limit or math.prod(chunks) > len(entries):
            raise ValueError(f"{name} claims {math.prod(chunks):,} chunks of {n_bytes:,} bytes")
        compressed = len(array["codecs"]) == 2
        for index in itertools.product(*(range(n) for n in chunks)):
            key = "/".join([name, "c", *map(str, index)])
            if key not in entries:
                raise ValueError(f"the chunk {key} is missing")
            content = archive.read(key)
            found = calc_frame_size(content) if compressed else len(content)
            if found != n_bytes:
                raise ValueError(f"the chunk {key} unpacks to {found}, expected {n_bytes:,} bytes")
            expected.add(key)
    if unknown := sorted(set(entries) - expected):
        raise ValueError(f"the entry {unknown[0]!r} belongs to no array")


def _calc_layout(name: str, array: Mapping[str, Any]) -> tuple[list[int], int]:
    """(number of chunks along each axis, bytes of one chunk) of an array."""
    shape, grid, keys = array["shape"], array["chunk_grid"], array["chunk_key_encoding"]
    chunk = grid["configuration"]["chunk_shape"]
    if not 1 <= len(shape) <= 3 or len(shape) != len(chunk):
        raise ValueError(f"{name} has shape {shape} in chunks {chunk}")
    if any(type(n) is not int or n < 1 for n in (*shape, *chunk)):
        raise ValueError(f"{name} has shape {shape} in chunks {chunk}")
    if array["data_type"] not in _ITEM_BYTES:
        raise ValueError(f"{name} has type {array['data_type']!r}")
    if [codec["name"] for codec in array["codecs"]] not in _CODECS:
        raise ValueError(f"{name} uses codecs {array['codecs']}")
    separator = keys.get("configuration", {}).get("separator", "/")
    if (grid["name"], keys["name"], separator) != ("regular", "default", "/"):
        raise ValueError(f"{name} has chunks {grid['name']!r}, keys {keys}")
    if array.get("storage_transformers"):
        raise ValueError(f"{name} has storage transformers")
    counts = [math.ceil(n / c) for n, c in zip(shape, chunk, strict=True)]
    return counts, math.prod(chunk) * _ITEM_BYTES[array["data_type"]]


def calc_frame_size(content: bytes) -> int | None:
    """Bytes that one zstd frame says it unpacks to; None unless `content` is just such a frame.

    RFC 8878, section 3.1.1: magic, descriptor, window, dictionary, content size, blocks, checksum.
    """
    if len(content) < 5 or content[:4] != _ZSTD_MAGIC:
        return None
    descriptor = content[4]
    single = descriptor >> 5 & 1
    start = 6 - single + (0, 1, 2, 4)[descriptor & 3]
    n = (single, 2, 4, 8)[descriptor >> 6]
    if n == 0 or len(content) < start + n:
        return None
    size = int.from_bytes(content[start : start + n], "little") + (256 if n == 2 else 0)
    position, last = start + n, 0
    while not last:
        header = content[position : position + 3]
        if len(header) < 3:
            return None
        block = int.from_bytes(header, "little")
        last, kind = block & 1, block >> 1 & 3
        # a run-length block holds one byte, whatever it unpacks to
        position += 3 + (1 if kind == 1 else block >> 3)
    position += 4 * (descriptor >> 2 & 1)
    return size if position == len(content) else None
