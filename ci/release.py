"""Copy a trained artifact into releases/<name>/. Called by ci/release, which then fills its card.

python ci/release.py DIRECTORY [METRICS]

DIRECTORY is what `sfhzoo train` or `sfhzoo amortize` wrote, METRICS what `sfhzoo prior evaluate`
or `sfhzoo validate` measured on it (default: metrics.json in DIRECTORY). The card is
model_cards/<name>/README.md. Weights go into the repository once, when they are final.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from sfhzoo.errors import ArtifactError, SfhzooError
from sfhzoo.zoo import artifacts

ROOT = Path(__file__).resolve().parents[1]
CARDS, RELEASES = ROOT / "model_cards", ROOT / "releases"
MAX_WEIGHTS = 20_000_000
"""bytes"""


def release(directory: Path, metrics: Path | None = None) -> Path:
    """Fill releases/<name>/ from a trained artifact; returns it.

    Raises ArtifactError for an artifact that does not load, has no card, no metrics or more than
    20 MB of weights.
    """
    name = artifacts.load_any(directory).name
    card, metrics = CARDS / name / "README.md", metrics or directory / "metrics.json"
    for path, what in ((card, "its card"), (metrics, "what was measured on it")):
        if not path.is_file():
            raise ArtifactError(f"{name} is not ready: expected {what} at {path}")
    if (size := (directory / artifacts.WEIGHTS).stat().st_size) > MAX_WEIGHTS:
        raise ArtifactError(f"{name}: {size:,} bytes of weights, at most {MAX_WEIGHTS:,} go here")
    out = RELEASES / name
    out.mkdir(parents=True, exist_ok=True)
    for path in (directory / n for n in (artifacts.CONFIG, artifacts.WEIGHTS, "training.png")):
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    shutil.copyfile(metrics, out / "metrics.json")
    shutil.copyfile(card, out / "README.md")
    artifacts.write_manifest(out)
    return out


def main() -> int:
    """Release what the command line names; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("metrics", type=Path, nargs="?")
    args = parser.parse_args()
    try:
        print(f"written: {release(args.directory, args.metrics).relative_to(ROOT)}")
    except SfhzooError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
