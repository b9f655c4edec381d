"""Write the bundled mock observations from the test split of a training set, bit for bit.

python benchmarks/make_mocks.py TRAINING_SET [OUT]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sfhzoo.diagnostics import mocks
from sfhzoo.simulations import trainingset
from sfhzoo.zoo.artifacts import sha256_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("training_set", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=mocks.BUNDLED_MOCKS)
    args = parser.parse_args()
    path = mocks.make(trainingset.load(args.training_set), args.out)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, sha256 {sha256_of(path)}")


if __name__ == "__main__":
    main()
