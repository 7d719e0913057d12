"""From results to certificates: what the checker proves is written, and nothing else."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.certificate.checker import Certificate, Checker, File
from ironbound.certificate.checker.claims import LABEL, MODES, NONE, PREDICTION, SLOPES, TREE
from ironbound.certificate.network_file import network_arrays, save_arrays
from ironbound.certificate.payloads import Prover
from ironbound.certification import Certification
from ironbound.errors import InputError
from ironbound.regions import Radius

SLACK = 1e-7
"""Share of 1 + margin that a claim stays below what is proved here: another BLAS rounds differently."""
NAMES = ("network.npz", "data.npz", "certificates.ibc")


@dataclass(frozen=True)
class Written:
    """What was written, and what was not.

    Attributes:
        folder: with `network.npz`, `data.npz` and `certificates.ibc`.
        certificates: the certificates, in the order of their inputs.
        open: numbers of certified examples for which the checker proves no margin.
        bytes: size of the file of certificates.
    """

    folder: Path
    certificates: tuple[Certificate, ...]
    open: tuple[int, ...]
    bytes: int


def write_certificates(
    certification: Certification,
    model: nn.Module,
    x: Tensor,
    folder: str | os.PathLike[str],
    *,
    mode: str = "real",
    eps: Radius | None = None,
    seconds: float = 10.0,
) -> Written:
    """Writes a certificate for every certified example that the stand-alone checker accepts.

    Claims are tried from the shortest: without a payload, with optimised slopes, with a tree of splits.

    Args:
        certification: the result of `certify`.
        model: the network of that call.
        x: its inputs, [n, *shape].
        folder: for the three files; made where it is absent.
        mode: "real" for real arithmetic, or "float32" for the network as executed in float32.
        eps: the radius of that call, needed where it was not one number: one per example.
        seconds: that a search for a tree may take for an example.

    Returns:
        What was written.

    Raises:
        InputError: the arguments do not fit each other.
        UnsupportedOperatorError: the checker has no rule for a layer of the network.
    """
    radii = _radii(certification, x, mode, eps)
    arrays = network_arrays(model, x[:2])
    data = {"x": _plain(x), "labels": certification.labels.cpu().numpy().astype(np.int64)}
    if certification.detection:
        del data["labels"]
    checker = Checker(arrays, data)
    clip = certification.settings["clip"] or (np.nan, np.nan)
    query = certification.settings["norm"], mode, (float(clip[0]), float(clip[1]))
    prover = Prover(copy.deepcopy(model).double(), x, certification.labels, query, seconds)
    found, left = [], []
    subject = PREDICTION if certification.detection else LABEL
    for index in np.flatnonzero(certification.status == "certified").tolist():
        bare = Certificate(index, int(certification.labels[index]), subject, NONE, float(radii[index]), 0.0)
        one = _proved(checker, prover, bare, query)
        left += [index] if one is None else []
        found += [] if one is None else [one]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(NAMES[:2], (arrays, data), strict=True):
        save_arrays(content, folder / name)
    packed = File(checker.network_hash, checker.data_hash, *query, found).pack()
    (folder / NAMES[2]).write_bytes(packed)
    return Written(folder, tuple(found), tuple(left), len(packed))


def _proved(checker: Checker, prover: Prover, bare: Certificate, query: tuple) -> Certificate | None:
    """The shortest certificate that the checker accepts, with the margin that it proves; None where there is none."""
    others = np.arange(checker.nodes[-1].size) != bare.label
    one = bare
    margins = checker.margins(bare, *query)
    for kind in (SLOPES, TREE):
        if bool((margins[others] > 0).all()):
            break
        targets = np.flatnonzero(~(margins > 0) & others)
        payload = prover.payload(kind, one.index, one.eps, targets)
        if payload is not None:
            one = replace(bare, kind=kind, payload=payload)
            margins = checker.margins(one, *query)
    least = float(margins[others].min())
    one = replace(one, margin=max(0.0, least - SLACK * (1 + least))) if least > 0 else one
    return one if checker.check(one, *query) is None else None


def _radii(certification: Certification, x: Tensor, mode: str, eps: Radius | None) -> np.ndarray:
    if len(x) != len(certification):
        raise InputError(f"{len(x)} inputs do not fit a result on {len(certification)}")
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is not known; choose one of {', '.join(MODES)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"inputs must be float32 or float64, not {x.dtype}")
    known = certification.settings["eps"] if eps is None else eps
    if isinstance(known, list):
        raise InputError("the radius was not one number: hand it over as eps, one per example")
    radii = torch.as_tensor(known, dtype=torch.float64).cpu().numpy()
    if radii.shape not in ((), (len(x),)):
        raise InputError("certificates have one radius per example")
    return np.broadcast_to(radii, (len(x),))


def _plain(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy())
