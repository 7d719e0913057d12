"""Trains 784-500-10 against the semidefinite certificate and certifies it.

Run: python -m experiments.sdp.train --data-dir MNIST --seed 0 [--objective value --strength 0.01 [--weigh]]

"hinge" is the hinge loss on certified margins with a ramp of ε; "value" is the paper's objective (13), hinge loss plus
a multiple of the programs' values. With --validate the last 5000 training images are held out and take the place of
the test set: strengths are chosen there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import ironbound as ib
from experiments.sdp.common import EPS, differences, error, options, write
from ironbound.semidefinite.pairwise import sdp
from ironbound.semidefinite.training import sdp_hinge, sdp_value

HELD_OUT = 5000


def chosen_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__ or "", weights=False)
    parser.add_argument("--objective", choices=("hinge", "value"), default="hinge")
    parser.add_argument("--strength", type=float, default=0.01, help="λ of the objective value (0.01)")
    parser.add_argument("--weigh", action="store_true", help="weights of the pairs, as in section 6.3")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--ramp", type=int, default=30, help="epochs in which ε grows (30)")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--eps-train", type=float, default=EPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="hold out 5000 training images and measure on them")
    parser.add_argument("--save", type=Path, help="where to keep the weights")
    return parser.parse_args(argv)


def objective(model: nn.Module, x: Tensor, y: Tensor, eps: float, chosen: argparse.Namespace) -> Tensor:
    """The loss of a batch."""
    region = ib.LinfBall(x, eps)
    if chosen.objective == "hinge":
        return sdp_hinge(model, region, y).value
    logits = model(x)
    own = torch.nn.functional.one_hot(y, 10).bool()
    margins = (logits.gather(1, y[:, None]) - logits).masked_fill(own, torch.inf).amin(1)
    return torch.relu(1 - margins).mean() + chosen.strength * sdp_value(model, region, y, weigh=chosen.weigh)


def train(model: nn.Module, x: Tensor, y: Tensor, chosen: argparse.Namespace) -> float:
    """Adam with a cosine from 1e-3 to 1e-5; seconds of process time."""
    start = time.process_time()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(chosen.seed)
    batches = len(x) // chosen.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, chosen.epochs * batches, 1e-5)
    for step in range(chosen.epochs * batches):
        if step % batches == 0:
            order = torch.randperm(len(x), generator=generator)
        index = order[(step % batches) * chosen.batch :][: chosen.batch]  # type: ignore[possibly-undefined]
        eps = chosen.eps_train * min(1.0, step / max(1, chosen.ramp * batches))
        value = objective(model, x[index], y[index], eps if chosen.objective == "hinge" else chosen.eps_train, chosen)
        adam.zero_grad()
        value.backward()
        adam.step()
        schedule.step()
        if (step + 1) % (10 * batches) == 0:
            print(f"epoch {(step + 1) // batches}: {value.item():.4f}", flush=True)
    return time.process_time() - start


def main(argv: list[str] | None = None) -> None:
    """Trains, certifies, writes the record."""
    chosen = chosen_options(argv)
    data = ib.data.load("mnist", split="train", root=chosen.data_dir)
    x, y = torch.as_tensor(data.inputs), torch.as_tensor(data.labels).long()
    if chosen.validate:
        test_x, test_y, x, y = x[-HELD_OUT:], y[-HELD_OUT:], x[:-HELD_OUT], y[:-HELD_OUT]
    else:
        test = ib.data.load("mnist", split="test", root=chosen.data_dir, limit=chosen.images)
        test_x, test_y = torch.as_tensor(test.inputs), torch.as_tensor(test.labels).long()
    torch.manual_seed(chosen.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))
    seconds = train(model, x, y, chosen)
    model.eval()
    if chosen.save:
        torch.save(model.state_dict(), chosen.save)
    with torch.no_grad():
        clean = differences(model.double()(test_x.double()), test_y)
    model.float()
    certificate = sdp(model, test_x[:1])
    attack = ib.pgd(model, ib.LinfBall(test_x, EPS), test_y, restarts=5)
    results = {
        "train_process_seconds": round(seconds, 1),
        "per_cent_error": {
            "clean": error(clean),
            "pgd, 5 restarts": round(100 * attack.success.double().mean().item(), 2),
            "sdp": error(clean - EPS * certificate.matrix()[test_y]),
        },
        "largest_gap": float(f"{certificate.gap.max():.3g}"),
        "mean_dual": round(certificate.dual.mean().item(), 4),
    }
    names = ("objective", "epochs", "ramp", "batch", "eps_train", "seed", "validate")
    settings = {name: getattr(chosen, name) for name in names}
    if chosen.objective == "value":
        settings |= {"strength": chosen.strength, "weigh": chosen.weigh}
    kind = chosen.objective if chosen.objective == "hinge" else f"value_{chosen.strength:g}{'_w' * chosen.weigh}"
    write(f"train_{kind}_{chosen.seed}{'_validation' * chosen.validate}", settings, results, chosen)


if __name__ == "__main__":
    main()
