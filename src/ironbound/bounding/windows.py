"""Functionals of a feature map that read only a small window of it: what a convolution's output makes of earlier maps.

A row is a window of coefficients, channels last, and where it lies; composing with the convolution below is a matrix
product. Elements of a window that lie outside the map (on padding) meet zero slopes and a zero radius, so that padding
is never perturbed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.bounding.functionals import DenseRows, Pull, row_norm
from ironbound.ops.affine import FEW_CHANNELS, BatchNorm, Convolution, Scale, Shift, WeightedSum, transposed_2d
from ironbound.ops.operator import Affine, Lines
from ironbound.regions import Set


@dataclass(frozen=True, eq=False)
class Windows:
    """Rows of windows on one feature map.

    The window of row r starts at `base[r] * stride + shift` on each axis; parts of it may lie outside the map.

    Attributes:
        coefficients: [rows, height, width, channels], zero or arbitrary outside the map.
        example: the example of each row, int64 [rows].
        base: output position that the row began at, two int64 [rows].
        extent: number of positions that `base` ranges over, per axis.
        stride, shift: the affine map from `base` to the window's first element, per axis.
        shape: shape of the feature map (channels, height, width).
        zero_outside: whether the coefficients outside the map are known to be zero.
    """

    coefficients: Tensor
    example: Tensor
    base: tuple[Tensor, Tensor]
    extent: tuple[int, int]
    stride: tuple[int, int]
    shift: tuple[int, int]
    shape: tuple[int, ...]
    zero_outside: bool = False

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the windows."""
        return self.coefficients.shape[1], self.coefficients.shape[2]

    def _margins(self) -> list[tuple[int, int]]:
        """How far windows can reach beyond the map, before and after, per axis."""
        reach = []
        for axis in range(2):
            last = (self.extent[axis] - 1) * self.stride[axis] + self.shift[axis] + self.size[axis]
            reach.append((max(0, -self.shift[axis]), max(0, last - self.shape[1 + axis])))
        return reach

    def gather(self, value: Tensor) -> Tensor:
        """The windows of `value` [batch or 1, *shape], zero outside the map: [rows, height, width, channels]."""
        (top, bottom), (left, right) = self._margins()
        padded = F.pad(value.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom)).contiguous()
        example = self.example if len(padded) > 1 else torch.zeros_like(self.example)
        y = self.base[0] * self.stride[0] + (self.shift[0] + top)
        x = self.base[1] * self.stride[1] + (self.shift[1] + left)
        return _TakeWindows.apply(padded, self.size, example, y, x)

    def dense(self) -> DenseRows:
        """The same functionals with a coefficient for every element of the map."""
        (top, bottom), (left, right) = self._margins()
        channels, height, width = self.shape
        c = self.coefficients
        canvas = c.new_zeros((len(c), height + top + bottom, width + left + right, channels))
        row = torch.arange(len(c), device=c.device).reshape(-1, 1, 1)
        y = (self.base[0] * self.stride[0] + (self.shift[0] + top)).reshape(-1, 1, 1)
        x = (self.base[1] * self.stride[1] + (self.shift[1] + left)).reshape(-1, 1, 1)
        y = y + torch.arange(self.size[0], device=c.device).reshape(1, -1, 1)
        x = x + torch.arange(self.size[1], device=c.device).reshape(1, 1, -1)
        canvas = canvas.index_put((row, y, x), c)
        canvas = canvas[:, top : top + height, left : left + width]
        return DenseRows(canvas.permute(0, 3, 1, 2).contiguous(), self.example)

    def __add__(self, other: Windows | DenseRows) -> Windows | DenseRows:
        if not isinstance(other, Windows) or other.stride != self.stride or other.shape != self.shape:
            return self.dense() + other.dense()
        first = [min(a, b) for a, b in zip(self.shift, other.shift, strict=True)]
        last = [max(a + m, b + n) for a, m, b, n in zip(self.shift, self.size, other.shift, other.size, strict=True)]

        def grown(part: Windows) -> Tensor:
            before = [have - start for have, start in zip(part.shift, first, strict=True)]
            after = [end - have - n for end, have, n in zip(last, part.shift, part.size, strict=True)]
            return F.pad(part.coefficients, (0, 0, before[1], after[1], before[0], after[0]))

        both = self.zero_outside and other.zero_outside
        return replace(self, coefficients=grown(self) + grown(other), shift=(first[0], first[1]), zero_outside=both)

    def _scaled(self, gathered: Tensor) -> Windows:
        """The windows times gathered values, which are zero outside the map."""
        return replace(self, coefficients=self.coefficients * gathered, zero_outside=True)

    def masked(self) -> Tensor:
        """The coefficients with exact zeros outside the map."""
        if self.zero_outside or not any(max(margin) for margin in self._margins()):
            return self.coefficients
        ones = self.coefficients.new_ones((1, 1, *self.shape[1:]))
        return self.coefficients * self.gather(ones)

    def dot(self, value: Tensor) -> Tensor:
        """Applies each row to its example's `value` [batch or 1, *shape]; returns [rows]."""
        return (self.coefficients * self.gather(value.expand(-1, *self.shape))).flatten(1).sum(1)

    def pull_affine(self, operator: Affine, shapes: tuple[tuple[int, ...], ...]) -> tuple[Windows | DenseRows, ...]:
        """Functionals of the operator's inputs; dense where windows do not pay or the operator is no map to map."""
        if isinstance(operator, Convolution) and is_windowed(operator):
            pulled = self._pull_convolution(operator, shapes[0])
            return (pulled if pulled is not None else self.dense().pull_affine(operator, shapes)[0],)
        if isinstance(operator, Shift):
            return (self,)
        if isinstance(operator, BatchNorm | Scale):
            ones = self.coefficients.new_ones((1, *self.shape))
            (factor,) = operator.adjoint(ones, shapes)
            if isinstance(operator, BatchNorm) or operator.factor.numel() == 1:
                return (replace(self, coefficients=self.coefficients * factor[0, :, 0, 0]),)
            return (self.scaled(factor),)
        if isinstance(operator, WeightedSum):
            return tuple(replace(self, coefficients=self.coefficients * factor) for factor in operator.factors)
        return self.dense().pull_affine(operator, shapes)

    def _pull_convolution(self, operator: Convolution, shape: tuple[int, ...]) -> Windows | None:
        kernel = operator.weight.shape[2:]
        stride = tuple(a * b for a, b in zip(self.stride, operator.stride, strict=True))
        shift = tuple(a * s - p for a, s, p in zip(self.shift, operator.stride, operator.padding, strict=True))
        size = tuple(
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(self.size, operator.stride, operator.dilation, kernel, strict=True)
        )
        if size[0] * size[1] > 2 * shape[1] * shape[2]:
            return None
        # a window element outside the map is no output of the convolution: it must not reach the input
        pulled = _transposed(self.masked(), operator, (size[0], size[1]))
        return Windows(pulled, self.example, self.base, self.extent, stride, shift, shape)  # type: ignore[arg-type]

    def pull_lines(self, lines: Lines, window: bool) -> Pull:
        """Goes through a relaxation: positive coefficients take the lower line, negative ones the upper line."""
        if window:
            return self.dense().pull_lines(lines, window)
        c = self.coefficients
        lower = (c.clamp(max=0) * self.gather(lines.upper_intercept)).flatten(1).sum(1)
        if lines.lower_intercept is not None:
            lower = lower + (c.clamp(min=0) * self.gather(lines.lower_intercept)).flatten(1).sum(1)
        if lines.parallel:
            return Pull(self.scaled(lines.lower_slope), lower)
        slope = torch.where(c < 0, self.gather(lines.upper_slope), self.gather(lines.lower_slope))
        return Pull(self._scaled(slope), lower)

    def take(self, index: Tensor) -> Windows:
        """Some of the rows, by int64 [rows kept]."""
        base = (self.base[0][index], self.base[1][index])
        return replace(self, coefficients=self.coefficients[index], example=self.example[index], base=base)

    def scaled(self, factor: Tensor) -> Windows:
        """The coefficients times a value per example, [batch or 1, *shape]; zero outside the map from there on."""
        return self._scaled(self.gather(factor))

    def widening(self, gap: Tensor) -> Tensor:
        """Sum |c| gap, [rows], for a value per example, [batch or 1, *shape]."""
        return (self.coefficients.abs() * self.gather(gap)).flatten(1).sum(1)

    def norm(self, region_set: Set) -> Tensor:
        """The support function of a centered set, [rows]."""
        radius = region_set.radius
        scaled = self.coefficients * self.gather(radius.expand(-1, radius.shape[1], *self.shape[1:]))
        return row_norm(scaled.flatten(1), region_set.dual)


