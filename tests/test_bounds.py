"""What an artifact may not ask for: every claim is refused before anything is allocated."""

from __future__ import annotations

import json
import stat
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numcodecs import Zstd
from safetensors.torch import save_file

from sfhzoo.errors import ArtifactError, Incompatible
from sfhzoo.grids import ssp
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.priors.network import build_network
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.samplers.posterior_network import ConditionalMLP
from sfhzoo.zoo import archives, bounds

# ---- safetensors --------------------------------------------------------------------------------


def write_raw(
    path: Path, header: Any, data: bytes = b"\0" * 24, length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(begin: int, end: int, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": tensor(0, 8), "b": tensor(8, 24)}
BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "two tensors overlap": ({"a": tensor(0, 16), "b": tensor(8, 24)}, "overlap"),
    "a hole between tensors": ({"a": tensor(0, 8), "b": tensor(12, 24)}, "hole"),
    "a tensor beyond the end": ({"a": tensor(0, 8), "b": tensor(8, 240)}, "its header has 240"),
    "bytes after the last tensor": ({"a": tensor(0, 8)}, "24 bytes of tensors"),
    "a shape unlike its bytes": ({"a": tensor(0, 24, shape=[7])}, "in 24 bytes"),
    "an astronomical shape": ({"a": tensor(0, 24, shape=[2**62, 2**62])}, "shape"),
    "a negative size": ({"a": tensor(0, 24, shape=[-6, -1])}, "shape"),
    "an offset that is no number": ({"a": tensor(0, 24) | {"data_offsets": ["0", 24]}}, "header"),
    "an unknown type": ({"a": tensor(0, 24, "F8_E4M3", [24])}, "'F8_E4M3'"),
    "whole numbers": ({"a": tensor(0, 24, "I32")}, "'I32'"),
    "no table": ([1, 2], "header"),
    "a tensor that is no table": ({"a": 3}, "header"),
    "a name twice": (b'{"a": 1, "a": 2}', "occurs twice"),
    "a JSON bomb": (b"[" * 100_000, "too deeply"),
    "not a number": (b'{"a": NaN}', "NaN"),
}


def test_an_honest_file_gives_its_shapes(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(4, dtype=torch.float64),
        "c": torch.ones(()),
    }
    save_file(weights, path, metadata={"format": "pt"})
    assert bounds.check_safetensors(path) == {"a": (2, 3), "b": (4,), "c": ()}
    with pytest.raises(ArtifactError, match="expected at most 100"):
        bounds.check_safetensors(path, max_bytes=100)


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_forged_header_is_refused_in_one_line(tmp_path, case):
    header, message = BAD_HEADERS[case]
    path = write_raw(tmp_path / "w.safetensors", header)
    with pytest.raises(ArtifactError, match=message) as caught:
        bounds.check_safetensors(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("length", [2**63, bounds.MAX_HEADER_BYTES + 1, 10_000])
def test_a_header_longer_than_the_file_or_the_bound_is_not_read(tmp_path, length):
    path = write_raw(tmp_path / "w.safetensors", GOOD, length=length)
    with pytest.raises(ArtifactError, match=f"a header of {length:,} bytes"):
        bounds.check_safetensors(path)


@pytest.mark.parametrize("keep", [0, 5, 30, -1])
def test_truncated_weights_are_refused(tmp_path, keep):
    path = write_raw(tmp_path / "w.safetensors", GOOD)
    assert bounds.check_safetensors(path) == {"a": (2,), "b": (4,)}
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="expected safetensors"):
        bounds.check_safetensors(path)


# ---- config.json --------------------------------------------------------------------------------


def test_json_beyond_its_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_JSON_BYTES", 100)
    (tmp_path / "config.json").write_text(json.dumps({"a": "b" * 100}))
    with pytest.raises(ArtifactError, match="expected at most 100 bytes, got 109"):
        bounds.read_json(tmp_path / "config.json")


CONFIG = {
    "name": "a-v1",
    "kind": "prior",
    "architecture": "spectral-mlp",
    "hyperparameters": {"width": 16, "blocks": 1},
    "sde": {"kind": "ve", "sigma_min": 1e-3, "sigma_max": 16.0},
    "cosmology": "Planck15",
    "n_bins": 64,
}
BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a wide network": ({"hyperparameters": {"width": 10**9}}, "`width` = 1000000000"),
    "a deep network": ({"hyperparameters": {"blocks": 10**6}}, "`blocks` = 1000000, expected"),
    "a long list": ({"hyperparameters": {"ch_mult": [1] * 1000}}, "1000 values"),
    "infinity": ({"hyperparameters": {"width": float("inf")}}, "`width` = inf"),
    "not a number": ({"hyperparameters": {"width": float("nan")}}, "`width` = nan"),
    "a width of zero": ({"hyperparameters": {"width": 0}}, "`width` = 0"),
    "a width in words": ({"hyperparameters": {"width": "wide"}}, "`width` = 'wide'"),
    "a table": ({"hyperparameters": {"width": {"a": 1}}}, "`width`"),
    "more weights than the file": ({"hyperparameters": {"width": 4096}}, "weights file 20,000"),
    "another architecture": ({"architecture": "os.system"}, "'os.system'"),
    "no architecture": ({"architecture": None}, "architecture None"),
    "a million bins": ({"n_bins": 10**6}, "n_bins 1000000"),
    "half a bin": ({"n_bins": 0.5}, "n_bins 0.5"),
    "a cosmology made here": ({"cosmology": {"H0": 70}}, "cosmology"),
    "another SDE": ({"sde": {**CONFIG["sde"], "kind": "vp"}}, "'vp', expected 've'"),
    "noise levels upside down": ({"sde": {**CONFIG["sde"], "sigma_max": 1e-9}}, "noise levels"),
    "no SDE": ({"sde": None}, "refused"),
}


