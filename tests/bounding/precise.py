"""Smooth activations with 60 digits, from their definitions."""

from __future__ import annotations

from fractions import Fraction

from mpmath import erfc, exp, mp, mpf, pi, sqrt, tanh

from ironbound.ops.operator import Operator
from ironbound.ops.smooth import GELU, Sigmoid, SiLU, Tanh


def smooth(operator: Operator, z: mpf) -> mpf:
    """The function at a number; `mp.workdps(60)` is the caller's."""
    if isinstance(operator, Tanh):
        return tanh(z)
    if isinstance(operator, Sigmoid):
        return 1 / (1 + exp(-z))
    if isinstance(operator, SiLU):
        return z / (1 + exp(-z))
    assert isinstance(operator, GELU)
    if operator.approximate == "none":
        return z * erfc(-z / sqrt(2)) / 2
    return z * (1 + tanh(sqrt(2 / pi) * (z + mpf("0.044715") * z**3))) / 2


def smooth_fraction(operator: Operator, value: Fraction) -> Fraction:
    """The function at a fraction, right to 55 digits or more."""
    with mp.workdps(60):
        sign, mantissa, exponent, _ = smooth(operator, mpf(value.numerator) / value.denominator)._mpf_
    return (-1) ** sign * int(mantissa) * Fraction(2) ** exponent
