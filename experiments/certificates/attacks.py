"""Attacks on the files: every byte of 100 certificates changed in turn, 10 000 fuzzed files, false contexts.

    python -m experiments.certificates.attacks --folder FOLDER --out results/attacks.json

`--folder` holds certificates of the released MNIST network (see mnist.py). A changed certificate counts as false where
the network, run at corners of the claimed region, has a smaller margin than the claim that was accepted.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ironbound.certificate.checker import Certificate, CertificateError, Checker, File, arrays_of
from ironbound.certificate.checker.layers import Affine, Rows


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--machine", default="2 virtual cores, AMD EPYC")
    given = parser.parse_args()
    file = File.read(given.folder / "certificates.ibc")
    arrays, data = arrays_of(given.folder / "network.npz"), arrays_of(given.folder / "data.npz")
    checker = Checker(arrays, data)
    with_payload = [one for one in file.certificates if one.payload][:20]
    plain = [one for one in file.certificates if not one.payload][: 100 - len(with_payload)]
    chosen = replace(file, certificates=sorted([*with_payload, *plain], key=lambda one: one.index))
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": given.machine,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seed": 0,
        "command": "python -m experiments.certificates.attacks --folder FOLDER",
        "flips": flips(checker, chosen),
        "fuzz": fuzz(checker, chosen, 10_000),
        "contexts": contexts(checker, chosen, arrays, data),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def flips(checker: Checker, file: File) -> dict:
    """Changes every byte in turn; records that did not change with the query are not checked again."""
    rng = np.random.default_rng(0)
    raw, true = file.pack(), {one.index: one for one in file.certificates}
    count = {
        "bytes": len(raw),
        "certificates": len(true),
        "malformed": 0,
        "refused": 0,
        "accepted_and_true": 0,
        "false": 0,
    }
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ int(rng.integers(1, 256))]) + raw[place + 1 :]
        try:
            found = File.unpack(changed)
            checker.belongs(found)
        except CertificateError:
            count["malformed"] += 1
            continue
        same = (found.norm, found.mode, str(found.clip)) == (file.norm, file.mode, str(file.clip))
        claims = [one for one in found.certificates if not (same and true.get(one.index) == one)]
        for one in claims[:3] if not same else claims:
            if checker.check(one, found.norm, found.mode, found.clip, found.common) is not None:
                count["refused"] += 1
            elif one.margin <= attacked(checker, one, found.norm) + 1e-6:
                count["accepted_and_true"] += 1
            else:
                count["false"] += 1
    return count


def attacked(checker: Checker, one: Certificate, norm: str) -> float:
    """The least margin at the center and, for linf, at the corner against each class's gradient."""
    x = checker.data["x"][one.index].reshape(-1).astype(float)
    values = run(checker, x)
    rows, found = checker.rows(one.label), []
    for k in range(len(values[-1])):
        if k == one.label:
            continue
        step = min(one.eps, 10.0) * np.sign(gradient(checker, values, rows[k])) if norm == "linf" else 0.0
        found += [rows[k] @ values[-1], rows[k] @ run(checker, x - step)[-1]]
    return float(min(found))


def run(checker: Checker, x: np.ndarray) -> list[np.ndarray]:
    """The values of all nodes."""
    values = [x]
    for node in checker.nodes[1:]:
        parts = [values[i] for i in node.inputs]
        values.append(node.run(parts) + node.bias if isinstance(node, Affine) else np.maximum(parts[0], 0))
    return values


def gradient(checker: Checker, values: list[np.ndarray], row: np.ndarray) -> np.ndarray:
    """Of a functional of the output of a chain of layers, at the values of a run."""
    for n in range(len(checker.nodes) - 1, 0, -1):
        node = checker.nodes[n]
        row = node.pull(Rows(row[None]))[0].coef[0] if isinstance(node, Affine) else row * (values[n] > 0)
    return row


def fuzz(checker: Checker, file: File, rounds: int) -> dict:
    """Random changes, cuts, insertions and large lengths: an answer, or a typed error; the slowest, and the memory."""
    rng = np.random.default_rng(0)
    raw = replace(file, certificates=[one for one in file.certificates if one.payload][:2]).pack()
    count = {"files": rounds, "typed_errors": 0, "answers": 0, "slowest_processor_seconds": 0.0}
    for _ in range(rounds):
        changed = bytearray(raw)
        for _ in range(rng.integers(1, 6)):
            place, how = int(rng.integers(len(changed))), rng.integers(4)
            if how == 0:
                changed[place] = int(rng.integers(256))
            elif how == 1:
                changed = changed[: place + 1]
            elif how == 2:
                changed[place:place] = rng.bytes(int(rng.integers(1, 9)))
            else:
                changed[place : place + 4] = b"\xff" * 4
        start = time.process_time()
        try:
            found = File.unpack(bytes(changed))
            checker.check_file(found)
            count["answers"] += 1
        except CertificateError:
            count["typed_errors"] += 1
        count["slowest_processor_seconds"] = max(count["slowest_processor_seconds"], time.process_time() - start)
    return count | {"largest_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def contexts(checker: Checker, file: File, arrays: dict, data: dict) -> dict:
    """Another network, other inputs, other labels, a larger radius."""
    name = next(name for name in arrays if arrays[name].dtype.kind == "f")
    weight, x = arrays[name].copy(), data["x"].copy()
    weight.reshape(-1)[0] = np.nextafter(weight.reshape(-1)[0], np.float32(9))
    x.reshape(-1)[0] += np.float32(1e-3)
    labels = {**data, "labels": (data["labels"] + 1) % 10}
    others = {"network": Checker({**arrays, name: weight}, data), "inputs": Checker(arrays, {**data, "x": x})}
    others["labels"] = Checker(arrays, labels)
    result = {}
    for what, other in others.items():
        try:
            other.check_file(file)
            result[what] = "accepted"
        except CertificateError as error:
            result[what] = str(error)
    wider = [replace(one, eps=one.eps * 10) for one in file.certificates]
    answers = checker.check_file(replace(file, certificates=wider))
    return result | {"ten times the radius": f"{sum(a is not None for a in answers.values())} of {len(wider)} refused"}


if __name__ == "__main__":
    main()