def test_an_honest_config_passes():
    bounds.check_config(CONFIG, Path("config.json"), 22_000)


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_an_absurd_config_is_refused_before_a_network_is_built(case):
    changes, message = BAD_CONFIGS[case]
    with pytest.raises(Incompatible, match=message):
        bounds.check_config({**CONFIG, **changes}, Path("config.json"), 20_000)


@pytest.mark.parametrize("key", CONFIG)
def test_a_config_without_a_key_says_which(key):
    with pytest.raises(Incompatible, match=f"missing '{key}'"):
        bounds.check_config({k: v for k, v in CONFIG.items() if k != key}, Path("c"), 22_000)


NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("spectral-mlp", {"width": 16, "blocks": 1}),
    ("spectral-mlp", {"width": 128, "blocks": 3, "shape": [2, 16]}),
    ("mlp", {"units": 8, "layers": 1}),
    ("mlp", {"units": 64, "layers": 6, "bottleneck": 8}),
    ("ncsnpp", {"nf": 8, "ch_mult": [1, 1], "num_res_blocks": 1}),
    ("ncsnpp", {"nf": 16, "ch_mult": [1, 2, 2], "attention": False}),
    ("ncsnpp", {"nf": 8, "ch_mult": [2], "progressive": "none", "progressive_input": "none"}),
    ("conditional-spectral-mlp", {"n_state": 19, "n_features": 40, "width": 32, "blocks": 2}),
]


@pytest.mark.parametrize(("architecture", "h"), NETWORKS)
def test_the_least_number_of_weights_is_a_lower_bound_that_binds(architecture, h):
    if architecture.startswith("conditional"):
        network: torch.nn.Module = ConditionalMLP(**h)
    else:
        network = build_network(architecture, h, NoiseSchedule())
    n_values = sum(v.numel() for v in network.state_dict().values())
    least = bounds._calc_least_values(architecture, h)
    # a network larger than its file by more than a small factor is refused before it is built
    assert least <= n_values <= 15 * least


