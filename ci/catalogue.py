"""Bring everything that follows from the cards up to date. Called by ci/catalogue.

1. The model-index of a card whose artifact is bundled or in releases/: from its metrics.json.
2. The sections "Training" and "Quality" of a prior in releases/, "Training" and "Coverage" of a
   posterior network: from config.json, the weights and metrics.json, so that nobody types a
   measured number.
3. The artifact's README.md: a copy of its card; its manifest follows.
4. sfhzoo/data/catalogue.json: from model_cards/, grids/ and the bundled artifacts' identities.

With --check nothing is written; exit code 1 when something is not current.
"""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfhzoo.diagnostics.quality import format_report
from sfhzoo.diagnostics.scorereport import format_set, format_verdict
from sfhzoo.errors import ArtifactError, SfhzooError
from sfhzoo.zoo import artifacts, bounds, catalogue
from sfhzoo.zoo.cards import metrics_of, with_metrics

ROOT = Path(__file__).resolve().parents[1]
CARDS, GRIDS, RELEASES = ROOT / "model_cards", ROOT / "grids", ROOT / "releases"
CURVE = "training.png"
BUFFERS = ("basis", "eigenvalues", "covariance", "frequency")
"""Ends of the names of tensors that are not trained."""


def write_if_other(path: Path, content: str | bytes, check: bool) -> bool:
    """Whether `path` holds another content; it is written unless `check`."""
    wanted = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == wanted:
        return False
    if not check:
        path.write_bytes(wanted)
    return True


def describe_training(directory: Path) -> str:
    """Network, training and their cost, from the artifact of a prior."""
    config = artifacts.read_json(directory / artifacts.CONFIG)
    sde, scaling, made = config["sde"], config["scaling"], config["training"]
    shapes = bounds.check_safetensors(directory / artifacts.WEIGHTS)
    n = sum(math.prod(s) for name, s in shapes.items() if not name.endswith(BUFFERS))
    sizes = ((k, v) for k, v in config["hyperparameters"].items() if k != "borrowed_basis")
    network = ", ".join(f"{k} {v}" for k, v in sizes)
    bend = "" if scaling["logzsol_cap"] is None else " with the bend under the ceiling undone"
    first = "SFR" if scaling["kind"] == "linear" else f"log10(SFR + {scaling['sfr_floor']:g})"
    start = made["start"]["name"] if made.get("start") else made["recipe"].get("start")
    rate, minutes = made["steps"] / made["cpu_seconds"], made["cpu_seconds"] / 60
    parts = [
        f"Network `{config['architecture']}` ({network}; {n / 1e6:.2f} million parameters) in "
        f"score_models' variance-exploding SDE, sigma {sde['sigma_min']:g} to "
        f"{sde['sigma_max']:g}; x is {first} and log10 Z/Z_sun{bend}, standardised per bin.",
        (f"Started from the weights of `{start}`. " if start else "")
        + f"{made['steps']:,} steps of {made['batch']} histories, out of "
        f"{config['training_set']['n_train']:,}; averaged weights. {minutes:.0f} minutes of CPU "
        f"time, threads: {made['threads']}; {rate:.1f} steps or {rate * made['batch']:,.0f} "
        "histories per CPU second.",
    ]
    text = "\n\n".join(textwrap.fill(part, 99, break_on_hyphens=False) for part in parts)
    return text + _show_curve(directory)


def describe_quality(directory: Path) -> str:
    """The table of `sfhzoo prior evaluate`; ArtifactError when it is of other weights."""
    path = directory / "metrics.json"
    if not path.is_file():
        return "Not measured yet.\n"
    result = artifacts.read_json(path)
    if result.get("sha256") != (identity := artifacts.identity_of(directory)):
        raise ArtifactError(
            f"{path}: expected what was measured on {identity[:12]}, got "
            f"{str(result.get('sha256'))[:12]}; run sfhzoo prior evaluate again"
        )
    return f"""\
Measured by `sfhzoo prior evaluate`; the test histories were never trained on. The classifiers are
gradient-boosted trees, `null` is their accuracy between two halves of the test histories.

{format_report(result)}"""


