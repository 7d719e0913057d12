"""The only way to a refutation: the network itself is run on the point, alone, and by onnxruntime for ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.spec import Case, Property

Run = Callable[[np.ndarray], np.ndarray]


class Recheck:
    """Decides whether points are counterexamples, and keeps the first that is.

    Args:
        model: the network.
        prop: the property.
        shape: of an input example.
        dtype: that the network computes in.
        path: its ONNX file, or None.
    """

    def __init__(
        self, model: nn.Module, prop: Property, shape: tuple[int, ...], dtype: torch.dtype, path: Path | None
    ) -> None:
        self._model, self._prop, self._shape, self._dtype, self._path = model, prop, shape, dtype, path
        self._other: Run | None = None
        self._opened = False
        self.found: tuple[Tensor, Tensor] | None = None
        self.denied = 0
        self.checked_by: tuple[str, ...] = ("torch",)

    def __call__(self, point: Tensor) -> bool:
        """Moves a point [1, *shape] into the nearest case's box and runs the network on it.

        Args:
            point: in any dtype.

        Returns:
            Whether the moved point, kept in `found` with its output, is a counterexample.
        """
        flat = point.detach().double().cpu().numpy().reshape(-1)
        cases = [case for case in self._prop.cases if not case.empty]
        case = min(cases, key=lambda one: float(np.abs(np.clip(flat, one.lower, one.upper) - flat).max()))
        exact = inside(flat, case, self._dtype)
        read = torch.from_numpy(exact).to(self._dtype).reshape(1, *self._shape)
        with torch.no_grad():
            y = self._model(read)
        if not self._prop.counterexample(exact[None], y)[0] or not self._confirmed(read, exact):
            self.denied += 1
            return False
        representable = torch.equal(read.double().reshape(-1), torch.from_numpy(exact))
        self.found = (read if representable else torch.from_numpy(exact).reshape(read.shape), y)
        return True

    def _confirmed(self, read: Tensor, exact: np.ndarray) -> bool:
        """Whether onnxruntime says so too, where it is there."""
        if not self._opened:
            self._opened = True
            self._other = None if self._path is None else onnx_runner(self._path)
        if self._other is None:
            return True
        self.checked_by = ("torch", "onnxruntime")
        y = self._other(read.numpy())
        return bool(self._prop.counterexample(exact[None], y.reshape(1, -1))[0])


def inside(point: np.ndarray, case: Case, dtype: torch.dtype) -> np.ndarray:
    """The nearest point of a box that a network of some dtype can read exactly.

    Args:
        point: [inputs], float64.
        case: its box is not empty.
        dtype: of the network's input.

    Returns:
        [inputs], float64, inside the box. An element whose ends have no number of the dtype between them keeps a
        float64 number; the network then reads it rounded.
    """
    clipped = np.clip(point, case.lower, case.upper)
    if dtype == torch.float64:
        return clipped
    near = torch.from_numpy(clipped).to(dtype)
    toward = torch.where(near.double() > torch.from_numpy(clipped), -torch.inf, torch.inf).to(dtype)
    result = clipped
    for candidate in (torch.nextafter(near, toward), near):  # the nearer one is preferred
        value = candidate.double().numpy()
        result = np.where((value >= case.lower) & (value <= case.upper), value, result)
    return result


def onnx_runner(path: Path) -> Run | None:
    """Opens a file with onnxruntime.

    Args:
        path: of the ONNX file, also compressed by gzip.

    Returns:
        A function from an input to the output, or None where onnxruntime is not installed or refuses the file.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    from ironbound.data.files import read

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(read(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # its errors have no common type; the verdict then names torch alone
        return None
    source: Any = session.get_inputs()[0]
    shape = [extent if isinstance(extent, int) else 1 for extent in source.shape]
    dtype = np.float64 if source.type == "tensor(double)" else np.float32

    def run(x: np.ndarray) -> np.ndarray:
        feed = x.astype(dtype).reshape(shape if np.prod(shape) == x.size else x.shape)
        return np.asarray(session.run(None, {source.name: feed})[0])

    return run
