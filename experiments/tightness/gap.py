"""How far the dual bound lies below the linear program that it bounds: robust, plainly trained and random network.

    python experiments/tightness/gap.py --data-dir MNIST

Wong and Kolter (2018), appendix B.2 and figure 11, on a network with two hidden layers: every margin of the first test
images over a range of ε, by the dual bound, optimised slopes and the linear program.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.exact.linear import relaxed_optimum

NETWORKS = ("robust", "standard", "random")
EPS = (0.01, 0.03, 0.05, 0.1)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST's files")
    parser.add_argument("--images", type=int, default=10, help="the first so many test images (10)")
    parser.add_argument("--train", type=int, default=10000, help="the first so many training images (10000)")
    parser.add_argument("--width", type=int, default=50, help="neurons of each hidden layer (50)")
    parser.add_argument("--eps-train", type=float, default=0.1, help="radius that the robust network is trained for")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gap.json")
    return parser.parse_args()


def network(kind: str, x: Tensor, y: Tensor, chosen: argparse.Namespace) -> nn.Module:
    """A network of one kind; the robust one minimises the paper's bound on the cross-entropy, with a ramp of ε."""
    torch.manual_seed(chosen.seed)
    width = chosen.width
    layers = [nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    model = nn.Sequential(*layers)
    if kind == "random":
        return model.eval()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    steps = chosen.epochs * (len(x) // 100)
    for step in range(steps):
        index = torch.randint(0, len(x), (100,))
        model.eval()  # no layer differs in training, and bounds ask for it
        if kind == "robust":
            eps = chosen.eps_train * min(1.0, 2 * step / steps)
            logits = -ib.margins(model, ib.LinfBall(x[index], eps), y[index], "dual")
        else:
            logits = model(x[index])
        loss = nn.functional.cross_entropy(logits, y[index])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model


def measure(model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Mean margins of every bound, and their distances, for each ε."""
    rows = []
    rivals = torch.arange(10) != y.unsqueeze(1)
    for eps in EPS:
        region = ib.LinfBall(x, eps)
        start = time.process_time()
        with torch.no_grad():
            dual, alpha = (ib.margins(model, region, y, method)[rivals] for method in ("dual+interval", "alpha:200"))
            # the same bounds of the neurons, so that only the slopes of the last step make the difference
            same = relaxed_optimum(model, region, y, "dual+interval").lower[rivals]
            tight = relaxed_optimum(model, region, y, "alpha").lower[rivals]
            clean = ib.margins(model, ib.LinfBall(x, 0.0), y)[rivals]
        found = {"clean": clean, "dual": dual, "alpha": alpha, "lp": same, "lp_alpha_bounds": tight}
        gap = same - dual
        row: dict[str, Any] = {"eps": eps, **{name: round(value.mean().item(), 4) for name, value in found.items()}}
        row |= {"gap_mean": round(gap.mean().item(), 5), "gap_max": round(gap.max().item(), 5)}
        row |= {"fall_mean": round((clean - dual).mean().item(), 4)}
        row |= {"pairs": [[round(a, 4), round(b, 4)] for a, b in zip(same.tolist(), dual.tolist(), strict=True)]}
        rows.append(row | {"process_seconds": round(time.process_time() - start, 1)})
    return rows


def draw(record: dict[str, Any], path: Path) -> None:
    """Left: every margin, dual bound against linear program; right: the mean distance against ε."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    shown = record["settings"]["shown_eps"]
    for name, color in zip(NETWORKS, ("#2b6f9e", "#c8553d", "#7a7a7a"), strict=True):
        rows = record["networks"][name]["rows"]
        pairs = next(row["pairs"] for row in rows if row["eps"] == shown)
        left.plot(*zip(*pairs, strict=True), ".", color=color, markersize=4, label=name, alpha=0.7)
        share = [row["gap_mean"] / row["fall_mean"] for row in rows]
        right.plot([row["eps"] for row in rows], share, "o-", color=color, label=name)
    ends = [min(left.get_xlim()[0], left.get_ylim()[0]), max(left.get_xlim()[1], left.get_ylim()[1])]
    left.plot(ends, ends, color="black", linewidth=0.7, zorder=0)
    left.set(title=f"Margins at ε = {shown:g}", xlabel="linear program's optimum", ylabel="dual bound")
    right.set(title="(LP - dual) / (clean - dual), means", xlabel="ε", ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Trains, measures, writes the record and the picture."""
    chosen = options()
    train = ib.data.load("mnist", split="train", root=chosen.data_dir, limit=chosen.train)
    test = ib.data.load("mnist", split="test", root=chosen.data_dir, limit=chosen.images)
    x, y = torch.as_tensor(test.inputs), torch.as_tensor(test.labels)
    found: dict[str, Any] = {}
    for name in NETWORKS:
        start = time.process_time()
        model = network(name, torch.as_tensor(train.inputs), torch.as_tensor(train.labels), chosen)
        trained = round(time.process_time() - start, 1)
        found[name] = {"train_process_seconds": trained, "rows": measure(model.double(), x.double(), y)}
    settings = {name: getattr(chosen, name) for name in ("images", "train", "width", "eps_train", "epochs", "seed")}
    settings |= {"data": "MNIST", "network": f"784-{chosen.width}-{chosen.width}-10, ReLU", "dtype": "float64 bounds"}
    settings |= {"shown_eps": EPS[2]}
    versions = {"ironbound": ib.__version__, "torch": torch.__version__, "python": platform.python_version()}
    machine = f"{chosen.machine}, {torch.get_num_threads()} threads, CPU only"
    record = {"format": "ironbound-tightness/1", "settings": settings, "networks": found, "versions": versions,
              "machine": machine, "command": "python experiments/tightness/gap.py --data-dir MNIST",
              "date": datetime.now(timezone.utc).date().isoformat()}  # fmt: skip
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, chosen.out.with_suffix(".png"))
    for name in NETWORKS:
        for row in found[name]["rows"]:
            print(name, {key: value for key, value in row.items() if key != "pairs"})


if __name__ == "__main__":
    main()
