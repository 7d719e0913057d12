"""What a certified example is certified for: the arithmetic that its proof holds in."""

from __future__ import annotations

import torch

from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region

RIGOROUS = frozenset({"sdp", "sdp-chord"})  # methods that pay for their own rounding (docs/sdp.md)
PROVED = {"real": "real arithmetic", "float32": "as executed in float32"}
UNROUNDED = {torch.float64: "float64, not outward rounded", torch.float32: "float32, not outward rounded"}
TOLERANCES = "solver tolerances"
CLAIMS = (*PROVED.values(), *UNROUNDED.values(), TOLERANCES)  # an example has the last that one of its classes has


def outward(region: Region, dtype: torch.dtype = torch.float64) -> Region:
    """A region that holds the one meant: a float32 ε may have been rounded down from the number given."""
    if region.dtype == torch.float64 or isinstance(region, Box):
        return region.to(dtype)
    assert isinstance(region, LinfBall | L2Ball | L1Ball)
    above = torch.nextafter(region.eps, torch.full_like(region.eps, torch.inf))
    return type(region)(region.center.to(dtype), above.to(dtype), region.clip)
