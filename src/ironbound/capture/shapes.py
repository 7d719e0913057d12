"""Builders for operators that move, copy, drop or average elements: no entry of their matrices is negative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ironbound.capture.call import Call, Constant, Result, Symbolic, Value
from ironbound.ops.affine import Reshape


def fixed(call: Call, name: str, label: str) -> Value:
    """The traced operator itself as an affine node, all its other arguments being constants.

    Args:
        call: the call.
        name: the argument that depends on the input.
        label: what it does, for people.

    Returns:
        The new value.
    """
    x = call.value(name)
    target: Callable[..., Tensor] = call.node.target  # type: ignore[assignment]
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument in target._schema.arguments:  # type: ignore[attr-defined]
        if argument.name != name:
            value = call.plain(argument.name)
            if argument.kwarg_only:
                keywords[argument.name] = value
            else:
                positional.append(value)
    return call.structural(lambda v: target(v, *positional, **keywords), label, x)


def identity(call: Call) -> Result:
    """Operators that hand on their input: contiguous, clone, detach, conversions to the dtype and device it has."""
    call.skip("memory_format", "non_blocking", "copy", "dtype", "layout", "device", "pin_memory", "other", "inplace")
    return call.value("self")


def dropout(call: Call) -> Result:
    """Dropout in evaluation mode vanishes."""
    probability, training = call.plain("p"), call.plain("train")
    if training and probability > 0:
        call.in_training("dropout is active")
    return call.value("input")


def reshape(call: Call) -> Result:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: with the batch axis in front only the shape matters."""
    x = call.value("self")
    call.skip("size", "shape", "start_dim", "end_dim", "dim", "sizes", "other")
    if math.prod(x.shape) != math.prod(call.shape):
        call.mixes("it moves elements between the examples of a batch")
    return x if x.shape == call.shape else call.emit(Reshape(call.shape), x)


def transpose(call: Call) -> Result:
    """Exchange of two axes."""
    x = call.value("self")
    names = ("dim0", "dim1") if call.has("dim0") else ("axis0", "axis1")
    one, two = (call.axis(name, x.rank, "moves") for name in names)
    return call.structural(lambda v: v.transpose(one, two), f"transpose({one}, {two})", x)


def adjoint(call: Call) -> Result:
    """x.mT and x.t(): exchange of the last two axes."""
    x = call.value("self")
    if x.rank < 3:
        call.refuse("it moves the batch axis")
    return call.structural(lambda v: v.transpose(-1, -2), "transpose(-1, -2)", x)


def permute(call: Call) -> Result:
    """Another order of the axes, the batch axis first."""
    x = call.value("self")
    order = [axis % x.rank for axis in call.plain("dims")]
    if order[0] != 0:
        call.refuse("it moves the batch axis")
    return call.structural(lambda v: v.permute(order), f"permute{tuple(order)}", x)


def movedim(call: Call) -> Result:
    """torch.movedim."""
    x = call.value("self")
    for name in ("source", "destination"):
        value = call.plain(name)
        for axis in value if isinstance(value, list | tuple) else [value]:
            call.proper_axis(axis, x.rank, "moves")
    return fixed(call, "self", "movedim")


def slice_(call: Call) -> Result:
    """x[start:end:step] along one axis; a slice that keeps everything vanishes."""
    x = call.value("self")
    axis, start, step = call.plain("dim") % x.rank, call.plain("start"), call.plain("step")
    end = call.read("end")
    if axis == 0:
        if start not in (None, 0) or step != 1 or not (end is None or (isinstance(end, int) and end >= 2**62)):
            call.mixes("it slices the batch axis")
        return x
    if isinstance(end, Symbolic | Value | Constant):
        call.refuse("its end must be a fixed number")
    if call.shape == x.shape and step == 1:
        return x
    pick = (slice(None),) * axis + (slice(start, end, step),)
    return call.structural(lambda v: v[pick], f"slice({axis}, {start}, {end}, {step})", x)


