"""Ironbound: networks that provably cannot be fooled, and proofs for those you already have.

Names load on first use, so that `ironbound --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "AlphaMargins": "bounding.alpha_slopes",
    "Ascent": "bounding.alpha_dual",
    "AttackOptions": "cascade",
    "Bounds": "bounding",
    "Box": "regions",
    "Certification": "certification",
    "Estimate": "bounding.projection",
    "Graph": "graph",
    "Guard": "guard",
    "L1Ball": "regions",
    "L2Ball": "regions",
    "LinfBall": "regions",
    "MinimalPerturbation": "exact.smallest",
    "OptimalPerturbation": "bounding.perturbation",
    "Proved": "verdicts",
    "Radius": "radius_result",
    "Refuted": "verdicts",
    "RelaxedOptimum": "exact.linear",
    "SdpCertificate": "semidefinite.pairwise",
    "Slopes": "bounding.alpha_slopes",
    "Unknown": "verdicts",
    "alpha_margins": "bounding.alpha_slopes",
    "bounds": "bounding",
    "carlini_wagner": "attacks",
    "certify": "certification",
    "estimate_margins": "bounding.projection",
    "fgsm": "attacks",
    "load": "capture.onnx",
    "margins": "bounding",
    "minimal_perturbation": "exact.smallest",
    "optimal_perturbation": "bounding.perturbation",
    "pgd": "attacks",
    "radius": "certified_radius",
    "relaxed_optimum": "exact.linear",
    "save_onnx": "capture.onnx",
    "sdp": "semidefinite.pairwise",
    "verify": "verification",
    "write_certificates": "certificate.writing",
}
_MODULES = ("attacks", "data", "errors", "models", "spec", "training")

__all__ = [  # written out for type checkers; a test compares it with the tables above
    "AlphaMargins",
    "Ascent",
    "AttackOptions",
    "Bounds",
    "Box",
    "Certification",
    "Estimate",
    "Graph",
    "Guard",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "MinimalPerturbation",
    "OptimalPerturbation",
    "Proved",
    "Radius",
    "Refuted",
    "RelaxedOptimum",
    "SdpCertificate",
    "Slopes",
    "Unknown",
    "__version__",
    "alpha_margins",
    "attacks",
    "bounds",
    "carlini_wagner",
    "certify",
    "data",
    "errors",
    "estimate_margins",
    "fgsm",
    "load",
    "margins",
    "minimal_perturbation",
    "models",
    "optimal_perturbation",
    "pgd",
    "radius",
    "relaxed_optimum",
    "save_onnx",
    "sdp",
    "spec",
    "training",
    "verify",
    "write_certificates",
]

if TYPE_CHECKING:
    from ironbound import attacks, data, errors, models, spec, training
    from ironbound.attacks import carlini_wagner, fgsm, pgd
    from ironbound.bounding import Bounds, bounds, margins
    from ironbound.bounding.alpha_dual import Ascent
    from ironbound.bounding.alpha_slopes import AlphaMargins, Slopes, alpha_margins
    from ironbound.bounding.perturbation import OptimalPerturbation, optimal_perturbation
    from ironbound.bounding.projection import Estimate, estimate_margins
    from ironbound.capture.onnx import load, save_onnx
    from ironbound.cascade_types import AttackOptions
    from ironbound.certificate.writing import write_certificates
    from ironbound.certification import Certification, certify
    from ironbound.certified_radius import radius
    from ironbound.exact.linear import RelaxedOptimum, relaxed_optimum
    from ironbound.exact.smallest import MinimalPerturbation, minimal_perturbation
    from ironbound.graph import Graph
    from ironbound.guard import Guard
    from ironbound.radius_result import Radius
    from ironbound.regions import Box, L1Ball, L2Ball, LinfBall
    from ironbound.semidefinite.pairwise import SdpCertificate, sdp
    from ironbound.verdicts import Proved, Refuted, Unknown
    from ironbound.verification import verify


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(import_module(f"ironbound.{_PLACES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"ironbound.{name}")
    else:
        raise AttributeError(f"module 'ironbound' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