# ---- Zarr zips ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, bytes]:
    """The entries of a small honest grid."""
    rng = np.random.default_rng(1)
    wave = np.linspace(3000.0, 9000.0, 3000)
    grid = SSPGrid(
        "toy-v1", np.array([-1.0, 0.0]), np.array([1e6, 1e8, 1e10]), wave,
        rng.random((2, 3, 3000)).astype(np.float32), np.full((2, 3), 0.6), np.full(3000, 2.5),
        np.array([True, True]),
    )  # fmt: skip
    path = grid.write(tmp_path_factory.mktemp("grid") / "toy-v1.zarr.zip")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(
    path: Path, content: dict[str, bytes], extra: tuple[tuple[zipfile.ZipInfo, bytes], ...] = ()
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        for entry, data in extra:
            archive.writestr(entry, data)
    return path


def check(path: Path) -> None:
    archives.check_zarr_zip(path, ssp._ARRAYS, ssp.FORMAT_VERSION)


@pytest.fixture
def refused(tmp_path):
    """Asserts that the checked archive and the reader both refuse, in one line."""

    def _refused(path: Path, message: str) -> None:
        for read in (check, SSPGrid.read):
            with pytest.raises(ArtifactError, match=message) as caught:
                read(path)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    return _refused


def test_an_honest_archive_passes(tmp_path, content):
    path = write_zip(tmp_path / "toy-v1.zarr.zip", content)
    check(path)
    assert SSPGrid.read(path).name == "toy-v1"


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:/evil", "a//b", "./a", "a/"]
)
def test_a_name_that_leaves_the_archive_is_refused(tmp_path, content, refused, name):
    path = write_zip(tmp_path / "g.zarr.zip", content, ((zipfile.ZipInfo(name), b"x"),))
    refused(path, "is no plain file inside the archive")


