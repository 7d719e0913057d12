"""Time and memory of the certificate against the number of classes and the hidden width, on random networks.

Run: python -m experiments.sdp.scaling [--large]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

import ironbound as ib
from ironbound.semidefinite.pairwise import sdp

SIZES = [(10, 100), (10, 500), (10, 1000), (10, 2000), (100, 100)]
LARGE = [(100, 500), (100, 1000), (100, 2000)]
GAP = 2e-3


def measured(classes: int, width: int) -> dict[str, float | int]:
    """The certificate of one random network on 784 inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, classes)).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = sdp(model, torch.zeros(1, 784), gap=GAP)
    spent = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "classes": classes,
        "width": width,
        "pairs": len(found.pairs),
        "process_seconds": round(spent, 1),
        "peak_mib_above_start": round((after - before) / 1024),
        "largest_gap": float(f"{found.gap.max():.3g}"),
    }


def main() -> None:
    """Each size in a process of its own, so that peaks of memory do not mix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="100 classes with 500 and 2000 neurons too (an hour)")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measured(*chosen.one)))
        return
    rows: list[dict[str, float | int]] = []
    for classes, width in SIZES + LARGE * chosen.large:
        command = [sys.executable, __file__, "--one", str(classes), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
        write(rows, chosen)


def write(rows: list[dict[str, float | int]], chosen: argparse.Namespace) -> None:
    """Writes what is measured so far."""
    record = {
        "format": "ironbound-sdp-scaling/1",
        "settings": {"inputs": 784, "network": "random, torch's initialisation, ReLU", "gap": GAP},
        "rows": rows,
        "versions": {"ironbound": ib.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": f"{chosen.machine}, {torch.get_num_threads()} thread(s), CPU only",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
