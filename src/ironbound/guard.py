"""The run-time guard: predicts, and says which inputs cannot be adversarial (Wong & Kolter 2018, Corollary 2)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ironbound.cascade import certify_shard
from ironbound.cascade_types import Cascade
from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.guarding.deadline import Deadline
from ironbound.network import Network
from ironbound.regions import Region, ball

SAFE, FLAGGED = "cannot be adversarial", "flagged"
_CHUNK = 64  # inputs decided at a time
CALIBRATIONS = 3


@dataclass(frozen=True, eq=False)
class Guarded:
    """What the guard says of a batch.

    Attributes:
        logits: the network's outputs, [n, classes]; NaN where the input or an output is not finite.
        predictions: int64 [n]; -1 where there is none.
        safe: bool [n]: whether the input cannot be adversarial; all others are flagged.
        margins: float64 [n], the least proved lower bound of logit[prediction] - logit[k] within eps of the input;
            -inf where nothing was proved.
        reasons: why an input is flagged: "margin" (nothing better was proved), "not finite", "outside clip", or
            "out of time"; "" where it is safe.
    """

    logits: Tensor
    predictions: Tensor
    safe: Tensor
    margins: Tensor
    reasons: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def flagged(self) -> Tensor:
        """The inputs that may be adversarial, bool [n]."""
        return ~self.safe

    @property
    def answers(self) -> tuple[str, ...]:
        """For each input "cannot be adversarial" or "flagged"."""
        return tuple(SAFE if safe else FLAGGED for safe in self.safe.tolist())


class Guard:
    """Says of each input at run time whether it can be an adversarial example.

    An input z is passed only where a bound proves that every point within eps of z is classified as z is. Hence, if z
    is a perturbation x + delta, ||delta|| <= eps, of an x that the network classifies otherwise, z is always flagged:
    no false negatives. The converse does not hold: harmless inputs near a decision boundary are flagged too. Nothing is
    said of perturbations beyond eps, nor of inputs that the network gets wrong without any perturbation.

    Everything is computed in float64 where the network can be converted, on the network's own device; distances and
    classes are those of real arithmetic. The decision is that of `ironbound.certify`.

    Source: Wong & Kolter, "Provable defenses against adversarial examples" (ICML 2018), Corollary 2, equation (16).

    Args:
        model: a classifier in evaluation mode, or its graph.
        eps: radius in the units of the data, a number >= 0.
        norm: "linf", "l2" or "l1".
        clip: (low, high), the range of all proper inputs: what leaves it is flagged, and x is sought within it.
        methods: of `ironbound.margins`, from the cheapest; None: ("dual",), after "interval" where there is a budget.
        latency: seconds that a call may take, or None. Inputs that are not decided by then are flagged.
        shape: of one input. With it the network is captured, and methods are timed, before the first call.

    Raises:
        InputError: arguments do not fit.
        CaptureError: the network cannot be captured.
    """

    def __init__(
        self,
        model: nn.Module | Graph,
        eps: float,
        norm: str = "linf",
        *,
        clip: Sequence[float] | None = None,
        methods: Sequence[str] | None = None,
        latency: float | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
            raise InputError(f"eps must be one number >= 0 in the units of the data, got {eps!r}")
        if latency is not None and not 0 < latency < math.inf:
            raise InputError(f"latency must be a number of seconds above 0, or None, got {latency!r}")
        self.model, self.eps, self.norm, self.latency = model, float(eps), norm, latency
        self.clip = None if clip is None else (float(clip[0]), float(clip[-1]))
        self.methods = (("dual",) if latency is None else ("interval", "dual")) if methods is None else tuple(methods)
        tensors = model.parameters() if isinstance(model, Graph) else [*model.parameters(), *model.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
        self._dtype, self._device = like.dtype, like.device
        self._network: Network | None = None
        self._deadline = Deadline(latency)
        shape = model.input_shape if isinstance(model, Graph) else shape
        self._shape = None if shape is None else tuple(int(extent) for extent in shape)
        middle = torch.full((1, 1), 0.0 if self.clip is None else self.clip[0])
        ball(norm, middle, self.eps, self.clip)  # refuses what no region can be
        if self._shape is not None:
            self._prepare(self._shape)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Guarded:
        """Predicts, and decides which inputs cannot be adversarial.

        Args:
            x: [n, *shape], n may be 0; the network's dtype and device.

        Returns:
            Predictions, decisions and margins.

        Raises:
            InputError: x is no batch of the network's shape, dtype and device.
        """
        start = time.perf_counter()
        self._check(x)
        network = self._prepare(tuple(x.shape[1:]))
        points = x.to(network.example.dtype)
        finite = torch.isfinite(points).flatten(1).all(1)
        logits = self._logits(network, points, finite)
        known = finite & torch.isfinite(logits).all(1)
        proper = known & self._within(points)
        predictions = torch.where(known, logits.argmax(1) if len(x) else known.long(), -1)
        margins = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        safe = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        late = self._decide(network, points, proper, start, margins, safe)
        reasons = ["" if passed else "margin" for passed in safe.tolist()]
        causes = (("out of time", late & ~safe), ("outside clip", known & ~proper), ("not finite", ~known))
        for why, where in causes:
            for place in where.nonzero()[:, 0].tolist():
                reasons[place] = why
        return Guarded(logits.to(x.dtype), predictions, safe, margins, tuple(reasons))

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Writes the guard as an ONNX program: x [n, *shape] to logits [n, classes] and margin [n], in float64.

        margin > 0 says "cannot be adversarial"; the file's metadata says what that means. The bound is that of the
        method "dual", with its rounding subtracted.

        Args:
            path: of the file.

        Returns:
            The path.

        Raises:
            InputError: no shape is known yet, or the query is not exported (a clip with l2 or l1).
            UnsupportedOperatorError: a layer is not exported; the message names it.
            WeightsError: the file cannot be written.
        """
        from ironbound.certificate.network_file import network_arrays
        from ironbound.guarding.exporting import Promise, write_guard

        if self._shape is None:
            raise InputError("the guard does not know the shape of its inputs yet: give shape=, or call it once")
        example = torch.zeros((2, *self._shape), dtype=self._dtype, device=self._device)
        promise = Promise(self.norm, self.eps, self.clip)
        return write_guard(network_arrays(self.model, example), promise, path, str(self._dtype).removeprefix("torch."))

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dim() < 2:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"the guard reads a batch of inputs, a tensor [n, *shape], got {found}")
        if x.dtype != self._dtype:
            raise InputError(f"the guard reads {self._dtype}, got {x.dtype}; convert the inputs")
        if x.device != self._device:
            raise InputError(
                f"the guard's network is on {self._device}, the inputs are on {x.device}; move one of them"
            )
        if self._shape is not None and tuple(x.shape[1:]) != self._shape:
            raise InputError(f"the guard reads inputs of shape {list(self._shape)}, got {list(x.shape[1:])}")

    def _prepare(self, shape: tuple[int, ...]) -> Network:
        """Captures the network, in float64 where it can be converted, and times the methods where there is a budget."""
        if self._network is None:
            example = torch.full((1, *shape), 0.0 if self.clip is None else self.clip[0])
            example = example.to(self._device, self._dtype)
            network = Network(self.model, example)
            network = (None if self._dtype == torch.float64 else network.double) or network
            _ = network.graph  # says why, where the network cannot be captured
            logits = self._run(network, network.example)
            if logits.dim() != 2 or logits.shape[1] < 2:
                raise InputError(
                    f"a classifier is needed, with outputs [n, 2 or more classes], not {list(logits.shape)}"
                )
            for method in self.methods:
                runs = CALIBRATIONS if self.latency is not None else 1  # an unknown method is refused here
                for _ in range(runs):
                    self._deadline.timed(method, 1, lambda m=method: self._proved(network, network.example, m))
            self._network, self._shape = network, shape
        return self._network

    @staticmethod
    def _run(network: Network, points: Tensor) -> Tensor:
        try:
            return network.logits(points)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            found = f"{points.dtype} {list(points.shape)}"
            raise InputError(f"the network cannot read inputs of {found}: {str(error).splitlines()[0]}") from error

    def _logits(self, network: Network, points: Tensor, finite: Tensor) -> Tensor:
        """The outputs [n, classes] for finite inputs, NaN for the others."""
        if not len(points):
            return self._run(network, network.example)[:0]
        run = self._run(network, torch.where(finite.reshape(-1, *(1,) * (points.dim() - 1)), points, 0.0))
        return torch.where(finite[:, None], run, math.nan)

    def _within(self, points: Tensor) -> Tensor:
        low, high = (-math.inf, math.inf) if self.clip is None else self.clip
        return ((points >= low) & (points <= high)).flatten(1).all(1)

    def _decide(
        self, network: Network, points: Tensor, proper: Tensor, start: float, margins: Tensor, safe: Tensor
    ) -> Tensor:
        """Writes margins and decisions method by method; returns which inputs were not decided in time, bool [n]."""
        late = torch.zeros_like(safe)
        for method in self.methods:
            open_inputs = (proper & ~safe).nonzero()[:, 0]
            late.zero_()
            while len(open_inputs):
                size = self._deadline.affordable(method, start, _CHUNK)
                if not size:
                    late[open_inputs] = True
                    break
                index, open_inputs = open_inputs[:size], open_inputs[size:]
                part = points[index]
                proved, least = self._deadline.timed(
                    method, len(index), lambda p=part, m=method: self._proved(network, p, m)
                )
                safe[index] = proved
                margins[index] = torch.fmax(margins[index], least)
        return late

    def _proved(self, network: Network, points: Tensor, method: str) -> tuple[Tensor, Tensor]:
        """The decision: which predictions `certify` would certify, and the least margin of each, float64."""
        found = certify_shard(network, self._region(points), None, Cascade((method,), budget=self.latency))
        own = torch.nn.functional.one_hot(found.labels, found.margins.shape[1]).bool()
        least = found.margins.masked_fill(own, math.inf).nan_to_num(nan=-math.inf).amin(1)
        proved = torch.tensor([status == "certified" for status in found.status])
        return proved.to(points.device), least.to(points.device)

    def _region(self, points: Tensor) -> Region:
        return ball(self.norm, points, self.eps, self.clip)
