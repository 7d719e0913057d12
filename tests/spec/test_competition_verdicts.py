"""Networks and properties mean what the competition's tools found: inputs, outputs and signs are not mixed up."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from ironbound.capture.onnx import load
from ironbound.spec import read_instances, read_vnnlib


def verdicts(path: Path) -> dict[tuple[str, str, str], str]:
    """What at least two tools found, and none denied."""
    found = {}
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            sat, unsat = int(row["n_sat"]), int(row["n_unsat"])
            if (sat == 0) != (unsat == 0) and sat + unsat >= 2:
                found[row["benchmark"], row["onnx"], row["vnnlib"]] = "sat" if sat else "unsat"
    return found


@pytest.mark.shared
def test_random_inputs_agree_with_the_verdicts(shared: Path) -> None:
    folder = shared / "vnncomp"
    if not (folder / "verdicts.csv").is_file():
        pytest.skip("the shared folder has no competition verdicts")
    known = verdicts(folder / "verdicts.csv")
    counted = {"sat": [0, 0], "unsat": [0, 0]}
    generator = np.random.default_rng(0)
    for path in sorted(folder.glob("*/instances.csv")):
        networks = {}
        for place, instance in enumerate(read_instances(path)):
            key = (
                path.parent.name,
                instance.network.name.removesuffix(".gz"),
                instance.property.name.removesuffix(".gz"),
            )
            if key not in known or place % 3:
                continue
            if instance.network not in networks:
                networks[instance.network] = load(instance.network)
            network, prop = networks[instance.network], read_vnnlib(instance.property)
            assert prop.inputs == np.prod(network.input_shape)
            assert prop.outputs == np.prod(network.output_shape)
            found = False
            for case in prop.cases:
                x = generator.uniform(case.lower, case.upper, (200 if prop.inputs < 20 else 5, prop.inputs))
                x = x.astype(np.float32)
                with torch.no_grad():
                    y = network(torch.from_numpy(x).reshape(-1, *network.input_shape))
                inside = case.contains(x.astype(np.float64))
                found = found or bool(prop.counterexample(x[inside], y[torch.from_numpy(inside)]).any())
            counted[known[key]][found] += 1
    print(counted)
    assert counted["unsat"][True] == 0
    assert counted["unsat"][False] > 100
    assert counted["sat"][True] > counted["sat"][False] / 4