def describe_network_training(directory: Path) -> str:
    """What a posterior network was trained on, and for how long."""
    config = artifacts.read_json(directory / artifacts.CONFIG)
    made = config["training"]
    options, start = made["options"], made.get("start")
    low, high = config["domain"]["snr"]
    text = (
        f"{options['steps']:,} steps of {options['batch']} out of {options['pool']:,} simulated "
        f"observations, with signal-to-noise ratios of {low:g} to {high:g}; "
        f"{made['cpu_seconds'] / 60:.0f} minutes of CPU time, threads: {made['threads']}."
    )
    if start is not None:
        text += f" Started from the weights of {_describe_start(start, config['name'])}."
    return textwrap.fill(text, 99, break_on_hyphens=False) + _show_curve(directory)


def _show_curve(directory: Path) -> str:
    return f"\n\n![Training curve]({CURVE})" if (directory / CURVE).is_file() else ""


def _describe_start(start: dict[str, Any], name: str) -> str:
    if start["name"] != name:
        return f"`{start['name']}`"
    low, high = start["domain"]["snr"]
    return (
        f"a first training: {start['steps']:,} steps at {low:g} to {high:g}, "
        f"{start['cpu_seconds'] / 60:.0f} minutes"
    )


def describe_coverage(directory: Path) -> str:
    """Verdict and tables of `sfhzoo validate`; ArtifactError when they are of other weights."""
    path = directory / "metrics.json"
    if not path.is_file():
        return "Not measured yet.\n"
    result = artifacts.read_json(path)
    measured = str(result["run"].get("posterior_network"))
    if measured != (identity := artifacts.identity_of(directory)):
        raise ArtifactError(
            f"{path}: expected what was measured on {identity[:12]}, got {measured[:12]}; run "
            "sfhzoo validate again"
        )
    signed = result["signed_deviation"]
    head = (
        f"Of the whole sampler, by `sfhzoo validate` ({result['run']['samples']} samples per fit, "
        f"{result['date']}): {result['n_mocks']} mock SDSS spectra of histories that were never "
        "trained on, redshift 0.02 to 0.2, every nuisance parameter drawn from the fit's prior. "
        f"Signed deviation at 68 %: {signed['value']:+.3f} ± {signed['error']:.3f} (positive: "
        "intervals are too wide)."
    )
    sets = [format_set(name, s).replace("## ", "### ", 1) for name, s in result["sets"].items()]
    return "\n\n".join([textwrap.fill(head, 99), format_verdict(result), *sets])


SECTIONS = {
    "prior": {"Training": describe_training, "Quality": describe_quality},
    "posterior-network": {"Training": describe_network_training, "Coverage": describe_coverage},
}


def with_sections(text: str, directory: Path, kind: str) -> str:
    """The card with the sections that are measured written anew; those it lacks stay away."""
    for title, describe in SECTIONS[kind].items():
        section = re.compile(rf"^## {title}\n\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
        if section.search(text):
            written = f"## {title}\n\n{describe(directory).strip()}\n\n"
            text = section.sub(lambda _, written=written: written, text)  # type: ignore[misc]
    return text


def _written(text: str, directory: Path) -> str:
    """The card as it should be, given the artifact."""
    config = artifacts.read_json(directory / artifacts.CONFIG)
    if directory.parent == RELEASES or config.get("kind") == "posterior-network":
        text = with_sections(text, directory, config["kind"])
    metrics: Any = directory / "metrics.json"
    return (
        with_metrics(text, metrics_of(artifacts.read_json(metrics))) if metrics.is_file() else text
    )


def update(check: bool) -> Iterator[Path]:
    """The files that are not current, brought up to date unless `check`."""
    for card in sorted(CARDS.glob("*/README.md")):
        places = (artifacts.BUNDLED / card.parent.name, RELEASES / card.parent.name)
        for directory in filter(Path.is_dir, places):
            text = _written(card.read_text(encoding="utf-8"), directory)
            if write_if_other(card, text, check):
                yield card
            curve, beside = directory / CURVE, card.with_name(CURVE)
            if curve.is_file() and write_if_other(beside, curve.read_bytes(), check):
                yield beside
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
