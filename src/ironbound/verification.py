"""`verify`: is there an input for which a network does what a property forbids?"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from ironbound.bounding import Arithmetic
from ironbound.claims import PROVED
from ironbound.errors import InputError
from ironbound.spec import Property, read_vnnlib
from ironbound.verdicts import Proved, Unknown, Verdict
from ironbound.verification_stages import Verification

FilePath = str | os.PathLike[str]
CERTIFICATE_SECONDS = 600.0  # for certificates where there is no limit


def verify(
    model: nn.Module | FilePath,
    prop: Property | FilePath,
    timeout: float | None = 60.0,
    *,
    input_shape: tuple[int, ...] | None = None,
    memory: int | None = None,
    seed: int = 0,
    certificates: FilePath | None = None,
    arithmetic: Arithmetic | None = None,
    decided: Callable[[Verdict], None] | None = None,
) -> Verdict:
    """Decides a property of a network.

    In turn: attack, bounds of all cases at once, a stronger attack, and complete search, which splits the box of inputs
    where few of them vary, and the signs of ReLUs otherwise. Every refutation is a run of the network itself on the
    point found, alone, and for an ONNX file by onnxruntime too, where it is installed. Bounds are computed in float64
    and must exceed a guard of 1e-9 of the magnitudes that meet in a constraint; they are not rounded outward. With
    `certificates` or `arithmetic`, what was proved is proved again by the checker of certificates, which pays for every
    rounding.

    Args:
        model: a network in evaluation mode, or the path of an ONNX file (.onnx, .onnx.gz).
        prop: a property (`ironbound.spec`), or the path of a VNNLIB file (.vnnlib, .vnnlib.gz).
        timeout: seconds for everything, reading the files and finding certificates included; None for no limit, but for
            ten minutes for the certificates. A step that is under way is finished first.
        input_shape: shape of an input example, where the network does not tell: that of an ONNX file is known, for
            others the default is one axis.
        memory: bytes that the bounds of one step may take (default 2 GiB).
        seed: of the attack's random starts.
        certificates: folder for certificates of a proved property, which `ironbound check` proves again
            (docs/certificates.md). What was found in the time is written; `Proved.arithmetic` says so where no clause
            is missing.
        arithmetic: "real" or "float32": only what is proved again in real arithmetic, or for every run of the network
            in float32 (docs/arithmetic.md), is `Proved`; the rest is `Unknown` with the reason "rounding".
        decided: called with the verdict before certificates are looked for, unless there is an `arithmetic`.

    Returns:
        `Proved`, `Refuted` with the counterexample, or `Unknown` with the gap and the reason.

    Raises:
        InputError: network and property do not fit, the network's weights hold NaN, or timeout is not positive.
        UnsupportedOperatorError, CertificateError: the checker cannot read this network, or not write to this folder.
        DataError, WeightsError: a file cannot be read.
        CaptureError: the network has an operator without a rule, is in training mode, or mixes the examples of a batch.
        SoundnessError: a bound and a run of the network contradict each other.
    """
    start = time.monotonic()
    if timeout is not None and not 0 < timeout < math.inf:
        raise InputError(f"timeout must be a positive number of seconds, or None, got {timeout}")
    found = prop if isinstance(prop, Property) else read_vnnlib(prop)
    path = None if isinstance(model, nn.Module) else Path(model)
    network = _network(model)
    shape = _input_shape(network, found, input_shape)
    question = Verification(network, found, shape, start, timeout, memory, seed, path)
    if certificates is None and arithmetic is None:
        return question.run()
    from ironbound.certificate.properties import PropertyCertificates

    with nullcontext(certificates) if certificates is not None else TemporaryDirectory() as folder:
        writer = PropertyCertificates(network, found, shape, folder, _mode(arithmetic))
        verdict = question.run()
        if decided is not None and arithmetic is None:
            decided(verdict)
        if not isinstance(verdict, Proved):
            return verdict
        left = CERTIFICATE_SECONDS if timeout is None else timeout - (time.monotonic() - start)
        written = writer.write(max(0.0, left))
    seconds = time.monotonic() - start
    if written.open and arithmetic is not None:
        return Unknown(0.0, "rounding", seconds, verdict.nodes, len(written.open))
    holds = verdict.arithmetic if written.open else PROVED[_mode(arithmetic)]
    return replace(verdict, seconds=seconds, arithmetic=holds, certificates=written.certificates)


def _mode(arithmetic: Arithmetic | None) -> Arithmetic:
    if arithmetic is not None and arithmetic not in PROVED:
        raise InputError(f"arithmetic {arithmetic!r} is not known; choose one of {', '.join(PROVED)}, or None (none).")
    return arithmetic or "real"


def _network(model: nn.Module | FilePath) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    from ironbound.capture.onnx import load

    return load(model)


def _input_shape(network: nn.Module, prop: Property, given: tuple[int, ...] | None) -> tuple[int, ...]:
    own = getattr(network, "input_shape", None)
    shape = given or (tuple(own) if isinstance(own, tuple) else (prop.inputs,))
    if int(np.prod(shape)) != prop.inputs:
        raise InputError(
            f"the network reads inputs of shape {list(shape)}, {int(np.prod(shape))} elements; "
            f"the property has {prop.inputs} inputs"
        )
    tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    if any(not torch.isfinite(tensor).all() for tensor in tensors):
        raise InputError("the network's weights hold NaN or infinity: nothing can be proved of it")
    return shape
