"""The paper's matrix M (with equation (8) corrected) and its dual certificate for any c."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.errors import InputError
from ironbound.semidefinite.network import TwoLayer
from ironbound.semidefinite.pairwise import whole_range
from ironbound.semidefinite.rounding import COVER, UNIT, gamma, up
from ironbound.semidefinite.verified import largest_eigenvalue


def coupling_matrix(network: TwoLayer, functional: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's M(v, W), with which max over slopes of ||grad f||_1 is at most max <M, P> / 4.

    "1" is coupled to t by W^T (2 mid v) and t to s by W^T diag(2 half v); for slopes in [0, 1] these are W^T v and
    W^T diag(v). (Equation (8) couples "1" to s instead, which is unsound.)

    Args:
        network: two layers.
        functional: g, coefficients of the outputs; v = g V.

    Returns:
        M [D, D] in the order (1, t, s) with D = 1 + inputs + neurons, and for each entry what its rounding is relative
        to.

    Raises:
        InputError: the network is a linear classifier, which needs no such matrix.
    """
    if network.output is None:
        raise InputError("a linear classifier has no matrix M: its bound is exact (ironbound.sdp gives it)")
    low, high = whole_range(network)
    mid = low + high
    half = torch.maximum(2 * high - mid, mid - 2 * low)
    half = torch.where(half > 0, up(half), half)

    def placed(weight: Tensor, v: Tensor, mid: Tensor) -> Tensor:
        neurons, inputs = weight.shape
        matrix = torch.zeros(1 + inputs + neurons, 1 + inputs + neurons, dtype=torch.float64)
        matrix[1 : 1 + inputs, 0] = (v * mid) @ weight
        matrix[1 + inputs :, 1 : 1 + inputs] = (v * half)[:, None] * weight
        return matrix + matrix.T

    weight, output, g = network.hidden.weight, network.output.weight, functional.double()
    return placed(weight, g @ output, mid), placed(weight.abs(), g.abs() @ output.abs(), mid.abs())


def dual_form(network: TwoLayer, functional: Tensor, c: Tensor) -> float:
    """D λ⁺_max(M - diag(c)) + 1^T max(c, 0), a bound of max <M, P> for any c; a quarter of it bounds ||grad f||_1.

    Source: Raghunathan et al. (2018), equations (14) and (16).

    Args:
        network: two layers.
        functional: g, coefficients of the outputs.
        c: dual variables, [D].

    Returns:
        The bound, which holds in exact arithmetic; infinity where none is found.

    Raises:
        InputError: the network is a linear classifier, or c does not fit.
    """
    matrix, size = coupling_matrix(network, functional)
    c = c.double()
    if c.shape != matrix.shape[:1]:
        raise InputError(f"c must have shape ({len(matrix)},), one number for 1, each input and each neuron")
    assert network.output is not None
    roundings = len(network.hidden.bias) + len(functional) + network.hidden.roundings + network.output.roundings + 8
    error = gamma(roundings) * float(torch.linalg.matrix_norm(size)) * COVER + 2 * UNIT * float(c.abs().max())
    eigenvalue = largest_eigenvalue(matrix - torch.diag(c), error)
    return (len(c) * eigenvalue + float(c.clamp(min=0).sum()) * (1 + gamma(len(c)))) * (1 + 8 * UNIT)