def narrow(call: Call) -> Result:
    """torch.narrow."""
    x = call.value("self")
    axis, start, length = call.axis("dim", x.rank, "slices"), call.plain("start"), call.plain("length")
    return call.structural(lambda v: v.narrow(axis, start, length), f"narrow({axis}, {start}, {length})", x)


def select(call: Call) -> Result:
    """x[index] along one axis."""
    x = call.value("self")
    axis, index = call.axis("dim", x.rank, "selects along"), call.plain("index")
    return call.structural(lambda v: v.select(axis, index), f"select({axis}, {index})", x)


def index_select(call: Call) -> Result:
    """torch.index_select with a constant index."""
    x = call.value("self")
    axis, index = call.axis("dim", x.rank, "selects along"), call.constant("index")
    return call.structural(lambda v: v.index_select(axis, index.to(v.device)), f"index_select({axis})", x)


def index(call: Call) -> Result:
    """x[:, index] with constant indices."""
    x, entries = call.value("self"), call.read("indices")
    if not entries or entries[0] is not None:
        call.mixes("it indexes the batch axis")
    picks: list[Any] = []
    for entry in entries:
        if entry is not None and not isinstance(entry, Constant):
            call.refuse("its indices must be constants")
        picks.append(slice(None) if entry is None else entry.tensor)
    return call.structural(lambda v: v[tuple(picks)], "index", x)


def parts(call: Call) -> Result:
    """split, chunk, unbind: several slices along one axis."""
    x = call.value("self")
    axis = call.axis("dim", x.rank, "splits")
    call.skip("split_size", "split_sizes", "chunks", "sections", "indices")
    values: list[Value | None] = []
    start = 0
    for shape in call.shapes:
        if len(shape) == x.rank - 1:
            length = shape[axis - 1]
            values.append(_narrowed(call, x, axis, start, shape))
        else:  # unbind drops the axis
            length = 1
            values.append(_selected(call, x, axis, start, shape))
        start += length
    return values


def _narrowed(call: Call, x: Value, axis: int, start: int, shape: tuple[int, ...]) -> Value:
    length = shape[axis - 1]
    if length == x.shape[axis - 1]:
        return x
    label = f"narrow({axis}, {start}, {length})"
    return call.structural(lambda v: v.narrow(axis, start, length), label, x, shape=shape)


def _selected(call: Call, x: Value, axis: int, place: int, shape: tuple[int, ...]) -> Value:
    return call.structural(lambda v: v.select(axis, place), f"select({axis}, {place})", x, shape=shape)


def concatenate(call: Call) -> Result:
    """torch.cat of values of the network."""
    values = _values(call)
    axis = call.axis("dim", values[0].rank, "concatenates along")
    if len(values) == 1:
        return values[0]
    return call.structural(lambda *v: torch.cat(v, axis), f"cat({axis})", *values)


def stack(call: Call) -> Result:
    """torch.stack of values of the network."""
    values = _values(call)
    axis = call.axis("dim", values[0].rank + 1, "stacks along")
    return call.structural(lambda *v: torch.stack(v, axis), f"stack({axis})", *values)


def _values(call: Call) -> list[Value]:
    values = call.read("tensors")
    if not values or not all(isinstance(value, Value) for value in values):
        call.refuse("all its tensors must depend on the network's input")
    return list(values)


def expand(call: Call) -> Result:
    """Broadcast along axes of size one."""
    call.skip("size", "implicit", "other")
    return call.expand(call.value("self"), call.shape)


def repeat(call: Call) -> Result:
    """Copies along the axes other than the batch."""
    x = call.value("self")
    counts = call.plain("repeats" if call.has("repeats") else "dims")
    counts = (1,) * (x.rank - len(counts)) + tuple(counts)
    if counts[0] != 1:
        call.mixes("it repeats the batch axis")
    return call.structural(lambda v: v.repeat(counts), f"repeat{counts}", x)


