"""Where the functionals of a convolution's output read the maps below: a patch that moves with the output pixel."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from ironbound.guarding.layers import Convolution


@dataclass(frozen=True, eq=False)
class Patch:
    """The pixels of a map that an output pixel reads.

    Attributes:
        offsets: per axis, the pixels read, relative to the output pixel times the stride plus the shift.
        stride, shift: per axis.
        extents: of the map.
        outputs: extents of the map of output pixels.
    """

    offsets: tuple[np.ndarray, ...]
    stride: tuple[int, ...]
    shift: tuple[int, ...]
    extents: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, layer: Convolution) -> Patch:
        """The patches of a convolution's own output."""
        stride, padding, dilation, kernel = layer.options
        offsets = tuple(np.arange(k) * d for k, d in zip(kernel, dilation, strict=True))
        extents, outputs = layer.extents
        return cls(offsets, stride, tuple(-pad for pad in padding), extents, outputs)

    def __len__(self) -> int:
        return math.prod(len(line) for line in self.offsets)

    def fits(self) -> bool:
        """Whether a patch is smaller than the map."""
        return len(self) < math.prod(self.extents)

    def table(self) -> np.ndarray:
        """The pixels of each patch, int64 [output pixels, len(self)]; the number of pixels where it leaves the map."""
        number: np.ndarray = np.zeros((1, 1), np.int64)
        inside: np.ndarray = np.ones((1, 1), bool)
        axes = zip(self.offsets, self.stride, self.shift, self.extents, self.outputs, strict=True)
        for line, step, start, extent, count in axes:
            at = (np.arange(count)[:, None] * step + start + line)[:, None]
            shape = len(number) * count, number.shape[1] * len(line)
            number = (number[:, None, :, None] * extent + at).reshape(shape)
            inside = (inside[:, None, :, None] & (at >= 0) & (at < extent)).reshape(shape)
        return np.where(inside, number, math.prod(self.extents))

    def below(self, layer: Convolution) -> tuple[Patch, np.ndarray]:
        """The patches below one more convolution, and what meets in each of their pixels.

        Args:
            layer: the convolution whose output the patches lie on.

        Returns:
            Patches of its input; place in the patch * taps + tap of the products that meet, [most, pixels], with
            len(self) * taps where there are fewer.
        """
        stride, padding, dilation, kernel = layer.options
        reached = [
            {offset * s + tap * d for offset in line.tolist() for tap in range(k)}
            for line, s, d, k in zip(self.offsets, stride, dilation, kernel, strict=True)
        ]
        offsets = tuple(np.array(sorted(values)) for values in reached)
        steps = tuple(own * s for own, s in zip(self.stride, stride, strict=True))
        shift = tuple(own * s - pad for own, s, pad in zip(self.shift, stride, padding, strict=True))
        patch = Patch(offsets, steps, shift, layer.extents[0], self.outputs)
        places = {pixel: place for place, pixel in enumerate(itertools.product(*(line.tolist() for line in offsets)))}
        meeting: list[list[int]] = [[] for _ in places]
        pixels = itertools.product(*(line.tolist() for line in self.offsets))
        taps = list(itertools.product(*(range(k) for k in kernel)))
        for number, (pixel, tap) in enumerate(itertools.product(pixels, taps)):
            at = tuple(o * s + a * d for o, s, a, d in zip(pixel, stride, tap, dilation, strict=True))
            meeting[places[at]].append(number)
        most = max(len(found) for found in meeting)
        missing = len(self) * layer.taps
        return patch, np.array([found + [missing] * (most - len(found)) for found in meeting]).T
