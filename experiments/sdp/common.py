"""What the scripts of this folder share: the released network, MNIST's test set, records."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.models.raghunathan import load_raghunathan
from ironbound.models.weights import load_weights

HERE = Path(__file__).parent
EPS = 0.1


def options(description: str, weights: bool = True) -> argparse.ArgumentParser:
    """The options that all scripts share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST's files")
    if weights:
        parser.add_argument("--weights", type=Path, required=True, help="folder or file with the network's weights")
    parser.add_argument("--images", type=int, default=10000, help="the first so many test images (10000)")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    parser.add_argument("--out", type=Path, help="the record (results/NAME.json)")
    return parser


def released(chosen: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, the images [n, 1, 28, 28] and the labels [n]."""
    test = ib.data.load("mnist", split="test", root=chosen.data_dir, limit=chosen.images)
    if chosen.weights.is_dir():
        model = load_raghunathan(chosen.weights)
    else:
        model = load_weights(ib.models.build("two-layer"), chosen.weights)
    return model.eval(), torch.as_tensor(test.inputs), torch.as_tensor(test.labels).long()


def differences(logits: Tensor, labels: Tensor) -> Tensor:
    """logit[label] - logit[k], infinite at the label, float64 [n, classes]."""
    logits = logits.double()
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return (logits.gather(1, labels[:, None]) - logits).masked_fill(own, torch.inf)


def error(margins: Tensor) -> float:
    """Per cent of the rows with a margin that is not above 0."""
    return round(100 * (~(margins > 0).all(1)).double().mean().item(), 2)


def attained(model: nn.Module, region: ib.LinfBall, labels: Tensor, steps: int) -> Tensor:
    """The least margins that PGD towards every class finds, [n, classes]: upper bounds of the true ones."""
    least = torch.full((len(labels), 10), torch.inf, dtype=torch.float64)
    for shift in range(1, 10):
        targets = torch.nn.functional.one_hot((labels + shift) % 10, 10).bool()
        found = ib.pgd(model, region, labels, steps=steps, targeted=True, targets=targets)
        with torch.no_grad():
            least = torch.minimum(least, differences(model.double()(found.points.double()), labels))
            model.float()
    return least


def write(name: str, settings: dict[str, Any], results: dict[str, Any], chosen: argparse.Namespace) -> None:
    """Writes and prints a record."""
    versions = {"ironbound": ib.__version__, "torch": torch.__version__, "python": platform.python_version()}
    record = {
        "format": "ironbound-sdp/1",
        "settings": {"data": "MNIST, test", "images": chosen.images, "eps": EPS, "norm": "linf", **settings},
        "results": results,
        "versions": versions,
        "machine": f"{chosen.machine}, {torch.get_num_threads()} thread(s), CPU only",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    path = chosen.out or HERE / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results, indent=1))
