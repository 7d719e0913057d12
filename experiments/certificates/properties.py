"""Certificates for the properties that `verify` proves: how many get one in the time, how large, how long checked.

python -m experiments.certificates.properties --data-dir VNNCOMP --work FOLDER --out results/properties.json

The sample is that of `winner_on_two_cpu_cores_60s.csv`, as in experiments/vnncomp. One process, one instance after the
other; an instance that --out holds already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ironbound as ib
from ironbound.certificate.checker import Checker, File, arrays_of
from ironbound.verdicts import Proved, Verdict

KINDS = ("none", "slopes", "tree of signs", "SDP vector", "tree of boxes")


def instance(folder: Path, network: str, prop: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """One row; None where the property is not proved."""
    paths = [folder / "onnx" / network, folder / "vnnlib" / prop]
    paths = [path if path.exists() else path.with_name(path.name + ".gz") for path in paths]
    shutil.rmtree(given.work, ignore_errors=True)
    start, decided = time.monotonic(), 0.0

    def noted(verdict: Verdict) -> None:
        nonlocal decided
        decided = time.monotonic() - start

    verdict = ib.verify(*paths, timeout=given.seconds, certificates=given.work, decided=noted)
    if not isinstance(verdict, Proved):
        return None
    row: dict[str, Any] = {"network": network, "property": prop, "method": verdict.method, "nodes": verdict.nodes}
    row |= {"verify_seconds": round(decided, 2), "seconds": round(verdict.seconds, 2), "arithmetic": verdict.arithmetic}
    row["payloads"] = [[KINDS[one.kind], len(one.payload)] for one in verdict.certificates]
    if not verdict.certificates:
        return row
    files = [given.work / name for name in ("network.npz", "data.npz", "certificates.ibc")]
    start = time.monotonic()
    checker, file = Checker(arrays_of(files[0]), arrays_of(files[1])), File.read(files[2])
    missing = checker.missing(checker.check_file(file))
    row |= {"bytes": files[2].stat().st_size, "check_seconds": round(time.monotonic() - start, 3)}
    return {**row, "property_proved": not missing}


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--benchmarks", nargs="+", default=["acasxu", "rl_benchmarks", "reach_prob_density"])
    parser.add_argument("--seconds", default=60.0, type=float, help="for the verdict and its certificates")
    parser.add_argument("--machine", default="2 virtual cores, AMD EPYC, shared with other work; one thread")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with (given.data_dir / "winner_on_two_cpu_cores_60s.csv").open(encoding="utf-8") as lines:
        sample = [row for row in csv.DictReader(lines) if row["benchmark"] in given.benchmarks]
    found = json.loads(given.out.read_text())["instances"] if given.out.exists() else {}
    for row in sample:
        name = f"{row['benchmark']} {row['onnx']} {row['vnnlib']}"
        if row["verdict"] == "sat" or name in found:
            continue
        found[name] = instance(given.data_dir / row["benchmark"], row["onnx"], row["vnnlib"], given)
        print(name, found[name], flush=True)
        proved = [(key.split()[0], one) for key, one in found.items() if one is not None]
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": given.machine,
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
            "command": "python -m experiments.certificates.properties --benchmarks "
            f"{' '.join(given.benchmarks)} --seconds {given.seconds:g}",
            "proved": {name: sum(key == name for key, _ in proved) for name in given.benchmarks},
            "with_certificates_of_all_clauses": {
                name: sum(key == name and one.get("property_proved", False) for key, one in proved)
                for name in given.benchmarks
            },
            "instances": found,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
