"""The sorted figure of Wong & Kolter (2018), ICML, figure 5: certified and attacked radii of released networks.

    python experiments/radius/radius.py --data-dir MNIST --name NAME [--arch small --weights FILE] [--examples 500]

writes NAME.json and NAME.png beside this file. A folder of .npy files is the two-layer network of the SDP paper.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from torch import nn

import ironbound as ib
from ironbound.models import load_raghunathan, open_model
from ironbound.report.radius_figure import draw_radius

HERE = Path(__file__).resolve().parent
EPS = (0.02, 0.05, 0.1, 0.15, 0.2)


def main() -> None:
    """Runs one network and records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the two files")
    parser.add_argument("--weights", type=Path, help="state dict, or the folder of the SDP paper's network")
    parser.add_argument("--arch", default="small", help="architecture of the state dict; without weights untrained")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the official MNIST files")
    parser.add_argument("--examples", type=int, default=500, help="the first N test images")
    parser.add_argument("--method", default="dual")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    data = ib.data.load("mnist", "test", given.data_dir)
    data = data.inputs[: given.examples], data.labels[: given.examples]
    model = _network(given.arch, given.weights)
    wall, process = time.perf_counter(), time.process_time()
    result = ib.radius(model, data[0], method=given.method)
    seconds = {"wall": time.perf_counter() - wall, "process": time.process_time() - process}
    record = {
        "network": given.name,
        "examples": len(result),
        "clean_error": float((result.predictions != data[1]).double().mean()),
        "summary": result.summary(EPS),
        "seconds": {name: round(value, 2) for name, value in seconds.items()} | {"threads": torch.get_num_threads()},
        "settings": dict(result.settings),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    given.out.joinpath(f"{given.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    draw_radius(
        result, data[1], given.out / f"{given.name}.png", f"{given.name}: MNIST, first {len(result)} test images"
    )
    print(json.dumps(record["summary"], indent=1))


def _network(arch: str, weights: Path | None) -> nn.Module:
    if weights is not None and weights.is_dir():
        return load_raghunathan(weights)
    torch.manual_seed(0)
    return open_model(arch, weights)


if __name__ == "__main__":
    main()
