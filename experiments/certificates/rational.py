"""The checker against rational arithmetic on random networks of every kind of layer, in three number formats.

    python -m experiments.certificates.rational --networks 200 --out results/rational.json

Run it from the repository's root: the rational side is that of the tests (`tests/certificate/exact_networks.py`).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from certificate.exact_networks import FAMILIES, build  # noqa: E402
from certificate.test_checker_exact import FORMATS, REGIONS, Oracle  # noqa: E402


def main() -> None:
    """Runs the experiment; a disagreement is an AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=200, type=int)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--machine", default="2 virtual cores, AMD EPYC")
    given = parser.parse_args()
    start, kinds, bounds = time.process_time(), Counter(), 0
    for number in range(given.networks):
        family, dtype = list(FAMILIES)[number % len(FAMILIES)], list(FORMATS)[number // len(FAMILIES) % len(FORMATS)]
        arrays, x = build(family, FORMATS[dtype], 1000 + number)
        norm, clip = REGIONS[number % len(REGIONS)]
        mode = "float32" if dtype == "float64" and number % 2 else "real"
        eps = (0.03, 0.11, 0.4)[number % 3]
        oracle = Oracle(arrays, FORMATS[dtype], (norm, x, eps, clip), mode, sharp=number % 2 == 0)
        oracle.check_nodes()
        oracle.check_calls()
        oracle.check_output(np.random.default_rng(number))
        kinds[f"{family}, {dtype}"] += 1
        bounds += sum(len(neurons) for _, neurons, *_ in oracle.found.calls) + 9
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": given.machine,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seeds": [1000, 1000 + given.networks - 1],
        "command": f"python -m experiments.certificates.rational --networks {given.networks}",
        "networks": given.networks,
        "bounds_compared": bounds,
        "bounds_above_the_exact_one": 0,
        "processor_seconds": round(time.process_time() - start, 1),
        "kinds": dict(kinds),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
