"""One node of an ONNX file as a module: the constants it reads are its parameters and buffers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ironbound.capture.onnx.operation import Function
from ironbound.capture.record import straight_line


@straight_line
class Step(nn.Module):
    """A function of values of the network and of constants.

    Args:
        function: returns one tensor, or a tuple of them.
        results: name of each result; an empty one is not kept.
    """

    def __init__(self, function: Function, results: Sequence[str]) -> None:
        super().__init__()
        self._function = function
        self._results = tuple(results)
        self._reads: list[tuple[bool, str]] = []

    def read(self, value: str) -> None:
        """Adds an argument: a value of the network by its name."""
        self._reads.append((True, value))

    def hold(self, name: str, tensor: Tensor) -> None:
        """Adds an argument: a constant, under this name or, where it is taken, one like it."""
        base, count = name, 2
        while name in self._parameters or name in self._buffers:
            name, count = f"{base}{count}", count + 1
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)
        self._reads.append((False, name))

    def sources(self) -> list[str]:
        """Names of the values that it reads."""
        return [name for dynamic, name in self._reads if dynamic]

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes the results by name.

        Args:
            values: by name, each [batch, *shape].

        Returns:
            The results that have a name.
        """
        arguments = [values[name] if dynamic else getattr(self, name) for dynamic, name in self._reads]
        found = self._function(*arguments)
        found = found if isinstance(found, tuple) else (found,)
        return {name: value for name, value in zip(self._results, found, strict=False) if name}
