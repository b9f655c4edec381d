"""Coverage, ranks, TARP and recovery of a sampler on the bundled mocks: all of them, or some.

    python benchmarks/coverage.py [--sampler cla --mocks 90] [--file MOCKS] [--workers 2]
    python benchmarks/coverage.py --pool DIR DIR ...

The same functions as `sfhzoo validate`. Writes benchmarks/results/coverage-<sampler>.md and .json,
for other mocks (`sfhzoo simulation mocks`) coverage-<sampler>-<their file's name>; the single fits
are kept under --work, so that a stopped run goes on. --pool judges the S/N bands of finished runs
together (coverage-pooled.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from sfhzoo.diagnostics import scorecard
from sfhzoo.diagnostics.mocks import BANDS
from sfhzoo.diagnostics.scorereport import format_set, format_verdict
from sfhzoo.validation import FITS, Run, read_fits, validate
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR

RESULTS = Path(__file__).parent / "results"


def pool(directories: list[Path]) -> None:
    """Judge the fits of the last runs in `directories` together; mocks must differ."""
    rows, keys = [], []
    for directory in directories:
        last = (directory / FITS).read_text(encoding="utf-8").splitlines()[-1]
        keys.append(json.loads(last)["run"])
        found = read_fits(directory / FITS, keys[-1]).values()
        rows += [row for row in found if row["set"] in BANDS]
    metrics = scorecard.calc_metrics(rows)
    signed = metrics["signed_deviation"]
    head = (
        f"# {len(rows)} mocks of {len(keys)} runs ({', '.join(keys)})\n\n"
        f"Signed deviation at 68 %: {signed['value']:+.3f} ± {signed['error']:.3f}."
    )
    parts = [head, format_verdict(metrics), *(format_set(b, metrics["sets"][b]) for b in BANDS)]
    (RESULTS / "coverage-pooled.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(format_verdict(metrics))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prior", default=DEFAULT_PRIOR)
    parser.add_argument("--grid", default=DEFAULT_GRID)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument(
        "--mocks", type=int, help="in the three S/N bands together; all by default"
    )
    parser.add_argument("--file", type=Path, help="of other mocks than the bundled ones")
    parser.add_argument("--bands-only", action="store_true", help="no other sets")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("work/coverage"))
    parser.add_argument("--pool", type=Path, nargs="+", metavar="DIR", help="of finished runs")
    args = parser.parse_args()
    if args.pool:
        return pool(args.pool)
    other = args.file and str(args.file)
    run = Run(args.prior, args.grid, args.sampler, args.samples, args.seed, mocks=other)
    name = f"{args.sampler}-{args.file.stem}" if args.file else args.sampler
    metrics = validate(
        run,
        args.work / name,
        n_mocks=args.mocks,
        bands_only=args.bands_only,
        workers=args.workers,
        progress=True,
        say=print,
    )
    RESULTS.mkdir(exist_ok=True)
    for source, suffix in (("report.md", "md"), ("metrics.json", "json")):
        shutil.copyfile(args.work / name / source, RESULTS / f"coverage-{name}.{suffix}")
    print(format_verdict(metrics))


if __name__ == "__main__":
    main()
