"""Upper bounds of eigenvalues that hold in exact arithmetic, by one Cholesky factorisation in float64.

Source: Rump, "Verification of positive definiteness", BIT 46 (2006): where the factorisation of A runs to its end, the
computed factor has R^T R = A + D with |D_ij| <= gamma_{n+1} / (1 - gamma_{n+1}) sqrt(a_ii a_jj), hence
lambda_min(A) >= -gamma_{n+1} / (1 - gamma_{n+1}) trace(A).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.semidefinite.rounding import COVER, UNIT, gamma

_SMALLEST = 1e-30  # stands for the largest eigenvalue of a matrix without positive ones, so that a shift is positive
_SHIFTS = (1e-9, 1e-7, 1e-5, 1e-3)  # relative; each is tried where the factorisation breaks down at the one before


def largest_eigenvalue(matrix: Tensor, error: float) -> float:
    """An upper bound of the largest eigenvalue (or of 0) of every symmetric matrix near a given one.

    With s a little above the computed eigenvalue the factorisation of A = s I - matrix runs to its end, so the exact
    eigenvalue is at most s + kappa trace(A) + error, kappa = gamma_{n+1} / (1 - gamma_{n+1}); the rounding of A's
    diagonal is another u max(a_ii).

    Args:
        matrix: float64 [n, n], of which the lower triangle is read.
        error: bound of the spectral norm of what is added to it.

    Returns:
        The bound; infinity where none is found (NaN, infinity).
    """
    if not bool(torch.isfinite(matrix).all()) or not error < torch.inf:
        return torch.inf
    size = len(matrix)
    estimate = max(float(torch.linalg.eigvalsh(matrix)[-1]), _SMALLEST)
    growth = gamma(size + 1)
    for relative in _SHIFTS:
        shift = estimate * (1 + relative)
        shifted = -matrix
        shifted.diagonal().add_(shift)
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            diagonal = shifted.diagonal()
            slack = growth / (1 - growth) * float(diagonal.sum()) + 2 * UNIT * float(diagonal.max())
            return (shift + (slack + error) * COVER) * (1 + 4 * UNIT)
    return torch.inf
