"""Time that the guard takes for an image, on one thread: the exported program in onnxruntime, and torch.

    python experiments/guard/latency.py --weights wong_kolter_mnist_small.pth --data-dir MNIST --out latency.json

Medians of wall-clock time over the first test images of MNIST, batch by batch; needs a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ironbound as ib

SIZES = (1, 4, 16)
ROUNDS = 200


def main() -> None:
    """Measures and writes the result."""
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = ib.models.build("small").eval()
    ib.models.load_weights(model, options.weights)
    x = ib.data.load("mnist", split="test", root=options.data_dir, limit=ROUNDS * max(SIZES)).inputs
    guard = ib.Guard(model, 0.1, shape=x.shape[1:])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(guard.export(Path(folder) / "guard.onnx"))
        program = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    found = {}
    for size in SIZES:
        pieces = [piece.numpy() for piece in x[: ROUNDS * size].split(size)]
        times = [_seconds(lambda piece=piece: program.run(None, {"x": piece})) for piece in pieces]
        found[f"onnxruntime, batches of {size}"] = _milliseconds(times, size)
    times = [_seconds(lambda piece=piece: guard(piece)) for piece in x[:640].split(64)]
    found["torch, batches of 64"] = _milliseconds(times, 64)
    result = {
        "network": "small",
        "eps": 0.1,
        "milliseconds per image, one thread": found,
        "machine": options.machine,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {name: __import__(name).__version__ for name in ("torch", "onnxruntime", "numpy")},
        "ironbound": ib.__version__,
        "python": platform.python_version(),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _milliseconds(times: list[float], size: int) -> float:
    return round(float(np.median(times)) / size * 1e3, 3)


if __name__ == "__main__":
    main()
