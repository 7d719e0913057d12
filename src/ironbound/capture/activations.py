"""Builders for activations: piecewise linear ones are declared by their knots and slopes."""

from __future__ import annotations

import math

from ironbound.capture.call import Call, Result, plain_number, scalar
from ironbound.ops.affine import Scale, WeightedSum
from ironbound.ops.piecewise import PiecewiseLinear, ReLU
from ironbound.ops.smooth import GELU, Sigmoid, SiLU, Tanh


def _number(call: Call, name: str) -> float:
    value = call.plain(name)
    if not plain_number(value):
        call.refuse(f"its argument {name!r} must be a fixed real number")
    return float(value)


def _clipped(call: Call, low: float | None, high: float | None) -> Result:
    x = call.value("self")
    low = None if low is not None and low == -math.inf else low
    high = None if high is not None and high == math.inf else high
    if any(end is not None and not math.isfinite(end) for end in (low, high)):
        call.refuse("its limits must be numbers, and must not make it constant")
    if low is None and high is None:
        return x
    if low is None:
        assert high is not None
        return call.emit(PiecewiseLinear((high,), (1.0, 0.0), high), x)
    if high is None:
        return call.emit(ReLU() if low == 0 else PiecewiseLinear((low,), (0.0, 1.0), low), x)
    if low >= high:
        call.refuse("its lower limit must be below its upper limit")
    return call.emit(PiecewiseLinear((low, high), (0.0, 1.0, 0.0), low), x)


def relu(call: Call) -> Result:
    """max(z, 0)."""
    return call.emit(ReLU(), call.value("self"))


def relu6(call: Call) -> Result:
    """min(max(z, 0), 6)."""
    return _clipped(call, 0.0, 6.0)


def hardtanh(call: Call) -> Result:
    """min(max(z, min_val), max_val)."""
    return _clipped(call, _number(call, "min_val"), _number(call, "max_val"))


def clamp(call: Call) -> Result:
    """torch.clamp with numbers."""
    low, high = (None if call.plain(name) is None else _number(call, name) for name in ("min", "max"))
    return _clipped(call, low, high)


def clamp_min(call: Call) -> Result:
    """torch.clamp_min with a number."""
    return _clipped(call, _number(call, "min"), None)


def clamp_max(call: Call) -> Result:
    """torch.clamp_max with a number."""
    return _clipped(call, None, _number(call, "max"))


def leaky_relu(call: Call) -> Result:
    """z, or negative_slope * z where z is negative."""
    slope = _number(call, "negative_slope")
    if not math.isfinite(slope):
        call.refuse("its negative slope must be finite")
    operator = ReLU() if slope == 0 else PiecewiseLinear((0.0,), (slope, 1.0), 0.0)
    return call.emit(operator, call.value("self"))


def absolute(call: Call) -> Result:
    """|z|."""
    return call.emit(PiecewiseLinear((0.0,), (-1.0, 1.0), 0.0), call.value("self"))


def hardsigmoid(call: Call) -> Result:
    """min(max(z / 6 + 1/2, 0), 1)."""
    return call.emit(PiecewiseLinear((-3.0, 3.0), (0.0, 1.0 / 6.0, 0.0), 0.0), call.value("self"))


def softshrink(call: Call) -> Result:
    """The value moved towards zero by lambd."""
    width = _number(call, "lambd")
    if not 0 < width < math.inf:
        call.refuse("lambd must be positive")
    return call.emit(PiecewiseLinear((-width, width), (1.0, 0.0, 1.0), 0.0), call.value("self"))


def threshold(call: Call) -> Result:
    """The value above the threshold, else value; continuous only where both are one number."""
    knot, value = _number(call, "threshold"), _number(call, "value")
    if knot != value:
        call.refuse("it is not continuous: threshold and value differ")
    return _clipped(call, knot, None)


def prelu(call: Call) -> Result:
    """relu(z) - weight * relu(-z), with the live weight of each channel."""
    x, weight = call.value("self"), call.constant("weight")
    weight = weight.reshape(-1, *(1,) * (x.rank - 2)) if weight.numel() > 1 else weight.reshape(())
    positive = call.emit(ReLU(), x)
    negative = call.emit(ReLU(), call.emit(Scale(scalar(-1.0)), x))
    return call.emit(WeightedSum((1.0, -1.0)), positive, call.emit(Scale(weight), negative))


def sigmoid(call: Call) -> Result:
    """1 / (1 + exp(-z))."""
    return call.emit(Sigmoid(), call.value("self"))


def tanh(call: Call) -> Result:
    """Hyperbolic tangent."""
    return call.emit(Tanh(), call.value("self"))


def gelu(call: Call) -> Result:
    """The product z Φ(z), exact or by its tanh form."""
    approximate = call.plain("approximate")
    if approximate not in ("none", "tanh"):
        call.refuse(f"approximate={approximate!r} is not supported")
    return call.emit(GELU(approximate), call.value("self"))


def silu(call: Call) -> Result:
    """The product z sigmoid(z)."""
    return call.emit(SiLU(), call.value("self"))


RULES = {
    "aten.relu.default": relu,
    "aten.relu6.default": relu6,
    "aten.hardtanh.default": hardtanh,
    "aten.clamp.default": clamp,
    "aten.clip.default": clamp,
    "aten.clamp_min.default": clamp_min,
    "aten.clamp_max.default": clamp_max,
    "aten.leaky_relu.default": leaky_relu,
    "aten.abs.default": absolute,
    "aten.absolute.default": absolute,
    "aten.hardsigmoid.default": hardsigmoid,
    "aten.softshrink.default": softshrink,
    "aten.threshold.default": threshold,
    "aten.prelu.default": prelu,
    "aten._prelu_kernel.default": prelu,
    "aten.sigmoid.default": sigmoid,
    "aten.tanh.default": tanh,
    "aten.gelu.default": gelu,
    "aten.silu.default": silu,
}
