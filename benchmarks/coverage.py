"""Coverage, ranks, TARP and recovery of a sampler on the bundled mocks: all of them, or some.

    python benchmarks/coverage.py [--sampler cla --mocks 90] [--file MOCKS] [--workers 2]

The same functions as `sfhzoo validate`. Writes benchmarks/results/coverage-<sampler>.md and .json,
for other mocks (`sfhzoo simulation mocks`) coverage-<sampler>-<their file's name>; the single fits
are kept under --work, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from sfhzoo.diagnostics.scorereport import format_verdict
from sfhzoo.validation import Run, validate
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR

RESULTS = Path(__file__).parent / "results"


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
    args = parser.parse_args()
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
