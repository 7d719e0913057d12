"""The guard on attacked inputs of the MNIST test set: no adversarial example of a correctly classified image is passed.

    python experiments/guard/attacked.py --weights wong_kolter_mnist_small.pth --data-dir MNIST --out result.json

Every image is attacked by PGD towards every other class and without a target; each point found that changes a correct
answer is shown to the guard, in torch and as the exported program.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.attacks import pgd

BATCH = 500


def main() -> None:
    """Runs the experiment and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = ib.models.build("small")
    ib.models.load_weights(model, options.weights)
    data = ib.data.load("mnist", split="test", root=options.data_dir)
    x, labels = data.inputs[: options.limit], data.labels[: options.limit]
    result = measured(model.eval(), x, labels, options.steps, options.out.with_suffix(".onnx"))
    versions = {name: __import__(name).__version__ for name in ("torch", "onnx", "onnxruntime", "numpy")}
    result |= {"ironbound": ib.__version__, "python": platform.python_version(), "versions": versions, "seed": 0}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def measured(model: nn.Module, x: Tensor, labels: Tensor, steps: int, path: Path) -> dict[str, Any]:
    """Clean and attacked images through the guard and its program.

    Args:
        model: the classifier.
        x: images [n, 1, 28, 28].
        labels: int64 [n].
        steps: of PGD.
        path: for the program.

    Returns:
        Counts.
    """
    import onnxruntime

    eps = 0.1
    guard = ib.Guard(model, eps * (1 + 1e-6), shape=x.shape[1:])  # float32 attacks may leave the ball by a rounding
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    program = onnxruntime.InferenceSession(str(guard.export(path)), settings, providers=["CPUExecutionProvider"])
    path.unlink()
    counts: Counter[str] = Counter()
    spread = [0.0, 0.0]
    for first in range(0, len(x), BATCH):
        part, own = x[first : first + BATCH], labels[first : first + BATCH]
        said = guard(part)
        margin = _margins(program, part)
        difference = margin - said.margins.numpy()
        spread = [min(spread[0], float(difference.min())), max(spread[1], float(difference.max()))]
        counts["images"] += len(part)
        counts["clean images passed"] += int(said.safe.sum())
        counts["clean images passed by the program"] += int((margin > 0).sum())
        right = said.predictions == own
        counts["correctly classified"] += int(right.sum())
        counts["correctly classified and passed"] += int((right & said.safe).sum())
        counts.update(_attacked(model, guard, program, part[right], own[right], (steps, first)))
    return {
        "network": "small",
        "eps": eps,
        "norm": "linf",
        "pgd_steps": steps,
        "counts": dict(counts),
        "program minus torch": {"least": spread[0], "most": spread[1]},
    }


def _margins(program: Any, x: Tensor) -> np.ndarray:
    parts = [program.run(["margin"], {"x": piece.numpy()})[0] for piece in x.split(4)]
    return np.concatenate(parts)


def _attacked(
    model: nn.Module, guard: ib.Guard, program: Any, x: Tensor, labels: Tensor, attack: tuple[int, int]
) -> Counter[str]:
    counts: Counter[str] = Counter()
    steps, seed = attack
    found, fooled = [], torch.zeros(len(x), dtype=torch.bool)
    for targeted in (False, True):
        region = ib.LinfBall(x, 0.1)
        points = pgd(model, region, labels, steps=steps, targeted=targeted, seed=seed).points.detach()
        with torch.no_grad():
            success = model(points).argmax(1) != labels
        fooled |= success
        found.append(points[success])
    shown = torch.cat(found)
    counts["images with an adversarial example"] += int(fooled.sum())
    counts["adversarial examples"] += len(shown)
    if len(shown):
        counts["adversarial examples passed"] += int(guard(shown).safe.sum())
        counts["adversarial examples passed by the program"] += int((_margins(program, shown) > 0).sum())
    return counts


if __name__ == "__main__":
    main()
