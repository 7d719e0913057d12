"""From results to certificates: what the checker proves is written, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.certificate.checker import Certificate, Checker, File
from ironbound.certificate.checker import CertificateError as Refusal
from ironbound.certificate.checker.claims import LABEL, MODES, NONE, PREDICTION
from ironbound.certificate.finding import Finder
from ironbound.certificate.network_file import network_arrays, save_arrays
from ironbound.certificate.payloads import sdp_vectors
from ironbound.certification import Certification
from ironbound.errors import CertificateError, InputError
from ironbound.graph import Graph
from ironbound.regions import Radius

NAMES = ("network.npz", "data.npz", "certificates.ibc")
_TOGETHER = 256  # examples between two writes of the file


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


def check_writable(graph: Graph, x: Tensor, eps: Radius) -> None:
    """Refuses what no certificate could be written for.

    Args:
        graph: the network.
        x: inputs [n, *shape].
        eps: the radius.

    Raises:
        InputError: there is more than one radius for an example.
        UnsupportedOperatorError: the checker has no rule for a layer of the network.
    """
    network_arrays(graph)
    _one_each(eps, x)


def write_certificates(
    certification: Certification,
    model: nn.Module | Graph,
    x: Tensor,
    folder: str | os.PathLike[str],
    *,
    mode: str | None = None,
    eps: Radius | None = None,
    seconds: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes a certificate for every certified example that the stand-alone checker accepts.

    Claims are tried from the shortest: without a payload, with the network's semidefinite vectors (where the method
    "sdp" was used), with optimised slopes, with a tree of splits. The file grows as the work goes; the same call on the
    same folder keeps what is there and goes on.

    Args:
        certification: the result of `certify`.
        model: the network of that call.
        x: its inputs, [n, *shape].
        folder: for the three files; made where it is absent.
        mode: "real" for real arithmetic, or "float32" for the network as executed in float32; None: what the run
            proved.
        eps: the radius of that call, needed where it was not one number: one per example.
        seconds: that a search for a tree may take for an example and class.
        progress: called with the number of certified examples done, and of all of them.

    Returns:
        What was written.

    Raises:
        InputError: the arguments do not fit each other.
        CertificateError: the folder holds certificates of something else.
        UnsupportedOperatorError: the checker has no rule for a layer of the network.
    """
    arithmetic = str(mode or certification.settings.get("arithmetic", "real"))
    radii = _radii(certification, x, arithmetic, eps)
    arrays = network_arrays(model, x[:2])
    data = {"x": _plain(x), "labels": certification.labels.cpu().numpy().astype(np.int64)}
    if certification.detection:
        del data["labels"]
    clip = certification.settings["clip"] or (np.nan, np.nan)
    query = certification.settings["norm"], arithmetic, (float(clip[0]), float(clip[1]))
    checker = Checker(arrays, data)
    finder = Finder(checker, query, seconds)
    vectors = sdp_vectors(model, x[:2]) if (certification.method == "sdp").any() else b""
    folder = Path(folder)
    path = folder / NAMES[2]
    file = File(checker.network_hash, checker.data_hash, *query, [], vectors)
    known = known_records(path, file)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(NAMES[:2], (arrays, data), strict=True):
        save_arrays(content, folder / name)
    found, left = [], []
    subject = PREDICTION if certification.detection else LABEL
    certified = np.flatnonzero(certification.status == "certified").tolist()
    for done, index in enumerate(certified, 1):
        bare = Certificate(index, int(certification.labels[index]), subject, NONE, float(radii[index]), 0.0)
        one = known.get(bare) or finder.proved(bare, file.common)
        left += [index] if one is None else []
        found += [] if one is None else [one]
        if done % _TOGETHER == 0 or done == len(certified):
            save_file(path, replace(file, certificates=found))
            if progress is not None:
                progress(done, len(certified))
    return Written(folder, tuple(found), tuple(left), path.stat().st_size if certified else 0)


def known_records(path: Path, file: File) -> dict[Certificate, Certificate]:
    """The certificates of an earlier call, by their claims without payload and margin.

    Args:
        path: of the file of certificates, which may be absent.
        file: the query.

    Returns:
        They; nothing where there is no file.

    Raises:
        CertificateError: the file cannot be read, or is about another query.
    """
    if not path.exists():
        return {}
    try:
        there = File.read(path)
    except (Refusal, OSError) as error:
        raise CertificateError(f"{path} cannot be read ({error}); move it away, or name another folder.") from error
    if replace(there, certificates=[], clip=str(there.clip)) != replace(file, clip=str(file.clip)):
        raise CertificateError(f"{path} holds certificates of another query; name another folder.")
    return {replace(one, kind=NONE, margin=0.0, payload=b""): one for one in there.certificates}


def save_file(path: Path, file: File) -> None:
    """Writes a file of certificates, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(file.pack())
    part.replace(path)


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
    return _one_each(known, x)


def _one_each(eps: Radius, x: Tensor) -> np.ndarray:
    radii = torch.as_tensor(eps, dtype=torch.float64).cpu().numpy()
    if radii.shape not in ((), (len(x),)):
        raise InputError("certificates have one radius per example")
    return np.broadcast_to(radii, (len(x),))


def _plain(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy())
