"""Bring everything that follows from the cards up to date. Called by ci/catalogue.

1. The model-index of a card whose artifact is bundled: from the artifact's metrics.json.
2. The bundled artifact's README.md: a copy of its card; its manifest follows.
3. sfhzoo/data/catalogue.json: from model_cards/, grids/ and the bundled artifacts' identities.

With --check nothing is written; exit code 1 when something is not current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sfhzoo.errors import SfhzooError
from sfhzoo.zoo import artifacts, catalogue
from sfhzoo.zoo.cards import metrics_of, with_metrics

ROOT = Path(__file__).resolve().parents[1]
CARDS, GRIDS = ROOT / "model_cards", ROOT / "grids"


def write_if_other(path: Path, text: str, check: bool) -> bool:
    """Whether `path` holds another text; it is written unless `check`."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    if not check:
        path.write_text(text, encoding="utf-8")
    return True


def update(check: bool) -> Iterator[Path]:
    """The files that are not current, brought up to date unless `check`."""
    for card in sorted(CARDS.glob("*/README.md")):
        directory = artifacts.BUNDLED / card.parent.name
        if not directory.is_dir():
            continue
        text = card.read_text(encoding="utf-8")
        if (directory / "metrics.json").is_file():
            metrics = metrics_of(artifacts.read_json(directory / "metrics.json"))
            text = with_metrics(text, metrics)
        if write_if_other(card, text, check):
            yield card
        if write_if_other(directory / "README.md", text, check):
            yield directory / "README.md"
            if not check:
                artifacts.write_manifest(directory)
    path = artifacts.BUNDLED / catalogue.PACKAGED
    if write_if_other(path, catalogue.make_catalogue([CARDS, GRIDS]), check):
        yield path


def main() -> int:
    """Print what was not current; the exit code."""
    check = "--check" in sys.argv[1:]
    try:
        stale = list(update(check))
    except SfhzooError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    for path in stale:
        print(f"{'not current' if check else 'written'}: {path.relative_to(ROOT)}")
    if check and stale:
        print("run ci/catalogue")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
