"""Affine operators: each says how it runs and what |A| does; linear and convolution also have a fast adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.ops.convolution_image import ConvolutionImage
from ironbound.ops.linear_image import LinearImage
from ironbound.ops.operator import Affine

FEW_CHANNELS = 4  # input channels up to which a transposed convolution runs faster as a plain one
PHASED_CHANNELS = 16  # input channels up to which the gradient of a strided convolution's box runs faster by phases
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _root(square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 (as a norm's), not NaN: ε = 0 and rows of zeros happen in training."""
    zero = square == 0
    return torch.where(zero, square, torch.where(zero, 1.0, square).sqrt())


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """x W^T + b on the last axis.

    Attributes:
        weight: [out features, in features].
        bias: [out features] or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the layer."""
        return F.linear(inputs[0], self.weight, self.bias)

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """Rows times W."""
        return (rows @ self.weight,)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Radii times |W|."""
        return F.linear(radii[0], self.weight.abs())

    def image(self, centers: tuple[Tensor, ...], radii: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`forward` and `magnitude`, with the gradient of both in one."""
        return LinearImage.apply(centers[0], radii[0], self.weight, self.bias)

    def response(self, radius: Tensor, order: float) -> Tensor | None:
        """The dual norm of the scaled rows of W."""
        if order == 2:
            return _root(F.linear(radius**2, self.weight**2))
        return super().response(radius, order)


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """1-, 2- or 3-dimensional convolution with zero padding; other padding modes are a `Structural` pad before it.

    Attributes:
        weight: [out channels, in channels / groups, *kernel].
        bias: [out channels] or None.
        stride, padding, dilation: one entry per spatial axis.
        groups: number of groups.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        run = _CONVOLUTIONS[weight.dim() - 2]
        return run(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the layer."""
        return self._run(inputs[0], self.weight, self.bias)

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """The transposed convolution."""
        size = shapes[0][1:]
        if self.weight.dim() == 4 and self.groups == 1:
            return (transposed_2d(rows, self.weight, self.stride, self.padding, self.dilation, size),)
        kernel = self.weight.shape[2:]
        reached = (
            (extent - 1) * stride - 2 * padding + dilation * (width - 1) + 1
            for extent, stride, padding, dilation, width in zip(
                rows.shape[2:], self.stride, self.padding, self.dilation, kernel, strict=True
            )
        )
        # input that the stride never reached
        missing = tuple(have - got for have, got in zip(size, reached, strict=True))
        run = _TRANSPOSED[self.weight.dim() - 2]
        return (run(rows, self.weight, None, self.stride, self.padding, missing, self.groups, self.dilation),)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Convolution with |W|."""
        return self._run(radii[0], self.weight.abs(), None)

    def image(self, centers: tuple[Tensor, ...], radii: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`forward` and `magnitude`; on a CPU with a faster gradient where kernel, stride and channels allow."""
        step = self.stride[0]
        fits = self.weight.dim() == 4 and self.groups == 1 and self.weight.shape[1] <= PHASED_CHANNELS
        fits = fits and step > 1 and set(self.stride) == {step} and set(self.dilation) == {1}
        if fits and centers[0].device.type == "cpu" and all(extent % step == 0 for extent in self.weight.shape[2:]):
            return ConvolutionImage.apply(centers[0], radii[0], self.weight, self.bias, step, self.padding)
        return super().image(centers, radii)

    def response(self, radius: Tensor, order: float) -> Tensor | None:
        """The dual norm of the scaled kernel, of those of its elements that lie on the image."""
        if order == 2:
            return _root(self._run(radius**2, self.weight**2, None))
        return super().response(radius, order)


