"""What a certified example is certified for: the arithmetic that its proof holds in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import torch

from ironbound.bounding import METHODS, Arithmetic, bounds_rounding
from ironbound.errors import InputError
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region

if TYPE_CHECKING:
    from ironbound.network import Network

RIGOROUS = frozenset({"sdp", "sdp-chord"})  # methods that pay for their own rounding (docs/sdp.md)
PROVED = {"real": "real arithmetic", "float32": "as executed in float32"}
UNROUNDED = {torch.float64: "float64, not outward rounded", torch.float32: "float32, not outward rounded"}
TOLERANCES = "solver tolerances"
CLAIMS = (*PROVED.values(), *UNROUNDED.values(), TOLERANCES)  # an example has the last that one of its classes has


def check_arithmetic(wanted: str | None, methods: Iterable[str], region: Region) -> None:
    """Refuses what could prove nothing about the network as executed in float32.

    Args:
        wanted: an arithmetic, as the user named it, or None.
        methods: the methods asked for.
        region: the inputs.

    Raises:
        InputError: it is not known, or inputs or methods do not bear it.
    """
    if wanted is not None and wanted not in get_args(Arithmetic):
        known = ", ".join(get_args(Arithmetic))
        raise InputError(f"arithmetic {wanted!r} is not known; choose one of {known}, or None (none).")
    if wanted != "float32":
        return
    if region.dtype != torch.float32:
        raise InputError(f"the network as executed in float32 reads float32 inputs, not {region.dtype}.")
    for method in methods:
        if not bounds_rounding(method):
            raise InputError(
                f"method {method!r} proves nothing about runs in float32; choose from {', '.join(METHODS)}."
            )


def proving(network: Network, method: str, wanted: Arithmetic | None) -> Network | None:
    """The network in float64, in which a method's margins are proofs; None where they are none.

    Args:
        network: the classifier.
        method: its name.
        wanted: what its margins shall be proofs for; None: they may stay as computed.

    Returns:
        The network itself, its float64 copy, or None.

    Raises:
        InputError: there is no float64 copy, and only that could prove what is wanted.
    """
    if method not in RIGOROUS and (wanted is None or not bounds_rounding(method)):
        return None
    exact = network if network.example.dtype == torch.float64 else network.double
    if exact is None and wanted == "float32":
        raise InputError("proofs about float32 runs need the network as a module that .double() can convert.")
    return exact


def rounding_of(method: str, wanted: Arithmetic | None) -> Arithmetic | None:
    """The `arithmetic` to ask a method of `proving` for: none where it pays for its rounding unasked."""
    return None if method in RIGOROUS else wanted


def unproved(method: str, dtype: torch.dtype) -> str:
    """What a margin above its guard holds for."""
    return TOLERANCES if method.partition(":")[0] == "milp" else UNROUNDED[dtype]


def outward(region: Region, dtype: torch.dtype = torch.float64) -> Region:
    """A region that holds the one meant: a float32 ε may have been rounded down from the number given."""
    if region.dtype == torch.float64 or isinstance(region, Box):
        return region.to(dtype)
    assert isinstance(region, LinfBall | L2Ball | L1Ball)
    above = torch.nextafter(region.eps, torch.full_like(region.eps, torch.inf))
    return type(region)(region.center.to(dtype), above.to(dtype), region.clip)
