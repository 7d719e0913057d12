"""Trains the networks of the paper's section 6 by their recipes, and measures every bound and attack on them.

Run: python -m experiments.sdp.networks --data-dir MNIST [--only sdp lp] [--seeds 0 1 2] [--validate] [--set ...]

A record per network and seed is written to results/, weights and logs to runs/. With --validate a tenth of the training
images takes the place of the test set: settings are chosen there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ironbound as ib
from experiments.sdp.common import EPS, HERE, differences, error, options, write
from ironbound.semidefinite.pairwise import SdpCertificate, sdp
from ironbound.training import Artefact, Epoch, Recipe, train
from ironbound.training.artefact import network
from ironbound.training.losses.semidefinite import dual_bounds, solver_state
from ironbound.training.order import split_off

NAMES = ("nt", "fro", "spe", "at", "sdp", "lp", "weighted", "unweighted")
GRID = tuple(round(0.01 * step, 2) for step in range(11))
WHOLE = ("sdp", "lp")  # attacked on the whole test set at ε = 0.1: table 1
ATTACKED = (0.02, 0.04, 0.06, 0.08, 0.1)


@dataclass(frozen=True, eq=False)
class Data:
    """What is learnt from, and what is measured on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def chosen_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__ or "", weights=False)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--validate", action="store_true", help="measure on a tenth of the training images")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes for a trial")
    parser.add_argument(
        "--attacked", type=int, default=1000, help="images under attack in the figures (1000); 0: no attacks"
    )
    parser.add_argument("--trace", action="store_true", help="certify after every epoch too (figure 4b)")
    chosen = parser.parse_args(argv)
    if chosen.set and not chosen.validate:
        parser.error("settings are tried on the validation split: give --validate")
    return chosen


def load(chosen: argparse.Namespace) -> Data:
    """MNIST, whole or a tenth of its training images held out."""
    train_set = ib.data.load("mnist", split="train", root=chosen.data_dir)
    x, y = torch.as_tensor(train_set.inputs), torch.as_tensor(train_set.labels).long()
    if chosen.validate:
        rest, held = split_off(len(y), 0.1, 0)
        return Data(x[rest], y[rest], x[held], y[held])
    test = ib.data.load("mnist", split="test", root=chosen.data_dir, limit=chosen.images)
    return Data(x, y, torch.as_tensor(test.inputs), torch.as_tensor(test.labels).long())


