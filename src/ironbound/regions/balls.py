"""Norm balls around each example, possibly clipped to the range of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ironbound.errors import InputError
from ironbound.regions.checks import Radius, check_clip, check_finite, radius_of
from ironbound.regions.region import Region, Set


def _flat_norm(x: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), order, dim=1).reshape(-1, *(1,) * (x.dim() - 1))


class _Ball(Region):
    """A norm ball with a radius per example or per element, possibly clipped to a range."""

    dual: float

    def __init__(self, x: Tensor, eps: Radius, clip: Sequence[float] | None = None) -> None:
        check_finite("x", x)
        self.eps = radius_of(eps, x)
        super().__init__(x, check_clip(clip, x))

    def box(self) -> tuple[Tensor, Tensor]:
        """Center minus and plus ε, clipped."""
        lower, upper = self.center - self.eps, self.center + self.eps
        if self.clip is not None:
            lower, upper = lower.clamp(min=self.clip[0]), upper.clamp(max=self.clip[1])
        return lower, upper

    def sets(self) -> tuple[Set, ...]:
        """The ball and, where it is clipped, the box around it."""
        ball = Set(self.dual, self.eps)
        if self.clip is None:
            return (ball,)
        lower, upper = self.box()
        middle = (lower + upper) / 2
        return ball, Set(1, torch.maximum(upper - middle, middle - lower), middle - self.center)

    def __getitem__(self, index: slice | Tensor) -> Region:
        eps = self.eps[index] if len(self.eps) == len(self.center) and len(self.eps) > 1 else self.eps
        return type(self)(self.center[index], eps, self.clip)

    def to(self, *args: Any, **kwargs: Any) -> Region:
        """The same ball in another dtype or on another device."""
        return type(self)(self.center.to(*args, **kwargs), self.eps.to(*args, **kwargs), self.clip)

    def contains(self, points: Tensor) -> Tensor:
        """Norm of the scaled difference at most 1 (relative 1e-6), within the clipping range; ε = 0: equality."""
        delta = (points.double() - self.center.double()).flatten(1)
        eps = self.eps.double().expand(self.center.shape).flatten(1)
        still = ((eps > 0) | (delta == 0)).all(1)
        scaled = torch.where(eps > 0, delta / torch.where(eps > 0, eps, 1.0), 0.0)
        order = {2: 2.0, float("inf"): 1.0}[self.dual]
        inside = torch.linalg.vector_norm(scaled, order, dim=1) <= 1 + 1e-6
        return inside & still & self._in_clip(points)

    def _in_clip(self, points: Tensor) -> Tensor:
        if self.clip is None:
            return torch.ones(len(points), dtype=torch.bool, device=points.device)
        return ((points >= self.clip[0]) & (points <= self.clip[1])).flatten(1).all(1)

    def _clamp(self, points: Tensor) -> Tensor:
        return points if self.clip is None else points.clamp(*self.clip)

    def _scaled(self, points: Tensor) -> Tensor:
        """The difference of the clamped points from the center in units of ε, float64; 0 where ε is 0."""
        delta = self._clamp(points).double() - self.center.double()
        eps = self.eps.double()
        return torch.where(eps > 0, delta / torch.where(eps > 0, eps, 1.0), 0.0)

    def _place(self, scaled: Tensor) -> Tensor:
        """The point at a scaled difference (float64) in the data's dtype, each element rounded towards the center."""
        # Rounding to nearest may leave the ball: near 1 a float32 is off by 3e-8, which is 3e-5 of a radius of 0.001.
        delta = scaled * self.eps.double()
        points = (self.center.double() + delta).to(self.dtype)
        outside = (points.double() - self.center.double()).abs() > delta.abs()
        return self._clamp(torch.where(outside, torch.nextafter(points, self.center), points))

    def describe(self) -> dict[str, Any]:
        """Norm, ε (one number, or its range), clipping and unit."""
        low, high = self.eps.min().item(), self.eps.max().item()
        return {
            "norm": self.norm,
            "eps": low if low == high else [low, high],
            "clip": list(self.clip) if self.clip else None,
            "unit": "as the data is loaded",
        }


