"""Rules for operators that move, copy or drop elements. The batch axis stays in front: see `batch_first`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.capture.onnx.operation import Function, Operation, batch_first


def _reshaped(op: Operation, shape: Sequence[int]) -> Function:
    rest = batch_first(op, shape)[1:]
    return lambda x: x.reshape(x.shape[0], *rest)


def reshape(op: Operation) -> Function:
    """Reshape; with the batch axis in front, another shape of each example is all it can be."""
    shape, wanted = op.shape(), op.plain_integers(1, "shape")
    if wanted is None:
        op.refuse("its shape is missing")
    if not op.integer("allowzero", 0):
        if any(extent == 0 and axis >= len(shape) for axis, extent in enumerate(wanted)):
            op.refuse(f"its shape {wanted} copies an axis that its input {list(shape)} does not have")
        wanted = [shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
    if wanted.count(-1) == 1:
        known = -math.prod(wanted)
        wanted = [math.prod(shape) // known if extent == -1 and known > 0 else extent for extent in wanted]
    if min(wanted, default=1) < 0 or math.prod(wanted) != math.prod(shape):
        op.refuse(f"its shape {wanted} does not fit its input {list(shape)}")
    return _reshaped(op, wanted)


def flatten(op: Operation) -> Function:
    """Flatten to two axes."""
    shape = op.shape()
    axis = op.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        op.refuse(f"its axis {axis} is not one of its input's {len(shape)} axes")
    axis = axis + len(shape) if axis < 0 else axis
    return _reshaped(op, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def squeeze(op: Operation) -> Function:
    """Squeeze."""
    shape, axes = op.shape(), op.plain_integers(1, "axes")
    if axes is None:
        op.refuse("without axes it drops the batch axis; name the axes")
    gone = {op.front(axis, len(shape)) for axis in axes}
    if any(shape[axis] != 1 for axis in gone):
        op.refuse(f"its axes {axes} of the input {list(shape)} are not of size 1")
    return _reshaped(op, [extent for axis, extent in enumerate(shape) if axis not in gone])


def unsqueeze(op: Operation) -> Function:
    """Unsqueeze."""
    shape, axes = list(op.shape()), op.plain_integers(1, "axes") or []
    rank = len(shape) + len(axes)
    new = {op.front(axis, rank) for axis in axes}
    rest = iter(shape)
    return _reshaped(op, [1 if axis in new else next(rest) for axis in range(rank)])


def transpose(op: Operation) -> Function:
    """Transpose; an axis of size 1 may take the batch axis' place, since per example that moves nothing."""
    shape = op.shape()
    order = op.integers("perm") or list(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        op.refuse(f"perm = {order} does not order its input's {len(shape)} axes")
    rest = batch_first(op, [shape[axis] for axis in order])[1:]
    if order[0] == 0:
        return lambda x: x.permute(order)
    behind = [0, *(axis for axis in order if axis != 0)]
    return lambda x: x.permute(behind).reshape(x.shape[0], *rest)


def concatenate(op: Operation) -> Function:
    """Concat; constants between the values are written as zeros, to which the constants are added."""
    axis = op.axis()
    if axis == 0:
        op.refuse("it joins along the batch axis")
    values = [place for place in range(op.count) if op.dynamic(place)]
    rank = len(op.shape(values[0]))
    if len(values) == op.count:
        return lambda *tensors: torch.cat(tensors, axis)
    total = sum(op.shape(place)[axis] for place in range(op.count))
    shape = list(op.shape(values[0]))
    shape[axis] = total
    constants = torch.zeros(shape, dtype=op.dtype)
    before, after, start = 0, [0] * len(values), 0
    for place in range(op.count):
        extent = op.shape(place)[axis]
        if not op.dynamic(place):
            plain = op.plain(place)
            assert plain is not None
            constants.narrow(axis, start, extent).copy_(plain)
            seen = sum(1 for value in values if value < place)
            before, after = (
                (before + extent, after)
                if seen == 0
                else (before, [width + extent * (at == seen - 1) for at, width in enumerate(after)])
            )
        start += extent
    op.keep("constant", constants)
    trailing = [0, 0] * (rank - 1 - axis)

    def function(*tensors: Tensor) -> Tensor:
        *parts, constant = tensors
        padded = [
            F.pad(part, [*trailing, before if at == 0 else 0, after[at]]) if (at == 0 and before) or after[at] else part
            for at, part in enumerate(parts)
        ]
        joined = torch.cat(padded, axis) if len(padded) > 1 else padded[0]
        return joined + constant

    return function


def split(op: Operation) -> Function:
    """Split into parts of given sizes, or into as many as it has outputs."""
    op.only_first()
    axis, shape = op.axis(0), op.shape()
    if axis == 0:
        op.refuse("it splits the batch axis")
    sizes = op.plain_integers(1, "split")
    count = op.integer("num_outputs", len(op.node.output))
    if sizes is None:
        size = -(-shape[axis] // count)
        sizes = [min(size, shape[axis] - size * place) for place in range(count)]
    if sum(sizes) != shape[axis] or min(sizes) < 1 or len(sizes) != len(op.node.output):
        op.refuse(f"its parts {sizes} do not make up the axis {axis} of its input {list(shape)}")
    return lambda x: tuple(x.split(sizes, axis))


def slice_(op: Operation) -> Function:
    """Slice by constants: attributes before operator set 10, inputs since."""
    shape = op.shape()
    starts, ends = op.plain_integers(1, "starts"), op.plain_integers(2, "ends")
    axes, steps = op.plain_integers(3, "axes"), op.plain_integers(4)
    if starts is None or ends is None:
        op.refuse("its starts or ends are missing")
    axes = list(range(len(starts))) if axes is None else [op.front(axis, len(shape)) for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        op.refuse("its starts, ends, axes and steps do not fit each other")
    plain, turned = [slice(None)] * len(shape), []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Python cuts starts and ends off at the axis' ends as ONNX does, also for negative steps
        kept = range(*slice(start, end, step).indices(shape[axis]))
        if not kept:
            op.refuse(f"nothing is left of its axis {axis}")
        if axis == 0:
            continue  # of size 1: what is left is all of it
        if step < 0:
            turned.append((axis, len(turned)))
            op.keep(f"index{len(turned) - 1}", torch.tensor(list(kept)))
        else:
            plain[axis] = slice(kept[0], kept[-1] + 1, step)

    def function(x: Tensor, *indices: Tensor) -> Tensor:
        for axis, place in turned:
            x = x.index_select(axis, indices[place])
        return x[tuple(plain)]

    return function


def gather(op: Operation) -> Function:
    """Gather by constant indices."""
    op.only_first()
    axis, shape = op.axis(0), op.shape()
    index = op.plain(1)
    if index is None or index.is_floating_point():
        op.refuse("its indices must be whole numbers")
    if bool((index < -shape[axis]).any()) or bool((index >= shape[axis]).any()):
        op.refuse(f"its indices leave the axis {axis} of its input {list(shape)}")
    if axis == 0 and index.numel() != 1:
        op.refuse("it copies the batch axis")
    rest = batch_first(op, (*shape[:axis], *index.shape, *shape[axis + 1 :]))[1:]
    if axis == 0:  # of size 1: at most new axes of size 1 come in
        return lambda x: x.reshape(x.shape[0], *rest)
    index = index.long() % shape[axis]
    if index.dim() == 0:
        number = int(index)
        return lambda x: x.select(axis, number)
    op.keep("index", index.reshape(-1))
    if index.dim() == 1:
        return lambda x, index: x.index_select(axis, index)
    return lambda x, index: x.index_select(axis, index).reshape(x.shape[0], *rest)


def expand(op: Operation) -> Function:
    """Expand by broadcasting to a constant shape."""
    shape, wanted = op.shape(), op.plain_integers(1)
    if wanted is None:
        op.refuse("its shape is missing")
    try:
        full = torch.broadcast_shapes(shape, tuple(wanted))
    except RuntimeError:
        op.refuse(f"its shape {wanted} does not fit its input {list(shape)}")
    rest = batch_first(op, full)[1:]
    inner = (*(1,) * (len(full) - len(shape)), *shape[1:]) if len(full) > len(shape) else shape[1:]
    return lambda x: x.reshape(x.shape[0], *inner).expand(x.shape[0], *rest)


def tile(op: Operation) -> Function:
    """Tile by constant counts."""
    counts = op.plain_integers(1)
    if counts is None or len(counts) != len(op.shape()) or min(counts) < 1:
        op.refuse("it must have a count of at least 1 for each axis")
    if counts[0] != 1:
        op.refuse("it repeats the batch axis")
    return lambda x: x.repeat(counts)


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def pad(op: Operation) -> Function:
    """Pad by constants: attributes before operator set 11, inputs since."""
    shape = op.shape()
    rank = len(shape)
    mode = op.text("mode", "constant")
    pads, value = op.plain_integers(1, "pads"), op.plain_number(2, "value")
    axes = op.plain_integers(3)
    if mode not in _MODES or pads is None:
        op.refuse(f"mode = {mode!r} is not supported" if pads is not None else "its pads are missing")
    axes = list(range(rank)) if axes is None else [op.front(axis, rank) for axis in axes]
    if len(pads) != 2 * len(axes):
        op.refuse(f"its {len(pads)} pads do not fit its {len(axes)} axes")
    begin, end = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = pads[place], pads[place + len(axes)]
    if begin[0] or end[0]:
        op.refuse("it pads the batch axis")
    inner = 1 if mode == "constant" else 2  # torch reflects and repeats spatial axes only
    if any(begin[:inner]) or any(end[:inner]) or (inner == 2 and not 3 <= rank <= 5):
        op.refuse(f"mode = {mode!r} is supported on 1 to 3 axes behind batch and channels")
    widths = [width for axis in reversed(range(inner, rank)) for width in (begin[axis], end[axis])]
    if mode == "constant":
        number = 0.0 if value is None else value
        if not math.isfinite(number):
            op.refuse(f"its padding value {number} must be finite")
        return lambda x: F.pad(x, widths, value=number)
    return lambda x: F.pad(x, widths, mode=_MODES[mode])


def depth_to_space(op: Operation) -> Function:
    """DepthToSpace: blocks of channels become blocks of pixels."""
    _, channels, height, width = _image(op)
    size, mode = op.integer("blocksize", 0), op.text("mode", "DCR")
    if size < 1 or channels % (size * size) or mode not in ("DCR", "CRD"):
        op.refuse(f"its blocksize {size} or mode {mode!r} does not fit its {channels} channels")
    depth = channels // (size * size)
    split_, order = (
        ((size, size, depth), (0, 3, 4, 1, 5, 2)) if mode == "DCR" else ((depth, size, size), (0, 1, 4, 2, 5, 3))
    )

    def function(x: Tensor) -> Tensor:
        blocks = x.reshape(x.shape[0], *split_, height, width).permute(order)
        return blocks.reshape(x.shape[0], depth, height * size, width * size)

    return function


def space_to_depth(op: Operation) -> Function:
    """SpaceToDepth: blocks of pixels become blocks of channels."""
    _, channels, height, width = _image(op)
    size = op.integer("blocksize", 0)
    if size < 1 or height % size or width % size:
        op.refuse(f"its blocksize {size} does not divide its image {height} x {width}")

    def function(x: Tensor) -> Tensor:
        blocks = x.reshape(x.shape[0], channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(x.shape[0], size * size * channels, height // size, width // size)

    return function


def _image(op: Operation) -> tuple[int, ...]:
    shape = op.shape()
    if len(shape) != 4:
        op.refuse(f"its input {list(shape)} is no image [batch, channels, height, width]")
    return shape


def identity(op: Operation) -> None:
    """Identity."""


def dropout(op: Operation) -> None:
    """Dropout in evaluation mode; its mask is refused where it is read."""
    op.only_first()
    op.attribute("ratio", None)
    op.attribute("seed", None)
    op.plain(1)
    training = op.plain(2)
    if training is not None and bool(training.any()):
        op.refuse("it is in training mode; export the network in evaluation mode")


def cast(op: Operation) -> None:
    """Cast to the type that the value has."""
    op.attribute("saturate", None)
    op.text("round_mode", "up")
    if op.integer("to", 0) != {torch.float32: 1, torch.float64: 11}[op.dtype]:
        op.refuse(f"it changes the type of the network's values from {op.dtype}")


RULES = {
    "Cast": cast,
    "Concat": concatenate,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Identity": identity,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