def transposed_2d(
    rows: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    size: tuple[int, ...],
) -> Tensor:
    """The adjoint of a 2-d convolution, channels last.

    Where the kernel is a multiple of the stride s, a plain convolution serves:
    out[s q + a - p] = sum_m rows[q - m] w[a + s m] for 0 <= a < s, so every offset a is an output channel of a
    convolution with a kernel s times smaller, whose results are then interleaved. On a CPU: 2.4 times faster than
    the library's transposed convolution for one input channel, and slower for 32 and more: those keep the library's.

    Args:
        rows: [rows, out channels, height, width].
        weight: [out channels, in channels, *kernel].
        stride: of the convolution, per axis.
        padding: of the convolution, per axis.
        dilation: of the convolution, per axis.
        size: height and width of the convolution's input.

    Returns:
        [rows, in channels, *size].
    """
    rows = rows.contiguous(memory_format=torch.channels_last)
    outputs, inputs, *kernel = weight.shape
    step = stride[0]
    few = inputs <= FEW_CHANNELS
    interleaves = (
        few and step == stride[1] and tuple(dilation) == (1, 1) and all(extent % step == 0 for extent in kernel)
    )
    if interleaves:
        small = [extent // step for extent in kernel]
        split = weight.reshape(outputs, inputs, small[0], step, small[1], step).flip(2, 4)
        phases = split.permute(1, 3, 5, 0, 2, 4).reshape(inputs * step * step, outputs, *small)
        full = F.conv2d(rows, phases, None, 1, (small[0] - 1, small[1] - 1))
        full = F.pixel_shuffle(full, step) if step > 1 else full
    else:
        full = F.conv_transpose2d(rows, weight, None, tuple(stride), 0, 0, 1, tuple(dilation))
    before = [-extent for extent in padding]
    after = [want + pad - have for want, pad, have in zip(size, padding, full.shape[2:], strict=True)]
    if any(before) or any(after):
        full = F.pad(full, (before[1], after[1], before[0], after[0]))
    return full


@dataclass(frozen=True, eq=False)
class TransposedConvolution(Affine):
    """1-, 2- or 3-dimensional transposed convolution.

    Attributes:
        weight: [in channels, out channels / groups, *kernel].
        bias: [out channels] or None.
        stride, padding, output_padding, dilation: one entry per spatial axis.
        groups: number of groups.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        run = _TRANSPOSED[weight.dim() - 2]
        return run(x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the layer."""
        return self._run(inputs[0], self.weight, self.bias)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Transposed convolution with |W|."""
        return self._run(radii[0], self.weight.abs(), None)


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """Multiplication by a constant, element by element.

    Attributes:
        factor: broadcastable to [*shape] from the right (no batch axis).
    """

    factor: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        """Multiplies."""
        return inputs[0] * self.factor

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """Multiplies: the map is its own adjoint."""
        return (rows * self.factor,)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Multiplies by the absolute value."""
        return radii[0] * self.factor.abs()

    def diagonal(self) -> bool:
        """Each element is scaled alone."""
        return True


@dataclass(frozen=True, eq=False)
class Shift(Affine):
    """Addition of a constant.

    Attributes:
        offset: broadcastable to [*shape] from the right (no batch axis).
    """

    offset: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        """Adds."""
        return inputs[0] + self.offset

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """The linear part is the identity."""
        return (rows,)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """The linear part is the identity."""
        return radii[0]

    def diagonal(self) -> bool:
        """Each element is shifted alone."""
        return True


@dataclass(frozen=True, eq=False)
class BatchNorm(Affine):
    """Batch normalisation with its running statistics: an affine map per channel (axis 1).

    Attributes:
        mean, variance: running statistics, [channels].
        weight, bias: [channels] or None.
        epsilon: added to the variance.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    epsilon: float

    def _factor(self, x: Tensor) -> Tensor:
        factor = torch.rsqrt(self.variance + self.epsilon)
        if self.weight is not None:
            factor = factor * self.weight
        return factor.reshape(-1, *(1,) * (x.dim() - 2))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the layer in evaluation mode."""
        return F.batch_norm(inputs[0], self.mean, self.variance, self.weight, self.bias, False, 0.0, self.epsilon)

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """Multiplies each channel by its factor."""
        return (rows * self._factor(rows),)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Multiplies each channel by the absolute value of its factor."""
        return radii[0] * self._factor(radii[0]).abs()

    def diagonal(self) -> bool:
        """Each element is mapped alone."""
        return True


@dataclass(frozen=True, eq=False)
class WeightedSum(Affine):
    """Sum of equally shaped inputs, each with a fixed factor: residual sums (1, 1) and differences (1, -1).

    Attributes:
        factors: one number per input.
    """

    factors: tuple[float, ...]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Adds up."""
        terms = [x if factor == 1 else x * factor for x, factor in zip(inputs, self.factors, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """Hands every input its share."""
        return tuple(rows if factor == 1 else rows * factor for factor in self.factors)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Adds up with the factors' absolute values."""
        return WeightedSum(tuple(abs(factor) for factor in self.factors)).forward(*radii)


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """Another shape for the same elements in the same order.

    Attributes:
        shape: the new shape, without the batch axis.
    """

    shape: tuple[int, ...]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Reshapes."""
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """Reshapes back."""
        return (rows.reshape(len(rows), *shapes[0]),)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """Reshapes."""
        return self.forward(*radii)

    def diagonal(self) -> bool:
        """Elements keep their order."""
        return True


@dataclass(frozen=True, eq=False)
class Structural(Affine):
    """An affine operator whose matrix has no negative entry.

    These are slice, transpose, concatenation, pad, mean, pooling and gather.

    Attributes:
        function: the operator as a function of its inputs, valid for any batch size.
        label: what it does, for people.
    """

    function: Callable[..., Tensor]
    label: str

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the function."""
        return self.function(*inputs)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """The linear part itself, since no entry is negative."""
        value = self.function(*radii)
        return value - self.function(*(radius.new_zeros((1, *radius.shape[1:])) for radius in radii))
