"""The sorted figure of certified radii: Wong & Kolter (2018), ICML, figure 5, with what an attack finds beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from ironbound.radius_result import Radius

_BINS = 100


def draw_radius(result: Radius, truth: Tensor, path: Path, title: str | None = None) -> None:
    """Draws certified ε in increasing order; the colour is the share of correct answers nearby, as in the paper.

    Args:
        result: the radii.
        truth: the true labels [n], which predictions may have replaced in the result.
        path: of the image file to write.
        title: above the picture; None: the network and the method.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib cannot write files of this ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = np.lexsort((result.attacked.numpy(), result.certified.numpy()))
    certified, attacked = result.certified.numpy()[order], result.attacked.numpy()[order]
    correct = (result.predictions == truth).numpy()[order]
    rank = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    shown = np.isfinite(attacked)
    if result.settings.get("attack") is not None:
        axis.scatter(rank[shown], attacked[shown], s=3, color="#c8553d", alpha=0.35, linewidths=0, zorder=1)
        axis.plot([], [], ".", color="#c8553d", label="attacked: another answer at this distance")
    share = _nearby(correct, max(1, len(order) // _BINS))
    points = axis.scatter(rank, certified, c=share, cmap="viridis_r", vmin=0, vmax=1, s=7, linewidths=0, zorder=2)
    axis.plot([], [], ".", color="#440154", label="certified: no other answer within")
    figure.colorbar(points, ax=axis, label="share of correct answers nearby")
    axis.set_xlim(0, len(order) + 1)
    top = attacked[shown] if shown.any() else certified
    axis.set_ylim(0, 1.05 * float(np.quantile(np.concatenate([top, certified]), 0.995)) or 1.0)
    axis.set_xlabel("examples, in increasing order of the certified radius")
    axis.set_ylabel(f"ε, norm {result.settings.get('norm', '')}")
    axis.set_title(title or f"{result.settings.get('network', '')}  ({result.settings.get('method', '')})", fontsize=9)
    axis.legend(loc="upper left", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _nearby(correct: np.ndarray, width: int) -> np.ndarray:
    """The mean of each window of 2 width + 1 neighbours, cut at the ends."""
    total = np.concatenate([[0], np.cumsum(correct)])
    at = np.arange(len(correct))
    first, last = np.maximum(at - width, 0), np.minimum(at + width + 1, len(correct))
    return (total[last] - total[first]) / (last - first)
