"""What the checks of `sfhzoo pull` cost: the same files with it and with the Hub's bare client.

    python benchmarks/pull_speed.py [--megabytes 200] [--repeats 7]

Both run as commands of their own, in turns, into empty caches on the same disk, from the loopback
Hub of the tests in a third process. The bare client is `hf_hub_download` of each file at the
pinned commit: it checks no sha256 and writes no card. "In the process" leaves out the interpreter
and the imports. Transfers are uncompressed random bytes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from sfhzoo.zoo.cards import Card, FileRecord, Source, card_to_dict

REPO, NAME = "sfh/speed-v1", "speed-v1"
SERVE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from hubserver import HubServer
with HubServer() as hub:
    files = {"model.safetensors": os.urandom(int(sys.argv[2])), "config.json": b"{}"}
    sha = hub.add(sys.argv[3], files)
    import hashlib, json
    told = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in files.items()}
    print(json.dumps([hub.url, sha, told]), flush=True)
    sys.stdin.read()
"""
TIMED = """
import json, sys, time
given = json.loads(sys.argv[1])
{setup}
start = time.perf_counter()
{work}
print(time.perf_counter() - start)
"""
BARE = TIMED.format(
    setup="from huggingface_hub import hf_hub_download, constants",
    work="for name in given['files']:\n"
    "    hf_hub_download(given['repo'], name, revision=given['revision'])",
)
OURS = TIMED.format(
    setup="import huggingface_hub\nfrom sfhzoo.zoo import hub\n"
    "from sfhzoo.zoo.cards import FileRecord, Source\n"
    "records = {n: FileRecord(**r) for n, r in given['files'].items()}",
    work="hub.fetch(Source(given['repo'], given['revision'], records))",
)


def run(command: list[str], env: dict[str, str]) -> tuple[float, str]:
    """(wall seconds, stdout) of a command with an empty cache."""
    home = tempfile.mkdtemp(prefix="pull-speed-")
    try:
        start = time.perf_counter()
        done = subprocess.run(command, env={**env, "HF_HOME": home}, check=True, text=True,
                              capture_output=True)  # fmt: skip
        return time.perf_counter() - start, done.stdout
    finally:
        shutil.rmtree(home)


def measure(
    source: Source, catalogue: Path, env: dict[str, str], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each way, in turns; the first turn warms up and is not counted."""
    given = json.dumps({"repo": source.repo, "revision": source.revision,
                        "files": card_to_dict(make_card(source))["source"]["files"]})  # fmt: skip
    pull = ["sfhzoo", "pull", NAME, "--catalogue", str(catalogue)]
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for way, code in (("bare", BARE), ("ours", OURS)):
            wall, out = run([sys.executable, "-c", code, given], env)
            seconds.setdefault(f"{way} command", []).append(wall)
            seconds.setdefault(f"{way} in the process", []).append(float(out))
        seconds.setdefault("sfhzoo pull", []).append(run(pull, env)[0])
    return {way: values[1:] for way, values in seconds.items()}


def make_card(source: Source) -> Card:
    """A card that lets `sfhzoo pull` find the files."""
    return Card(NAME, "prior", "none", "Random bytes", "cc0-1.0", "@misc{none}", source=source,
                text="Bytes.")  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    tests = str(Path(__file__).resolve().parent.parent / "tests")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, tests, str(options.megabytes * 10**6), REPO],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None and server.stdin is not None
    try:
        url, sha, files = json.loads(server.stdout.readline())
        source = Source(REPO, sha, {n: FileRecord(**r) for n, r in files.items()})
        env = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1",
               "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            catalogue = Path(folder) / "catalogue.json"
            content = {"format_version": 1, "entries": [card_to_dict(make_card(source))]}
            catalogue.write_text(json.dumps(content))
            report(measure(source, catalogue, env, options.repeats), options.megabytes)
    finally:
        server.stdin.close()
        server.wait()


def report(seconds: dict[str, list[float]], megabytes: int) -> None:
    """Medians, spreads, and the ratios turn by turn."""
    print("# `sfhzoo pull` beside the bare client\n\nWritten by `benchmarks/pull_speed.py`.\n")
    hashing, machine = time_sha256(megabytes), f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{megabytes} MB, {machine}, {datetime.date.today()}; sha256 alone: {hashing:.2f} s")
    print("\n| | median s | smallest | largest |\n|---|---|---|---|")
    for way, values in seconds.items():
        print(f"| {way} | {median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    print("\n| ratio | median | smallest | largest |\n|---|---|---|---|")
    for ours, bare in (("sfhzoo pull", "bare command"), ("ours command", "bare command"),
                       ("ours in the process", "bare in the process")):  # fmt: skip
        r = [a / b for a, b in zip(seconds[ours], seconds[bare])]
        print(f"| {ours} / {bare} | {median(r):.2f} | {min(r):.2f} | {max(r):.2f} |")


def time_sha256(megabytes: int) -> float:
    """Seconds for the hash that cannot be saved."""
    data = os.urandom(10**6)
    start = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(megabytes):
        digest.update(data)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
