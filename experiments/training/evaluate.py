"""What a trained network achieves on the test set: clean, attacked, certified by each method and by all together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ironbound as ib
from ironbound.bounding import METHODS
from ironbound.data import Dataset
from ironbound.training.recipe import Region

ATTACK = ib.AttackOptions("pgd", steps=100, restarts=1)
"""As many steps as in Zhu et al. 2020; on images that no method proves."""

QUERIES: Mapping[str, tuple[str, ...]] = {"interval": ("interval",), "dual": ("dual",), "best": (*METHODS, "split")}
"""By the name of a figure, the methods that may certify it; of several, the best counts for each margin."""

FIRST = 256
"""So many images have their status recorded one by one, so that the weights can be checked later in seconds."""


def errors(
    model: nn.Module, data: Dataset, region: Region, folder: Path | None = None, search: float = 60.0
) -> dict[str, Any]:
    """Attacks and certifies a network on a whole data set.

    Args:
        model: the network, on its device.
        data: the test set.
        region: what the attacker may do.
        folder: for the stores, one per figure, from which a stopped call goes on; None: nothing is kept.
        search: seconds that branch and bound may take for an image; 0: it is left out.

    Returns:
        "errors" in percent by figure; "refuted": percent of the images with a counterexample by attack or search;
        "examples"; "proofs" of "best" by method; "first": one letter per image;
        "attack", "region", "budget" and "seconds".
    """
    found: dict[str, ib.Certification] = {}
    for name, methods in QUERIES.items():
        found[name] = ib.certify(
            model,
            data.inputs,
            data.labels,
            eps=region.eps,
            norm=region.norm,
            clip=region.clip,
            methods=tuple(method for method in methods if search or method != "split"),
            attack=ATTACK if name == "best" else None,
            budget=search or None,
            store=None if folder is None else folder / f"certify-{name}.sqlite",
        )
    best = found["best"].summary()
    attacked = np.isin(found["best"].method, ("fgsm", "pgd")) | (found["best"].status == "misclassified")
    counts = {"clean": best["clean_error"]["count"], "pgd": int(attacked.sum())}
    counts |= {name: result.summary()["certified_error_bound"]["count"] for name, result in found.items()}
    return {
        "errors": {name: round(100 * count / len(data), 4) for name, count in counts.items()},
        "refuted": round(100 * best["attack_error"]["count"] / len(data), 4),
        "examples": len(data),
        "proofs": best["method"],
        "first": {name: letters(result) for name, result in found.items()},
        "attack": asdict(ATTACK),
        "region": region.model_dump(mode="json"),
        "budget": search,
        "seconds": {name: round(sum(result.seconds.values()), 1) for name, result in found.items()},
    }


def letters(result: ib.Certification) -> str:
    """The status of the first images, one letter each: certified, unknown, falsified, misclassified."""
    return "".join(status[0] for status in result.status[:FIRST])


def whole_set(name: str, split: str, roots: list[Path], limit: int | None = None) -> Dataset:
    """Loads a data set from the first folder that holds it.

    Args:
        name: of the data set.
        split: "train" or "test".
        roots: folders; empty: the cache, or a download.
        limit: only the first examples.

    Returns:
        The data.

    Raises:
        DataError: no folder holds it.
    """
    for root in roots[:-1]:
        try:
            return ib.data.load(name, split, root, limit)
        except ib.errors.DataError:
            continue
    return ib.data.load(name, split, roots[-1] if roots else None, limit)


def sha256(path: str | os.PathLike[str]) -> str:
    """Hash of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def parameters(model: nn.Module) -> int:
    """Number of trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def threads() -> int:
    """Threads of this process."""
    return torch.get_num_threads()
