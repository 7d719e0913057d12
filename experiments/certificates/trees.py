"""Certificates for the MNIST test images that only branch and bound certifies: trees of splits that check.

python -m experiments.certificates.trees --weights FILE.pth --data-dir MNIST --work FOLDER --out results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

import ironbound as ib
from ironbound.certificate.checker import Checker, File, arrays_of
from ironbound.certificate.checker.claims import NONE, SLOPES, TREE
from ironbound.models import open_model

KINDS = {NONE: "none", SLOPES: "slopes", TREE: "tree"}


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--eps", default=0.1, type=float)
    parser.add_argument("--seconds", default=30.0, type=float, help="for a tree, per class")
    parser.add_argument("--machine", default="2 virtual cores, AMD EPYC")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data = ib.data.load("mnist", split="test", root=given.data_dir)
    model = open_model("small", given.weights, None)
    methods = ("interval", "dual", "crown", "alpha")
    found = ib.certify(
        model, data.inputs, data.labels, eps=given.eps, methods=methods, attack="pgd", store=given.work / "store"
    )
    left = np.flatnonzero(found.status == "unknown")
    x, y = data.inputs[left], data.labels[left]
    split = ib.certify(model, x, y, eps=given.eps, methods=("split",), attack=None, budget=60.0)
    start = time.process_time()
    written = ib.write_certificates(split, model, x, given.work / "trees", seconds=given.seconds)
    writing = time.process_time() - start
    checker = Checker(arrays_of(given.work / "trees" / "network.npz"), arrays_of(given.work / "trees" / "data.npz"))
    start = time.process_time()
    answers = checker.check_file(File.read(given.work / "trees" / "certificates.ibc"))
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": given.machine,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "command": "python -m experiments.certificates.trees --weights "
        f"{given.weights.name} --seconds {given.seconds:g}",
        "open_without_search": len(left),
        "certified_by_split_alone": int((split.status == "certified").sum()),
        "certificates": len(written.certificates),
        "accepted": sum(answer is None for answer in answers.values()),
        "without_certificate": left[list(written.open)].tolist(),
        "processor_seconds": {"write": round(writing, 1), "check": round(time.process_time() - start, 1)},
        "images": [
            {"image": int(left[one.index]), "payload": KINDS[one.kind], "bytes": len(one.payload), "margin": one.margin}
            for one in written.certificates
        ],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
