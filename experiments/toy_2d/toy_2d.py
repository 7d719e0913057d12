"""The 2-D examples of Wong and Kolter: points in the plane, standard and robust training, both decision boundaries.

    python experiments/toy_2d/toy_2d.py

Source: ICML 2018, section 4.1 and appendix B.1 (12 points, at least 0.16 apart, ε = 0.08); first version (2017),
section 4.1 (50 points, at least 0.08 apart, ε = 0.03). Distances are ℓ∞, labels are random, the network is
2-100-100-100-100-2, Adam takes all points at once with a rate of 0.001. Here ε grows at first, which the papers do only
for MNIST.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.training.losses import Loss, robust, standard

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Problem:
    """One version of the example.

    Attributes:
        name: of its files.
        points: how many.
        distance: smallest ℓ∞ distance between two of them.
        eps: radius of the boxes.
    """

    name: str
    points: int
    distance: float
    eps: float


RAMP = 2_000
"""Steps in which the radius grows."""

PROBLEMS = (Problem("icml_2018", 12, 0.16, 0.08), Problem("first_version_2017", 50, 0.08, 0.03))


def points(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Draws points one by one, each again until it is far enough from those before, and labels.

    Args:
        problem: how many, how far apart.
        seed: of the draw.

    Returns:
        Points in the unit square [n, 2], labels 0 or 1 [n].
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(1, 2, generator=generator)
    while len(found) < problem.points:
        new = torch.rand(1, 2, generator=generator)
        if (found - new).abs().amax(1).min() >= problem.distance:
            found = torch.cat([found, new])
    return found, torch.randint(2, (problem.points,), generator=generator)


def network(seed: int) -> nn.Sequential:
    """2-100-100-100-100-2 with fresh weights.

    Args:
        seed: of the weights.

    Returns:
        The network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = (2, 100, 100, 100, 100, 2)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def fit(model: nn.Module, x: Tensor, labels: Tensor, eps: float, loss: Callable[..., Loss], most: int) -> int:
    """Trains until the loss sees no point as wrong: misclassified (standard), or not proved (robust).

    The radius grows for `RAMP` steps, before which training does not stop: without that some draws end with a point
    in the middle of the other class.

    Args:
        model: the network, changed in place.
        x: points [n, 2].
        labels: int64 [n].
        eps: radius.
        loss: of (model, region, labels).
        most: steps.

    Returns:
        Steps taken.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(most):
        optimizer.zero_grad()
        found = loss(model, ib.LinfBall(x, eps * min(1, (step + 1) / RAMP)), labels)
        if step >= RAMP and not found.wrong.any():
            return step
        found.value.backward()
        optimizer.step()
    return most


def judge(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> tuple[dict[str, int], ib.Certification]:
    """Counts of points that are wrong, attacked with success, and not proved by the dual bound.

    Args:
        model: the network.
        x: points [n, 2].
        labels: int64 [n].
        eps: radius.

    Returns:
        The counts, and what is known of each point.
    """
    found = ib.certify(model, x, labels, eps=eps, methods=["dual"], attack=ib.AttackOptions(steps=100, restarts=5))
    report = found.summary()
    names = {"misclassified": "clean_error", "attacked": "attack_error", "not_proved": "certified_error_bound"}
    return {ours: report[theirs]["count"] for ours, theirs in names.items()}, found


def solve(problem: Problem, seed: int, picture: Path | None = None, most: int = 30_000) -> dict[str, Any]:
    """Both trainings of one problem.

    Args:
        problem: which.
        seed: of points, labels and weights.
        picture: of the PNG file, or None.
        most: steps of each training.

    Returns:
        What is recorded.
    """
    x, labels = points(problem, seed)
    record: dict[str, Any] = {"seed": seed}
    panels = []
    for name, loss in (("standard", standard), ("robust", robust)):
        model = network(seed)
        start = time.perf_counter()
        steps = fit(model, x, labels, problem.eps, loss, most)
        seconds = time.perf_counter() - start
        counts, found = judge(model, x, labels, problem.eps)
        record[name] = {"steps": steps, "seconds": round(seconds, 2), **counts}
        panels.append((name, model, found))
    if picture is not None:
        draw(problem, x, labels, panels, picture)
    return record


def draw(
    problem: Problem, x: Tensor, labels: Tensor, panels: list[tuple[str, nn.Module, ib.Certification]], path: Path
) -> None:
    """Writes the figure: decision regions, points, and their boxes, heavy where another answer was found inside.

    Args:
        problem: for the radius.
        x: points [n, 2].
        labels: int64 [n].
        panels: name, network, and what is known of each point.
        path: of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    edge = problem.eps + 0.02
    axis = torch.linspace(-edge, 1 + edge, 701)
    grid = torch.cartesian_prod(axis, axis)
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 5.3), layout="constrained", sharey=True)
    for (name, model, found), place in zip(panels, axes, strict=True):
        with torch.no_grad():
            logits = model(grid)
        height = (logits[:, 1] - logits[:, 0]).reshape(len(axis), len(axis)).T
        place.contourf(axis, axis, height, levels=[-torch.inf, 0, torch.inf], colors=["#f6d5c3", "#cfe0ee"])
        place.contour(axis, axis, height, levels=[0], colors="0.25", linewidths=1.2)
        for (left, down), label, status in zip(x.tolist(), labels.tolist(), found.status, strict=True):
            color = ("#b5451b", "#1f5f99")[label]
            broken = status in ("falsified", "misclassified")
            style: dict[str, Any] = {"edgecolor": "black" if broken else color, "linewidth": 2.2 if broken else 1.1}
            corner = (left - problem.eps, down - problem.eps)
            place.add_patch(Rectangle(corner, 2 * problem.eps, 2 * problem.eps, fill=False, zorder=3, **style))
            place.plot(left, down, "o^"[label], color=color, markersize=4.5, zorder=4)
        proved = int((found.status == "certified").sum())
        place.set(title=f"{name.capitalize()} training: {proved} of {len(x)} boxes proved", aspect="equal")
        place.set(xlim=(-edge, 1 + edge), ylim=(-edge, 1 + edge), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    figure.suptitle(f"{problem.points} points, boxes of ε = {problem.eps:g}; heavy: another answer was found inside")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    """Solves both problems with several seeds; draws the first.

    Returns:
        0 where every robust network has zero certified error, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    left = 0
    for problem in PROBLEMS:
        runs = []
        for index, seed in enumerate(chosen.seeds):
            runs.append(solve(problem, seed, chosen.out / f"{problem.name}.png" if index == 0 else None))
            print(json.dumps({"problem": problem.name, **runs[-1]}), file=sys.stderr, flush=True)
            left += runs[-1]["robust"]["not_proved"]
        versions = {"ironbound": ib.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
        record = {
            "format": "ironbound-toy/1",
            "problem": asdict(problem),
            "network": "2-100-100-100-100-2",
            "loss": f"robust cross-entropy on the exact dual bound; ε grows for {RAMP} steps",
            "optimizer": "Adam, 0.001, all points at once",
            "attack": "PGD, 100 steps, 5 restarts",
            "runs": runs,
            "versions": versions,
            "machine": f"{chosen.machine}, one thread, CPU only",
            "command": "python experiments/toy_2d/toy_2d.py",
            "date": datetime.now(timezone.utc).date().isoformat(),
        }
        (chosen.out / f"{problem.name}.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
