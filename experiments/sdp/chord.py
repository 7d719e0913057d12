"""The certificate for each input by the slopes that its neurons can have there, on the released network.

Run: python -m experiments.sdp.chord --data-dir MNIST --weights FOLDER [--clip]
"""

from __future__ import annotations

import time

import torch

import ironbound as ib
from experiments.sdp.common import EPS, attained, differences, error, options, released, write
from ironbound.capture import capture
from ironbound.semidefinite.methods import sdp_chord
from ironbound.semidefinite.pairwise import sdp


def chord_margins(model: torch.nn.Module, region: ib.LinfBall, y: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Lower bounds of the wanted margins, bool [n, 10], the others minus infinity."""
    from ironbound.bounding.functionals import DenseRows

    example, other = torch.nonzero(wanted).T
    eye = torch.eye(10)
    rows = DenseRows(eye[y[example]] - eye[other], example)
    lower, _ = sdp_chord(capture(model, region.center[:1]), region, None).answer(rows, False)
    result = torch.full(wanted.shape, -torch.inf, dtype=torch.float64)
    return result.index_put((example, other), lower.double())


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    parser = options(__doc__ or "")
    parser.add_argument("--clip", action="store_true", help="valid pixels only: inputs stay in [0, 1]")
    chosen = parser.parse_args(argv)
    model, x, y = released(chosen)
    region = ib.LinfBall(x, EPS, (0.0, 1.0) if chosen.clip else None)
    with torch.no_grad():
        clean = differences(model.double()(x.double()), y)
    model.float()
    plain = clean - EPS * sdp(model, x[:1]).matrix()[y]
    wanted = ~(plain > 0) & (clean > 0).all(1, keepdim=True)
    start = time.process_time()
    margins = torch.maximum(plain, chord_margins(model, region, y, wanted))
    spent = time.process_time() - start
    least = attained(model, region, y, steps=20)
    results = {
        "per_cent_error": {"clean": error(clean), "sdp": error(plain), "sdp-chord": error(margins)},
        "pgd_every_class": error(least),
        "programs": int(wanted.sum()),
        "images": int(wanted.any(1).sum()),
        "process_seconds": round(spent, 1),
        "attack_beats_bound": int((least < torch.where(least.isfinite(), margins, 0)).sum()),
        "attacked_and_certified": int(((margins > 0).all(1) & ~(least > 0).all(1)).sum()),
    }
    threat = "valid pixels, [0, 1]" if chosen.clip else "any input in the ball"
    write("chord_clipped" if chosen.clip else "chord", {"threat": threat}, results, chosen)


if __name__ == "__main__":
    main()
