"""The command line in a process of its own against the loopback Hub, and something to pull."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hubserver import HubServer

from sfhzoo.zoo.cards import Card, FileRecord, Source, card_to_dict

ROOT = Path(__file__).parents[1]
MAIN = "from sfhzoo.cli import main; main()"
WEIGHTS = "model.safetensors"


def make_env(hub: HubServer, home: Path, **more: str) -> dict[str, str]:
    """The environment of a user whose home, cache and login are empty."""
    ours = ("HF_", "SFHZOO_", "HUGGING", "XDG_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1,localhost", **more}  # fmt: skip


def start(*args: object, env: dict[str, str], code: str = MAIN, **options: Any) -> Any:
    """`sfhzoo ARGS` as a running process."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip


def finish(process: Any) -> subprocess.CompletedProcess[str]:
    """Its end."""
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sfhzoo(*args: object, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`sfhzoo ARGS` to its end."""
    return finish(start(*args, env=env, **options))


def make_source(hub: HubServer, repo: str, files: dict[str, bytes]) -> Source:
    """The source of files that are put on the Hub."""
    records = {n: FileRecord(hashlib.sha256(c).hexdigest(), len(c)) for n, c in files.items()}
    return Source(repo, hub.add(repo, files), records)


def write_catalogue(path: Path, *sources: Source) -> Path:
    """A catalogue in which each source is a prior called as its repository."""
    cards = [
        Card(s.repo.partition("/")[2], "prior", "none", "Bytes", "cc0-1.0", "@misc{none}",
             text="Bytes.", source=s)
        for s in sources
    ]  # fmt: skip
    path.write_text(json.dumps({"format_version": 1, "entries": [*map(card_to_dict, cards)]}))
    return path


def flip_byte(path: Path) -> None:
    """Damage a file behind whatever links to it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(content)
