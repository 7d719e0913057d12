"""The released network of Raghunathan et al. (2018): its certificate, time and gap, and every bound's certified error.

Run: python -m experiments.sdp.released --data-dir MNIST --weights FOLDER
"""

from __future__ import annotations

import time
from typing import Any

import torch

import ironbound as ib
from experiments.sdp.common import EPS, attained, differences, error, options, released, write
from ironbound.capture import capture
from ironbound.semidefinite.pairwise import SdpCertificate, sdp

GAPS = (2e-3, 1e-4)


def certificates(model: torch.nn.Module, x: torch.Tensor) -> tuple[SdpCertificate, list[dict[str, Any]]]:
    """All pairs of classes to each gap; the last certificate, and times."""
    graph = capture(model, x[:1])
    rows, found = [], None
    for gap in GAPS:
        start = time.process_time()
        found = sdp(graph, gap=gap)
        spent = time.process_time() - start
        rows.append(
            {
                "asked_gap": gap,
                "largest_gap": float(f"{found.gap.max():.3g}"),
                "mean_primal": round(found.primal.mean().item(), 6),
                "mean_dual": round(found.dual.mean().item(), 6),
                "certified": int(torch.isfinite(found.dual).sum()),
                "primal_above_dual": int((found.primal > found.dual).sum()),
                "process_seconds": round(spent, 2),
            }
        )
    assert found is not None
    return found, rows


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    chosen = options(__doc__ or "").parse_args(argv)
    model, x, y = released(chosen)
    certificate, rows = certificates(model, x)
    with torch.no_grad():
        clean = differences(model.double()(x.double()), y)
    model.float()
    bounds = {name: clean - EPS * certificate.matrix(name)[y] for name in ("dual", "primal", "spectral", "frobenius")}
    start = time.process_time()
    with torch.no_grad():
        polytope = ib.margins(model, ib.LinfBall(x, EPS), y, "dual").double()
    polytope = polytope.scatter(1, y[:, None], torch.inf)
    spent = round(time.process_time() - start, 1)
    balls = {"pgd, 5 restarts": None, "pgd, 5 restarts, valid pixels": (0.0, 1.0)}
    attacks = {f"fgsm{name[15:]}": ib.fgsm(model, ib.LinfBall(x, EPS, clip), y).success for name, clip in balls.items()}
    attacks |= {name: ib.pgd(model, ib.LinfBall(x, EPS, clip), y, restarts=5).success for name, clip in balls.items()}
    least = attained(model, ib.LinfBall(x, EPS), y, steps=20)
    results = {
        "all_pairs": rows,
        "per_cent_error": {
            "clean": error(clean),
            **{name: round(100 * success.double().mean().item(), 2) for name, success in attacks.items()},
            "pgd, every class": error(least),
            "sdp": error(bounds["dual"]),
            "sdp's primal value (no bound)": error(bounds["primal"]),
            "spectral": error(bounds["spectral"]),
            "frobenius": error(bounds["frobenius"]),
            "wong_kolter (method dual)": error(polytope),
        },
        "attack_beats_bound": int((least < torch.where(least.isfinite(), bounds["dual"], 0)).sum()),
        "attacked": [len(y), 9],
        "dual_process_seconds": spent,
    }
    write("released", {"threat": "any input in the ball", "pgd": "40 steps; every class: 20 steps"}, results, chosen)


if __name__ == "__main__":
    main()