def pad(call: Call) -> Result:
    """F.pad in every mode, with a finite constant."""
    x, widths = call.value("self"), call.plain("pad" if call.has("pad") else "padding")
    if len(widths) // 2 >= x.rank:
        call.mixes("it pads the batch axis")
    value = call.plain("value") if call.has("value") else None
    if value is not None and not math.isfinite(value):
        call.refuse("its padding value must be finite")
    mode = call.plain("mode") if call.has("mode") else ""
    if not any(widths):
        return x
    return fixed(call, "self", f"pad{tuple(widths)} {mode}".strip())


def average(call: Call) -> Result:
    """Mean or sum over axes other than the batch."""
    x = call.value("self")
    if not call.has("dim"):
        call.mixes("it reduces over the batch axis")
    axes, keep = call.axes("dim", x.rank, "reduces over"), call.plain("keepdim")
    call.skip("dtype")  # the walk has checked that the dtype stays
    if ".mean" in call.operator:
        return call.structural(lambda v: v.mean(axes, keep), f"mean{tuple(axes)}", x)
    return call.structural(lambda v: v.sum(axes, keep), f"sum{tuple(axes)}", x)


def along_axes(call: Call) -> Result:
    """flip, roll, cumulative sums, repeats: the operator itself, along axes other than the batch."""
    x = call.value("self")
    name = "dims" if call.has("dims") else "dim"
    if call.plain(name) in (None, []):
        call.mixes("without axes it works on the whole batch at once")
    call.axes(name, x.rank)
    return fixed(call, "self", call.operator.split(".")[1])


def spatial(call: Call) -> Result:
    """Pixel shuffles, interpolation, patches: the operator itself, which treats each example alone."""
    return fixed(call, "self" if call.has("self") else "input", call.operator.split(".")[1])


_IDENTITIES = (
    "contiguous.default clone.default detach.default alias.default positive.default lift_fresh_copy.default "
    "to.dtype to.dtype_layout to.device to.other _to_copy.default type_as.default"
)
_DROPOUTS = "dropout.default feature_dropout.default alpha_dropout.default feature_alpha_dropout.default"
_RESHAPES = (
    "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int squeeze.default squeeze.dim "
    "squeeze.dims unsqueeze.default view_as.default reshape_as.default"
)
_PARTS = (
    "split.Tensor split.sizes split_with_sizes.default chunk.default unbind.int tensor_split.sections "
    "tensor_split.indices unsafe_split.Tensor unsafe_chunk.default"
)
_PADS = (
    "pad.default constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default "
    "replication_pad1d.default replication_pad2d.default replication_pad3d.default"
)
_SPATIAL = (
    "pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default im2col.default "
    "upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_nearest1d.default "
    "upsample_nearest2d.default upsample_nearest3d.default _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec "
    "_upsample_nearest_exact3d.vec upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec"
)


def _table(names: str, builder: Callable[[Call], Result]) -> dict[str, Callable[[Call], Result]]:
    return {f"aten.{name}": builder for name in names.split()}


RULES = {
    **_table(_IDENTITIES, identity),
    **_table(_DROPOUTS, dropout),
    **_table(_RESHAPES, reshape),
    **_table("transpose.int swapaxes.default swapdims.default", transpose),
    **_table("t.default mT.default", adjoint),
    **_table("permute.default", permute),
    **_table("movedim.int movedim.intlist moveaxis.int moveaxis.intlist", movedim),
    **_table("slice.Tensor", slice_),
    **_table("narrow.default", narrow),
    **_table("select.int", select),
    **_table("index_select.default", index_select),
    **_table("index.Tensor", index),
    **_table(_PARTS, parts),
    **_table("cat.default concat.default concatenate.default", concatenate),
    **_table("stack.default", stack),
    **_table("expand.default expand_as.default", expand),
    **_table("repeat.default tile.default", repeat),
    **_table(_PADS, pad),
    **_table("mean.dim sum.dim_IntList mean.default sum.default", average),
    **_table("flip.default roll.default cumsum.default repeat_interleave.self_int", along_axes),
    **_table(_SPATIAL, spatial),
}