def test_a_link_is_refused(tmp_path, content, refused):
    link = zipfile.ZipInfo("flux/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(write_zip(tmp_path / "g.zarr.zip", content, ((link, b"/etc/passwd"),)), "a link")


def test_a_name_that_occurs_twice_is_refused(tmp_path, content, refused):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(
            tmp_path / "g.zarr.zip", content, ((zipfile.ZipInfo("zarr.json"), b"{}"),)
        )
    refused(path, "occurs twice")


def test_a_name_that_ends_in_secret_is_refused(tmp_path, content, refused):
    """Behind a NUL, zipfile shows another name than the file has."""
    path = write_zip(tmp_path / "g.zarr.zip", content, ((zipfile.ZipInfo("flux/Xevil"), b"x"),))
    path.write_bytes(path.read_bytes().replace(b"flux/Xevil", b"flux/\0evil"))
    refused(path, "hides another name|no plain file")


def test_an_entry_that_belongs_to_no_array_is_refused(tmp_path, content, refused):
    refused(write_zip(tmp_path / "g.zarr.zip", {**content, "run.py": b"1"}), "belongs to no array")


def test_a_deflated_bomb_is_refused_unopened(tmp_path, content, refused):
    bomb = zipfile.ZipInfo("flux/c/0/0/0")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    others = {k: v for k, v in content.items() if k != bomb.filename}
    path = write_zip(tmp_path / "g.zarr.zip", others, ((bomb, b"\0" * 10_000_000),))
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    refused(path, "is compressed; expected stored entries")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def edit(content: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    metadata = json.loads(content[name])
    change(metadata)
    return {**content, name: json.dumps(metadata).encode()}


def set_codecs(*names: str) -> Callable[[Any], Any]:
    return lambda m: m.update(codecs=[{"name": n, "configuration": {}} for n in names])


EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "petabytes": (lambda m: m.update(shape=[10**6] * 3), "chunks of"),
    "a chunk of terabytes": (
        lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[10**4] * 3),
        "chunks of 4,000,000,000,000 bytes",
    ),
    "a billion chunks": (
        lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[1, 1, 1]),
        "claims 18,000 chunks",
    ),
    "an axis of zero": (lambda m: m.update(shape=[0, 3, 3000]), "has shape"),
    "ten axes": (lambda m: m.update(shape=[1] * 10), "has shape"),
    "objects": (lambda m: m.update(data_type="object"), "has type 'object'"),
    "text of any length": (lambda m: m.update(data_type={"name": "string"}), "type|unhashable"),
    "a codec that may crash": (set_codecs("bytes", "blosc"), "uses codecs"),
    "a codec that runs code": (set_codecs("bytes", "pickle"), "uses codecs"),
    "packed twice": (set_codecs("bytes", "zstd", "zstd"), "uses codecs"),
    "shards": (set_codecs("sharding_indexed"), "uses codecs"),
    "irregular chunks": (lambda m: m["chunk_grid"].update(name="rectilinear"), "rectilinear"),
    "other keys": (lambda m: m["chunk_key_encoding"].update(name="v2"), "v2"),
    "transformers": (lambda m: m.update(storage_transformers=[{"name": "x"}]), "transformers"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_array_that_no_grid_has_is_refused(tmp_path, content, refused, case):
    change, message = EDITS[case]
    refused(write_zip(tmp_path / "g.zarr.zip", edit(content, "flux/zarr.json", change)), message)


def test_a_chunk_that_unpacks_to_more_than_a_chunk_is_refused_unpacked(tmp_path, content, refused):
    bomb = bytes(Zstd(level=1).encode(b"\0" * 100_000_000))
    assert len(bomb) < 20_000
    bombs = {**content, "flux/c/0/0/0": bomb}
    refused(write_zip(tmp_path / "g.zarr.zip", bombs), "unpacks to 100000000, expected 24,576")


def test_a_second_frame_behind_an_honest_one_is_refused(tmp_path, content, refused):
    frames = content["flux/c/0/0/0"] + bytes(Zstd(level=1).encode(b"\0" * 1_000_000))
    path = write_zip(tmp_path / "g.zarr.zip", {**content, "flux/c/0/0/0": frames})
    refused(path, "unpacks to None")


def test_a_grid_of_zeros_that_grows_a_thousandfold_is_refused(tmp_path, content, refused):
    """32 MB of zeros in a file of some kB: each chunk is honest, the ratio is not."""
    chunk = bytes(Zstd(level=1).encode(b"\0" * (1000 * 2048 * 4)))
    change = edit(
        content,
        "flux/zarr.json",
        lambda m: (
            m.update(shape=[4, 1000, 2048]),
            m["chunk_grid"]["configuration"].update(chunk_shape=[1, 1000, 2048]),
        ),
    )
    entries = {k: v for k, v in change.items() if not k.startswith("flux/c/")}
    zeros = {**entries, **{f"flux/c/{i}/0/0": chunk for i in range(4)}}
    refused(write_zip(tmp_path / "g.zarr.zip", zeros), "claims 4 chunks of 8,192,000 bytes")


def test_consolidated_metadata_cannot_replace_what_was_checked(tmp_path, content):
    """zarr would believe it: here it says that `logzsol` has a million values."""
    forged = {**json.loads(content["logzsol/zarr.json"]), "shape": [10**6]}
    claim = {"kind": "inline", "must_understand": False, "metadata": {"logzsol": forged}}
    forging = edit(content, "zarr.json", lambda m: m.update(consolidated_metadata=claim))
    path = write_zip(tmp_path / "g.zarr.zip", forging)
    assert SSPGrid.read(path).logzsol.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("size", [0, 1, 200, 255, 256, 70_000, 300_000])
@pytest.mark.parametrize("checksum", [False, True])
def test_the_size_of_a_frame_is_that_of_its_content(size, checksum):
    data = np.random.default_rng(0).bytes(size // 2) + b"\0" * (size - size // 2)
    frame = bytes(Zstd(level=3, checksum=checksum).encode(data)) if size else b""
    assert archives.calc_frame_size(frame) == (size or None)
    assert archives.calc_frame_size(frame + b"\0") is None
    assert archives.calc_frame_size(frame[:-1]) is None