def clean_differences(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Exact margins at the images, float64 [n, classes]."""
    with torch.no_grad():
        found = differences(model.double()(x.double()), y)
    model.float()
    return found


def trained(recipe: Recipe, data: Data, folder: Path | None, trace: bool) -> tuple[nn.Module, float, list[Any]]:
    """A network, the seconds of process time that training took, and the certificates after every epoch."""
    if folder is not None and (folder / "run.json").is_file():
        artefact = Artefact.open(folder)
        if artefact.facts["status"] == "finished" and artefact.facts["recipe_sha256"] == recipe.digest():
            raise SystemExit(f"{folder} holds this very run; remove it to train again")
    model = network(recipe.model, recipe.run.seed)
    rows: list[Any] = []
    aside = 0.0

    def progress(epoch: Epoch) -> None:
        nonlocal aside
        began = time.process_time()
        print(f"epoch {epoch.number}: loss {epoch.loss:.4f}, error {100 * epoch.error:.2f} %", flush=True)
        if trace:
            clean, y = clean_differences(model, data.test_x, data.test_y), data.test_y
            by_training = dual_bounds(model, ib.LinfBall(data.test_x[:1], EPS))
            by_solving = sdp(model, data.test_x[:1], gap=2e-3).matrix()
            rows.append([epoch.number, *(error(clean - EPS * bound[y]) for bound in (by_training, by_solving))])
        aside += time.process_time() - began

    start = time.process_time()
    train(model, data.x, data.y, recipe, folder=folder, progress=progress)
    return model.eval(), time.process_time() - start - aside, rows


def over_eps(clean: Tensor, y: Tensor, certificate: SdpCertificate) -> dict[str, list[float]]:
    """Every bound's certified error on a grid of ε."""
    bounds = {name: certificate.matrix(name)[y] for name in ("dual", "spectral", "frobenius")}
    return {name: [error(clean - eps * bound) for eps in GRID] for name, bound in bounds.items()}


def measured(model: nn.Module, data: Data, certificate: SdpCertificate) -> dict[str, Any]:
    """Every bound at ε = 0.1, and over ε."""
    x, y = data.test_x, data.test_y
    clean = clean_differences(model, x, y)
    curves = over_eps(clean, y, certificate)
    found: dict[str, Any] = {
        "clean": error(clean),
        "sdp": curves["dual"][-1],
        "spectral": curves["spectral"][-1],
        "frobenius": curves["frobenius"][-1],
    }
    with torch.no_grad():
        polytope = ib.margins(model, ib.LinfBall(x, EPS), y, "dual").double().scatter(1, y[:, None], torch.inf)
    found["dual"] = error(polytope)
    result: dict[str, Any] = {"largest_gap": float(f"{certificate.gap.max():.3g}"), "per_cent_error": found}
    result["curves"] = {"eps": GRID, **curves}
    return result


def attacks(
    name: str, model: nn.Module, data: Data, certificate: SdpCertificate, count: int
) -> tuple[float | None, dict[str, Any]]:
    """PGD's error on all images, if this network is one of table 1; over ε on the first images, the bounds beside."""
    x, y = data.test_x, data.test_y
    clean = clean_differences(model, x, y)
    proved = ((clean - EPS * certificate.matrix()[y]) > 0).all(1)
    whole = None
    if name in WHOLE:
        success = ib.pgd(model, ib.LinfBall(x, EPS), y, restarts=5).success
        if bool((success & proved).any()):
            raise SystemExit("an attack beats a certificate: there is a bug")
        whole = per_cent(success)
    found = [ib.pgd(model, ib.LinfBall(x[:count], eps), y[:count], restarts=5).success for eps in ATTACKED]
    if bool((found[-1] & proved[:count]).any()):
        raise SystemExit("an attack beats a certificate: there is a bug")
    bounds = {"eps": GRID, **over_eps(clean[:count], y[:count], certificate)}
    errors = [per_cent(success) for success in found]
    return whole, {"images": count, "curves": bounds, "eps": ATTACKED, "pgd, 5 restarts": errors}


def per_cent(wrong: Tensor) -> float:
    """Share of true values."""
    return round(100 * wrong.double().mean().item(), 2)


def other_attacks(model: nn.Module, data: Data, count: int) -> dict[str, list[float]]:
    """FGSM, and Carlini and Wagner's attack, over ε."""
    x, y = data.test_x[:count], data.test_y[:count]
    balls = [ib.LinfBall(x, eps) for eps in ATTACKED]
    return {
        "fgsm": [per_cent(ib.fgsm(model, ball, y).success) for ball in balls],
        "carlini_wagner": [per_cent(ib.carlini_wagner(model, ball, y).success) for ball in balls],
    }


def perform(name: str, seed: int, data: Data, chosen: argparse.Namespace) -> None:
    """Trains, measures and records one network."""
    recipe = Recipe.read(HERE / "recipes" / f"{name}.toml", [f"run.seed={seed}", "run.device=cpu", *chosen.set])
    folder = None if chosen.validate else HERE / "runs" / f"{name}-{seed}"
    model, seconds, rows = trained(recipe, data, folder, chosen.trace)
    certificate = sdp(model, data.test_x[:1])
    results = {"train_process_seconds": round(seconds, 1), **measured(model, data, certificate)}
    if chosen.attacked and not chosen.validate:
        whole, results["attacked"] = attacks(name, model, data, certificate, min(chosen.attacked, len(data.test_y)))
        if whole is not None:
            results["per_cent_error"]["pgd, 5 restarts"] = whole
        if name == "sdp":
            results["attacked"] |= other_attacks(model, data, chosen.attacked)
    if solver_state(model) is not None:
        clean, bound = clean_differences(model, data.test_x, data.test_y), dual_bounds(model, _one(data))
        results["by_the_vectors_of_training"] = [error(clean - eps * bound[data.test_y]) for eps in GRID]
    if rows:
        results["trace"] = {"columns": ["epoch", "by the vectors of training", "solved"], "rows": rows}
    settings: dict[str, Any] = {"network": name, "recipe": recipe.title, "seed": seed, "epochs": recipe.run.epochs}
    if chosen.validate:
        settings |= {"measured_on": f"{len(data.test_y)} training images held out", "set": chosen.set}
    label = "_".join([name, str(seed), *(["validation", *chosen.set] if chosen.validate else [])])
    write(f"network_{label.replace('/', '-')}", settings, results, chosen)


def _one(data: Data) -> ib.LinfBall:
    return ib.LinfBall(data.test_x[:1], EPS)


def main(argv: list[str] | None = None) -> None:
    """Every network and seed."""
    chosen = chosen_options(argv)
    data = load(chosen)
    for name in chosen.only:
        for seed in chosen.seeds:
            perform(name, seed, data, chosen)


if __name__ == "__main__":
    main()
