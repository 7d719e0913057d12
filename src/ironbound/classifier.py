"""A classifier and the inputs that are asked about: checked, and described so that two equal queries can be told."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ironbound
from ironbound.attacks.logits import check_labels
from ironbound.cascade_types import AttackOptions
from ironbound.data.dataset import digest
from ironbound.errors import InputError, LabelError, TrainingModeError
from ironbound.graph import Graph
from ironbound.network import Network
from ironbound.regions import Region

UNIT = "units of the data as loaded"


def open_classifier(model: nn.Module | Graph, region: Region, proofs: bool = True) -> Network:
    """The network on its own device, after a first run that finds what does not fit.

    Args:
        model: a classifier in evaluation mode, or its graph.
        region: the inputs.
        proofs: whether the network is captured for bounds, or only run.

    Returns:
        The network, ready to be shared by threads.

    Raises:
        InputError: weights are not finite, or inputs and network do not fit.
        CaptureError: the network cannot be captured.
        TrainingModeError: it is in training mode.
    """
    device = region.center.device
    for name, tensor in _tensors(model):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"the network's weights hold NaN or infinity (first in {name}): nothing can be proved of it."
            )
        device = tensor.device
    if not proofs and isinstance(model, nn.Module):  # capture checks it too, and names the line
        training = [name or type(part).__name__ for name, part in model.named_modules() if part.training]
        if training:
            raise TrainingModeError(f"the network is in training mode ({training[0]}); call model.eval() first.")
    network = Network(model, region.center[:2].to(device))
    if proofs:
        network.prepare()
    try:
        logits = network.logits(network.example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        found = f"{region.dtype} {list(region.center.shape)}"
        raise InputError(f"the network cannot read inputs of {found}: {str(error).splitlines()[0]}") from error
    if (
        not isinstance(logits, Tensor)
        or logits.dim() != 2
        or len(logits) != len(network.example)
        or logits.shape[1] < 2
    ):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"a classifier is needed, with outputs [batch, 2 or more classes]; this network's are {found}."
        )
    return network


def labels_of(network: Network, region: Region, labels: Tensor | None) -> Tensor | None:
    """Labels that fit the network and the inputs.

    Args:
        network: the classifier.
        region: the inputs.
        labels: int64 [n], or None.

    Returns:
        The labels, or None.

    Raises:
        LabelError: they do not fit.
    """
    if labels is None:
        return None
    labels = check_labels(region, labels)
    classes = network.logits(network.example).shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise LabelError(
            f"labels must lie in 0 … {classes - 1}, the network's classes; "
            f"found {int(labels.min())} … {int(labels.max())}."
        )
    return labels


def _tensors(model: nn.Module | Graph) -> Iterator[tuple[str, Tensor]]:
    if isinstance(model, nn.Module):
        yield from model.state_dict().items()
    else:
        yield from ((f"tensor {index}", tensor) for index, tensor in enumerate(model.parameters()))


def described(
    network: Network, region: Region, labels: Tensor | None, attack: AttackOptions | None, shard: int
) -> dict[str, Any]:
    """What every query's settings hold, as plain data: two runs with equal settings have equal results.

    Args:
        network: the classifier.
        region: the inputs; its radius is left out.
        labels: int64 [n], or None where predictions take their place.
        attack: the attack, or None.
        shard: number of examples decided at a time.

    Returns:
        The settings.
    """
    return {
        "unit": UNIT,
        "norm": region.norm,
        "clip": region.describe()["clip"],
        "attack": None if attack is None else asdict(attack),
        "detection": labels is None,
        "examples": len(region),
        "shard": shard,
        "dtype": str(region.dtype).removeprefix("torch."),
        "network_sha256": _network_hash(network),
        "data_sha256": digest(region.center, torch.empty(0) if labels is None else labels),
        "versions": {
            "ironbound": ironbound.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def _network_hash(network: Network) -> str:
    """SHA-256 over the structure (as PyTorch prints it) and over names, types, shapes and bytes of all weights."""
    state = hashlib.sha256()
    if isinstance(network.model, nn.Module):
        state.update(repr(network.model).encode())
    for name, tensor in _tensors(network.model):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        state.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()
