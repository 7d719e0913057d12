"""Builders for sums, differences, products and quotients with constants, and for sums of two values."""

from __future__ import annotations

from torch import Tensor

from ironbound.capture.call import Call, Constant, Result, Value, plain_number, scalar
from ironbound.capture.live import Division, Subtraction
from ironbound.ops.affine import Scale, Shift, WeightedSum


def _fitted(call: Call, value: Value, constant: Tensor) -> tuple[Value, Tensor]:
    """Gives the value the result's shape and the constant no batch axis."""
    value = call.expand(value, call.shape)
    if constant.dim() == value.rank:
        if len(constant) != 1:
            call.refuse("its constant has an entry for each example of the batch")
        constant = constant.squeeze(0)
    if not constant.is_floating_point():  # no gradient can reach it, and |x| is not defined for bool
        constant = constant.to(call.node.meta["val"].dtype)
    return value, constant


def _operand(call: Call, name: str) -> Value | Tensor | float:
    value = call.read(name)
    if isinstance(value, Constant):
        return value.tensor
    if isinstance(value, Value) or plain_number(value):
        return value
    call.refuse(f"its argument {name!r} must be a fixed real number, a constant tensor or a value of the network")


def _shift(call: Call, value: Value, constant: Tensor | float, factor: float) -> Value:
    """Emits value + factor * constant."""
    if not isinstance(constant, Tensor):
        return call.emit(Shift(scalar(factor * constant)), call.expand(value, call.shape))
    value, constant = _fitted(call, value, constant)
    if factor == 1:
        return call.emit(Shift(constant), value)
    if factor == -1:
        return call.emit(Subtraction(constant), value)
    if factor == 0:
        return value
    # the constant stays live: value + a c = a (value / a + c)
    divided = call.emit(Division(scalar(factor)), value)
    return call.emit(Scale(scalar(factor)), call.emit(Shift(constant), divided))


def _scaled(call: Call, value: Value, factor: float) -> Value:
    return value if factor == 1 else call.emit(Scale(scalar(factor)), value, shape=value.shape)


def _combination(call: Call, left: str, right: str, sign: float) -> Value:
    """Emits left + sign * alpha * right."""
    a, b = _operand(call, left), _operand(call, right)
    factor = sign * float(call.plain("alpha")) if call.has("alpha") else sign
    if isinstance(a, Value) and isinstance(b, Value):
        if a.index == b.index:
            return call.emit(Scale(scalar(1 + factor)), a)
        return call.emit(WeightedSum((1.0, factor)), call.expand(a, call.shape), call.expand(b, call.shape))
    if isinstance(a, Value):
        assert not isinstance(b, Value)
        return _shift(call, a, b, factor)
    assert isinstance(b, Value)
    return _shift(call, _scaled(call, b, factor), a, 1.0)


def add(call: Call) -> Result:
    """The sum self + alpha * other."""
    return _combination(call, "self", "other", 1.0)


def subtract(call: Call) -> Result:
    """The difference self - alpha * other."""
    return _combination(call, "self", "other", -1.0)


def reversed_subtract(call: Call) -> Result:
    """The difference other - alpha * self."""
    return _combination(call, "other", "self", -1.0)


def negate(call: Call) -> Result:
    """-self."""
    return call.emit(Scale(scalar(-1.0)), call.value("self"))


def multiply(call: Call) -> Result:
    """The product self * other, one of them constant."""
    a, b = _operand(call, "self"), _operand(call, "other")
    if isinstance(a, Value) and isinstance(b, Value):
        call.refuse("both factors depend on the network's input; only products with a constant are supported")
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    assert isinstance(value, Value) and not isinstance(constant, Value)
    if not isinstance(constant, Tensor):
        return call.emit(Scale(scalar(constant)), call.expand(value, call.shape))
    value, constant = _fitted(call, value, constant)
    return call.emit(Scale(constant), value)


def divide(call: Call) -> Result:
    """The quotient self / other with a constant divisor."""
    value, divisor = call.value("self"), _operand(call, "other")
    if call.has("rounding_mode") and call.plain("rounding_mode") is not None:
        call.refuse("rounded division is not supported")
    if isinstance(divisor, Value):
        call.refuse("its divisor depends on the network's input; only division by a constant is supported")
    if not isinstance(divisor, Tensor):
        if divisor == 0:
            call.refuse("it divides by zero")
        return call.emit(Division(scalar(divisor)), call.expand(value, call.shape))
    value, divisor = _fitted(call, value, divisor)
    return call.emit(Division(divisor), value)


RULES = {
    **{f"aten.add.{kind}": add for kind in ("Tensor", "Scalar")},
    **{f"aten.sub.{kind}": subtract for kind in ("Tensor", "Scalar")},
    **{f"aten.subtract.{kind}": subtract for kind in ("Tensor", "Scalar")},
    **{f"aten.rsub.{kind}": reversed_subtract for kind in ("Tensor", "Scalar")},
    **{f"aten.mul.{kind}": multiply for kind in ("Tensor", "Scalar")},
    **{f"aten.multiply.{kind}": multiply for kind in ("Tensor", "Scalar")},
    **{f"aten.div.{kind}": divide for kind in ("Tensor", "Scalar", "Tensor_mode", "Scalar_mode")},
    **{f"aten.{name}.Tensor": divide for name in ("divide", "true_divide")},
    "aten.neg.default": negate,
    "aten.negative.default": negate,
}
