"""How far random projections are off the exact dual bound, against their number k: JSON and a picture.

    python experiments/projections/error_against_k.py --data-dir MNIST --weights wong_kolter_mnist_small.pth

The network is `small` on the first test images of MNIST; every number is over all images, other classes and draws.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.bounding.projection import estimate_margins
from ironbound.regions import Region, ball

PROJECTIONS = (10, 25, 50, 100, 200)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST's files")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of the architecture `small`")
    parser.add_argument("--images", type=int, default=32, help="the first so many test images (32)")
    parser.add_argument("--eps", type=float, default=0.1, help="radius (0.1)")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--draws", type=int, default=8, help="independent draws of the random vectors (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    parser.add_argument("--out", type=Path, help="JSON file (results/error_against_k_NORM.json beside this script)")
    return parser.parse_args()


def measure(model: nn.Module, region: Region, labels: Tensor, draws: int, seed: int) -> dict[str, Any]:
    """Errors of the estimates for every k and estimator, and those of the exact bound to compare with.

    Args:
        model: the network.
        region: the inputs.
        labels: int64 [batch].
        draws: how often each estimate is repeated.
        seed: of the random vectors.

    Returns:
        The "exact" entry, and a list of "estimates".
    """
    rivals = torch.arange(10) != labels.unsqueeze(1)
    ib.margins(model, region, labels)  # the first call captures the network
    start = time.perf_counter()
    exact = ib.margins(model, region, labels)
    seconds = time.perf_counter() - start
    center = ib.margins(model, ib.LinfBall(region.center, 0.0), labels)
    found = {"mean_margin": round(exact[rivals].mean().item(), 4), "seconds": round(seconds, 4),
             "mean_fall": round((center - exact)[rivals].mean().item(), 4),
             "proved": int((exact[rivals].reshape(len(labels), -1) > 0).all(1).sum())}  # fmt: skip
    estimates = []
    generator = torch.Generator().manual_seed(seed)
    for estimator in ("median", "geometric"):
        for k in PROJECTIONS:
            start = time.perf_counter()
            drawn = [
                estimate_margins(model, region, labels, k, generator=generator, estimator=estimator).values
                for _ in range(draws)
            ]
            seconds = (time.perf_counter() - start) / draws
            values = torch.stack(drawn)
            estimates.append({"k": k, "estimator": estimator, "seconds": round(seconds, 4),
                              **_errors(values, exact, rivals)})  # fmt: skip
    return {"exact": found, "estimates": estimates}


def _errors(values: Tensor, exact: Tensor, rivals: Tensor) -> dict[str, float]:
    off = (values - exact)[:, rivals]
    above = values[:, rivals].reshape(len(values), len(exact), -1).amin(2) > 0
    return {
        "mean_error": round(off.mean().item(), 5),
        "rms_error": round(off.square().mean().sqrt().item(), 5),
        "median_absolute_error": round(off.abs().median().item(), 5),
        "largest_above": round(off.max().item(), 5),
        "largest_below": round(-off.min().item(), 5),
        "fraction_above_the_bound": round((off > 1e-5).float().mean().item(), 4),
        "seem_proved": round(above.float().sum(1).mean().item(), 2),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Writes the picture: errors against k on logarithmic axes, with the line of slope -1/2.

    Args:
        record: what `measure` found.
        path: of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for estimator, color in (("median", "#2b6f9e"), ("geometric", "#c8553d")):
        rows = [row for row in record["estimates"] if row["estimator"] == estimator]
        ks = [row["k"] for row in rows]
        left.loglog(ks, [row["rms_error"] for row in rows], "o-", color=color, label=f"{estimator}, root mean square")
        left.loglog(
            ks,
            [row["median_absolute_error"] for row in rows],
            "o--",
            color=color,
            label=f"{estimator}, half of all below",
        )
        right.semilogx(ks, [row["mean_error"] for row in rows], "o-", color=color, label=estimator)
    middle = next(row for row in record["estimates"] if row["k"] == 50)["rms_error"]
    left.loglog(PROJECTIONS, [middle * (50 / k) ** 0.5 for k in PROJECTIONS], ":", color="0.5", label="$k^{-1/2}$")
    right.axhline(0, color="0.5", linestyle=":")
    for axes, title in ((left, "Error of estimated margins"), (right, "Mean error (below 0: too careful)")):
        axes.set(title=title, xlabel="random projections k")
        axes.set_xticks(PROJECTIONS, [str(k) for k in PROJECTIONS])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measures, writes the record and the picture."""
    chosen = options()
    model = ib.models.load_weights(ib.models.build("small"), chosen.weights)
    data = ib.data.load("mnist", split="test", root=chosen.data_dir, limit=chosen.images)
    region = ball(chosen.norm, torch.as_tensor(data.inputs), chosen.eps)
    with torch.no_grad():
        record = measure(model, region, torch.as_tensor(data.labels), chosen.draws, chosen.seed)
    out = chosen.out or Path(__file__).parent / "results" / f"error_against_k_{chosen.norm}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"network": f"small {chosen.weights.name}", "data": f"MNIST test, first {chosen.images}"}
    settings |= {name: getattr(chosen, name) for name in ("norm", "eps", "draws", "seed")} | {"dtype": "float32"}
    versions = {"ironbound": ib.__version__, "torch": torch.__version__, "python": platform.python_version()}
    command = [
        "python",
        "experiments/projections/error_against_k.py",
        "--data-dir",
        "MNIST",
        "--weights",
        chosen.weights.name,
    ]
    command += ["--norm", chosen.norm, "--eps", f"{chosen.eps:g}", "--images", str(chosen.images)]
    command += ["--draws", str(chosen.draws), "--seed", str(chosen.seed)]
    record = {"format": "ironbound-projections/1", "settings": settings, **record, "versions": versions,
              "machine": f"{chosen.machine}, {torch.get_num_threads()} threads, CPU only", "command": " ".join(command),
              "date": datetime.now(timezone.utc).date().isoformat()}  # fmt: skip
    out.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, out.with_suffix(".png"))
    for row in record["estimates"]:
        print(json.dumps(row), file=sys.stderr)


if __name__ == "__main__":
    main()
