"""Figures 2, 3 and 4 and table 1 of Raghunathan et al. (2018) from the records of `networks.py`.

Run: python -m experiments.sdp.figures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.sdp.common import HERE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIVE = {"nt": "NT-NN", "fro": "Fro-NN", "spe": "Spe-NN", "at": "AT-NN", "sdp": "SDP-NN"}
COLORS = {"nt": "#7a7a7a", "fro": "#c8953d", "spe": "#5b8c5a", "at": "#8a5fa8", "sdp": "#2b6f9e"}
BOUNDS = {
    "frobenius": ("Frobenius bound (18)", "#c8953d"),
    "spectral": ("spectral bound (17)", "#5b8c5a"),
    "dual": ("SDP bound (11)", "#2b6f9e"),
}
ATTACK = "#c8553d"
PGD = "pgd, 5 restarts"
PAPER = {"sdp": (15, 35, 99), "lp": (22, 93, 26)}  # table 1: PGD, SDP bound, LP bound

Record = dict[str, Any]


def read(folder: Path, name: str, seed: int = 0) -> Record:
    """The results of a network."""
    return json.loads((folder / f"network_{name}_{seed}.json").read_text(encoding="utf-8"))["results"]


def bounds(record: Record) -> dict[str, list[float]]:
    """Certified errors over ε, of the images that were attacked."""
    return record["attacked"]["curves"]


def attacked(record: Record, attack: str = PGD) -> tuple[list[float], list[float]]:
    """ε and error of an attack, the clean error of the same images at 0."""
    return [0.0, *record["attacked"]["eps"]], [bounds(record)["dual"][0], *record["attacked"][attack]]


def axes(panel: Axes, title: str) -> None:
    """What all panels share."""
    panel.set_title(title, fontsize=10)
    panel.set_ylim(0, 102)
    panel.set_xlim(0, 0.102)
    panel.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def figure2(records: dict[str, Record]) -> Figure:
    """All bounds of the five networks."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 5, figsize=(14, 3.2), sharey=True, layout="constrained")
    for panel, (name, title) in zip(panels, FIVE.items(), strict=True):
        curves = bounds(records[name])
        for bound, (label, color) in BOUNDS.items():
            panel.plot(curves["eps"], curves[bound], color=color, label=label)
        panel.plot(*attacked(records[name]), "o--", color=ATTACK, markersize=3, label="PGD, 5 restarts (lower bound)")
        axes(panel, title)
        panel.set_xlabel("ε")
    panels[0].set_ylabel("error in %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def figure3(records: dict[str, Record]) -> Figure:
    """(a) the best bound and PGD of the five networks; (b) three attacks on SDP-NN."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
    for name, title in FIVE.items():
        curves = bounds(records[name])
        left.plot(curves["eps"], curves["dual"], color=COLORS[name], label=title)
        left.plot(*attacked(records[name]), "o--", color=COLORS[name], markersize=3)
    axes(left, "(a) SDP bound (solid) and PGD (dashed)")
    left.legend(frameon=False, fontsize=8)
    styles = {
        PGD: ("PGD, 5 restarts", ATTACK),
        "carlini_wagner": ("Carlini–Wagner", "#8a5fa8"),
        "fgsm": ("FGSM", "#5b8c5a"),
    }
    sdp = records["sdp"]
    right.plot(bounds(sdp)["eps"], bounds(sdp)["dual"], color=COLORS["sdp"], label="SDP bound")
    for attack, (label, color) in styles.items():
        right.plot(*attacked(sdp, attack), "o--", color=color, markersize=3, label=label)
    axes(right, "(b) attacks on SDP-NN")
    right.set_ylim(0, 1.1 * bounds(sdp)["dual"][-1])
    right.legend(frameon=False, fontsize=8)
    for panel in (left, right):
        panel.set_xlabel("ε")
        panel.set_ylabel("error in %")
    return figure


def figure4(records: dict[str, Record]) -> Figure:
    """(a) the paper's objective with and without weights of the pairs; (b) the bound at hand while training."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
    for name, color in (("weighted", COLORS["sdp"]), ("unweighted", ATTACK)):
        curves = bounds(records[name])
        left.plot(curves["eps"], curves["dual"], color=color, label=name)
        left.plot(*attacked(records[name]), "o--", color=color, markersize=3)
    axes(left, "(a) SDP bound (solid) and PGD (dashed)")
    left.set_ylim(0, 1.1 * max(bounds(records[name])["dual"][-1] for name in ("weighted", "unweighted")))
    left.set_xlabel("ε")
    left.set_ylabel("error in %")
    left.legend(frameon=False, fontsize=8)
    epochs, by_training, solved = zip(*records["weighted"]["trace"]["rows"], strict=True)
    right.plot(epochs, by_training, "o-", color=ATTACK, markersize=3, label="dual bound of training's own vectors (16)")
    right.plot(epochs, solved, "o-", color=COLORS["sdp"], markersize=3, label="programs solved")
    right.set_title("(b) certified error at ε = 0.1 while training, weighted", fontsize=10)
    right.set_ylim(0, 102)
    right.set_xlabel("epoch")
    right.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    right.legend(frameon=False, fontsize=8)
    return figure


def table1(records: dict[str, Record]) -> str:
    """Table 1 in Markdown: ours, and the paper's in brackets."""
    lines = ["| network | clean | PGD | SDP bound | LP bound |", "|---|---|---|---|---|"]
    for name, title in (("sdp", "SDP-NN"), ("lp", "LP-NN")):
        found = records[name]["per_cent_error"]
        pairs = zip((found[PGD], found["sdp"], found["dual"]), PAPER[name], strict=True)
        cells = [title, f"{found['clean']:.2f}", *(f"{own:.2f} ({paper})" for own, paper in pairs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Draws what there are records for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    chosen = parser.parse_args(argv)
    import matplotlib

    matplotlib.use("Agg")
    needed = {figure2: FIVE, figure3: FIVE, figure4: ("weighted", "unweighted")}
    for draw, names in needed.items():
        missing = [name for name in names if not (chosen.results / f"network_{name}_0.json").is_file()]
        if missing:
            print(f"{draw.__name__} is not drawn: no record of {', '.join(missing)}")
            continue
        figure = draw({name: read(chosen.results, name) for name in names})
        figure.savefig(chosen.out / f"{draw.__name__}.png", dpi=150)
    print(table1({name: read(chosen.results, name) for name in PAPER}))


if __name__ == "__main__":
    main()