class _TakeWindows(torch.autograd.Function):
    """Windows of `padded` [batch, rows, columns, channels], one per (example, y, x); the gradient adds up there."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, padded: Tensor, size: tuple[int, int], example: Tensor, y: Tensor, x: Tensor
    ) -> Tensor:
        ctx.save_for_backward(example, y, x)
        ctx.shape = padded.shape
        batch, rows, columns, channels = padded.shape
        strides = (rows * columns * channels, columns * channels, channels, columns * channels, channels, 1)
        shape = (batch, rows - size[0] + 1, columns - size[1] + 1, *size, channels)
        return padded.as_strided(shape, strides)[example, y, x]

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        example, y, x = ctx.saved_tensors
        batch, rows, columns, channels = ctx.shape
        total = gradient.new_zeros((batch * rows * columns, channels))
        _, height, width, _ = gradient.shape
        start = (example * rows + y) * columns + x
        steps = torch.arange(height, device=x.device).reshape(-1, 1) * columns + torch.arange(width, device=x.device)
        index = start.reshape(-1, 1) + steps.reshape(1, -1)
        total.index_add_(0, index.reshape(-1), gradient.reshape(-1, channels))
        return total.reshape(ctx.shape), None, None, None, None


def is_windowed(operator: Convolution) -> bool:
    """Whether windows serve this convolution: two spatial axes and one group."""
    return operator.weight.dim() == 4 and operator.groups == 1


def _transposed(rows: Tensor, operator: Convolution, size: tuple[int, int]) -> Tensor:
    """The adjoint of an unpadded convolution on windows.

    Transposed convolutions run badly on few channels: then every line of a window is one product with a matrix that
    holds the kernel at all offsets along the line, and the lines are added up where they overlap.

    Args:
        rows: [rows, height, width, out channels].
        operator: the convolution.
        size: height and width of the windows of its input.

    Returns:
        [rows, *size, in channels].
    """
    weight, stride, dilation = operator.weight, operator.stride, operator.dilation
    inputs, *kernel = weight.shape[1:]
    if inputs > FEW_CHANNELS:
        pulled = transposed_2d(rows.permute(0, 3, 1, 2), weight, stride, (0, 0), dilation, size)
        return pulled.permute(0, 2, 3, 1)
    count, height, width, outputs = rows.shape
    reach = dilation[1] * (kernel[1] - 1) + 1
    taps = weight.permute(0, 2, 3, 1)
    if dilation[1] > 1:
        taps = _dilate(taps, (1, dilation[1]))
    along = [F.pad(taps, (0, 0, x * stride[1], size[1] - reach - x * stride[1])) for x in range(width)]
    matrix = torch.stack(along).reshape(width * outputs, kernel[0] * size[1] * inputs)
    lines = (rows.reshape(count * height, -1) @ matrix).reshape(count, height, kernel[0], size[1] * inputs)
    pulled = rows.new_zeros((count, size[0], size[1] * inputs))
    for tap in range(kernel[0]):
        first = tap * dilation[0]
        pulled[:, first : first + (height - 1) * stride[0] + 1 : stride[0]] += lines[:, :, tap]
    return pulled.reshape(count, *size, inputs)


def unit_windows(
    operator: Convolution, neuron: Tensor, example: Tensor, shapes: tuple[tuple[int, ...], ...]
) -> Windows:
    """One functional per neuron of a feature map.

    Args:
        operator: the convolution that makes the map; the rows read its input.
        neuron: flat indices into the map, int64 [rows].
        example: the example of each row, int64 [rows].
        shapes: shape of the map and of the convolution's input.

    Returns:
        [rows] windows of the convolution's input: its kernel, one output channel per row.
    """
    channels, height, width = shapes[0]
    channel = neuron // (height * width)
    base = ((neuron // width) % height, neuron % width)
    weight = operator.weight.permute(0, 2, 3, 1).contiguous()
    rows = weight.index_select(0, channel)
    if any(dilation > 1 for dilation in operator.dilation):
        rows = _dilate(rows, operator.dilation)
    shift = (-operator.padding[0], -operator.padding[1])
    stride = (operator.stride[0], operator.stride[1])
    return Windows(rows, example, base, (height, width), stride, shift, shapes[1])


def one_hot_windows(like: Tensor, neuron: Tensor, example: Tensor, shape: tuple[int, ...]) -> Windows:
    """One functional per neuron of a feature map, reading the map itself."""
    channels, height, width = shape
    rows = F.one_hot(neuron // (height * width), channels).to(like.dtype).reshape(-1, 1, 1, channels)
    base = ((neuron // width) % height, neuron % width)
    return Windows(rows, example, base, (height, width), (1, 1), (0, 0), shape)


def _dilate(rows: Tensor, dilation: tuple[int, ...]) -> Tensor:
    count, height, width, channels = rows.shape
    spread = rows.new_zeros((count, (height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1, channels))
    spread[:, :: dilation[0], :: dilation[1]] = rows
    return spread
