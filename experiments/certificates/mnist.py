"""Certificates for every certified MNIST test image of a released network, checked by `ironbound check`.

    python -m experiments.certificates.mnist --weights FILE.pth --data-dir MNIST --work FOLDER --out results/NAME.json

Certifies (interval, dual, crown, alpha), writes certificates for real arithmetic and for the network as executed in
float32, and checks them with one process for each core. `--work` keeps the store and the certificates: a second call
only checks and measures again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

import ironbound as ib
from ironbound.certificate.checker.claims import HEADER, NONE, RECORD, SLOPES, TREE
from ironbound.models import open_model

METHODS = "interval,dual,crown,alpha"
KINDS = {NONE: "none", SLOPES: "slopes", TREE: "tree"}


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--eps", default=0.1, type=float)
    parser.add_argument("--limit", default=10000, type=int)
    parser.add_argument("--jobs", default=os.cpu_count(), type=int)
    parser.add_argument("--seconds", default=10.0, type=float, help="for a tree, per class")
    parser.add_argument("--budget", default=60.0, type=float, help="for split, per example")
    parser.add_argument("--machine", default="2 virtual cores, AMD EPYC")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data = ib.data.load("mnist", split="test", root=given.data_dir)
    x, y = data.inputs[: given.limit], data.labels[: given.limit]
    model = open_model("small", given.weights, None)
    methods = tuple(given.methods.split(","))
    start = time.monotonic()
    found = ib.certify(
        model, x, y, eps=given.eps, methods=methods, attack=None, store=given.work / "store", budget=given.budget
    )
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": given.machine,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "command": "python -m experiments.certificates.mnist --weights "
        f"{given.weights.name} --eps {given.eps} --methods {given.methods} --limit {given.limit}",
        "certified": found.summary()["method"],
        "seconds": {"certify": round(time.monotonic() - start, 1)},
        "arithmetic": {mode: one_arithmetic(given, found, model, x, mode) for mode in ("real", "float32")},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def one_arithmetic(
    given: argparse.Namespace, found: ib.Certification, model: nn.Module, x: torch.Tensor, mode: str
) -> dict:
    """Writes and checks for one arithmetic."""
    folder = given.work / mode
    start = time.process_time()
    written = ib.write_certificates(found, model, x, folder, mode=mode, seconds=given.seconds)
    writing = time.process_time() - start
    checked, checking = check(["check", str(folder), "--eps", str(given.eps), "--jobs", str(given.jobs), "--json"])
    sizes = np.array([HEADER.size + RECORD.size + len(one.payload) for one in written.certificates])
    kinds = [one.kind for one in written.certificates]
    return {
        "certificates": len(written.certificates),
        "accepted": checked["proved"],
        "refused": len(checked["refused"]),
        "payloads": {name: kinds.count(kind) for kind, name in KINDS.items()},
        "methods_of_those_with_payload": dict(
            Counter(found.method[one.index] for one in written.certificates if one.kind)
        ),
        "least_margin": checked["least_margin"],
        "bytes_alone": {
            "largest": int(sizes.max()),
            "above_300": int((sizes > 300).sum()),
            "mean": float(sizes.mean()),
        },
        "bytes_of_the_file": written.bytes,
        "seconds": {"write, processor": round(writing, 1), "check": round(checking, 1), "jobs": given.jobs},
    }


def check(arguments: list[str]) -> tuple[dict, float]:
    """Runs `ironbound check`; its JSON and its seconds, the start of the process included."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ironbound", *arguments], capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), time.monotonic() - start


if __name__ == "__main__":
    main()