class LinfBall(_Ball):
    """All x' with |x'_i - x_i| <= ε_i for every element, within `clip` (exactly: the region is a box).

    Args:
        x: [batch, *shape], finite, floating point.
        eps: a number, one per example [batch] or one per element [batch, *shape]; in the units of x.
        clip: (low, high) that every element is limited to, or None.

    Raises:
        InputError: x, eps or clip do not fit.
    """

    norm = "linf"
    dual = 1

    def sets(self) -> tuple[Set, ...]:
        """One box; its middle differs from x where it is clipped."""
        if self.clip is None:
            return (Set(1, self.eps),)
        return (super().sets()[1],)

    def project(self, points: Tensor) -> Tensor:
        """Clamps every element."""
        lower, upper = self.box()
        return torch.minimum(torch.maximum(points, lower), upper)

    def contains(self, points: Tensor) -> Tensor:
        """Every element between the ends of the box as computed in the data's dtype."""
        lower, upper = self.box()
        return ((points >= lower) & (points <= upper)).flatten(1).all(1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Uniform."""
        lower, upper = self.box()
        share = torch.rand(self.center.shape, generator=generator, dtype=self.dtype, device=self.center.device)
        return self.project(lower + share * (upper - lower))

    def ascent(self, gradient: Tensor, step: float) -> Tensor:
        """Sign of the gradient (FGSM's direction)."""
        return step * self.eps * gradient.sign()


class L2Ball(_Ball):
    """All x' with ||(x' - x) / ε||_2 <= 1, within `clip` (soundly: a bound uses the better of ball and clipped box).

    Args and errors as for `LinfBall`; an ε per element makes an ellipsoid.
    """

    norm = "l2"
    dual = 2

    def project(self, points: Tensor) -> Tensor:
        """Scales the difference back (in clipped regions: clamps, then scales, which stays inside both)."""
        scaled = self._scaled(points)
        return self._place(scaled / _flat_norm(scaled, 2).clamp(min=1))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in the ball, then projected into the clipping range."""
        direction = torch.randn(self.center.shape, generator=generator, dtype=self.dtype, device=self.center.device)
        share = torch.rand(len(self), generator=generator, dtype=self.dtype, device=self.center.device)
        length = share.reshape(-1, *(1,) * (direction.dim() - 1)) ** (1 / max(1, direction[0].numel()))
        return self.project(self.center + direction / _flat_norm(direction, 2).clamp(min=1e-12) * length * self.eps)

    def ascent(self, gradient: Tensor, step: float) -> Tensor:
        """The scaled gradient, normalised."""
        scaled = gradient * self.eps
        # squares of 1e-23 vanish
        scaled = scaled / _flat_norm(scaled, float("inf")).clamp(min=torch.finfo(scaled.dtype).tiny)
        return step * scaled / _flat_norm(scaled, 2).clamp(min=torch.finfo(scaled.dtype).tiny) * self.eps


class L1Ball(_Ball):
    """All x' with ||(x' - x) / ε||_1 <= 1, within `clip` (soundly: a bound uses the better of ball and clipped box).

    Args and errors as for `LinfBall`.
    """

    norm = "l1"
    dual = float("inf")

    def project(self, points: Tensor) -> Tensor:
        """Nearest point of the (scaled) l1 ball by soft thresholding (Duchi et al. 2008), after clamping to `clip`."""
        scaled = self._scaled(points)
        magnitude = scaled.abs().flatten(1)
        ordered = magnitude.sort(1, descending=True).values
        excess = ordered.cumsum(1) - 1
        count = torch.arange(1, magnitude.shape[1] + 1, device=points.device, dtype=scaled.dtype)
        support = (ordered * count > excess).sum(1, keepdim=True).clamp(min=1)
        threshold = (excess.gather(1, support - 1) / support).clamp(min=0).reshape(-1, *(1,) * (points.dim() - 1))
        shrunk = scaled.sign() * (scaled.abs() - threshold).clamp(min=0)
        inside = _flat_norm(scaled, 1) <= 1
        return self._place(torch.where(inside, scaled, shrunk))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in the ball (exponential spacings), then projected into the clipping range."""
        size = self.center[0].numel()
        shares = -torch.log(
            torch.rand((len(self), size + 1), generator=generator, dtype=self.dtype, device=self.center.device).clamp(
                min=1e-30
            )
        )
        shares = (shares / shares.sum(1, keepdim=True))[:, :size].reshape(self.center.shape)
        signs = torch.randint(0, 2, self.center.shape, generator=generator, device=self.center.device) * 2 - 1
        return self.project(self.center + shares * signs * self.eps)

    def ascent(self, gradient: Tensor, step: float) -> Tensor:
        """The whole step on the elements with (nearly) the largest scaled gradient, shared equally among them."""
        scaled = (gradient * self.eps).abs()
        top = scaled >= 0.9 * scaled.flatten(1).amax(1).reshape(-1, *(1,) * (gradient.dim() - 1))
        top = top & (scaled > 0)
        share = top / top.flatten(1).sum(1).clamp(min=1).reshape(-1, *(1,) * (gradient.dim() - 1))
        return step * share * gradient.sign() * self.eps


REGIONS: dict[str, type[LinfBall] | type[L2Ball] | type[L1Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}


def ball(norm: str, x: Tensor, eps: Radius, clip: Sequence[float] | None = None) -> Region:
    """The ball of a norm given by name: "linf", "l2" or "l1".

    Args:
        norm: the name.
        x: centers [batch, *shape].
        eps: radius, as for `LinfBall`.
        clip: range of the elements, as for `LinfBall`.

    Returns:
        The region.

    Raises:
        InputError: no such norm, or the arguments do not fit.
    """
    if norm not in REGIONS:
        raise InputError(f"norm {norm!r} is not known; choose one of {', '.join(REGIONS)}")
    return REGIONS[norm](x, eps, clip)
