"""A picture of a certification of small images: certified ones, and falsified ones beside what changes the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ironbound.certification import Certification

_SHADES = " ░▒▓█"
_PROVED, _OPEN = "#2b6f9e", "#c8553d"


@dataclass(frozen=True, eq=False)
class Shown:
    """What a picture shows besides the certification.

    Attributes:
        inputs: [n, 1, height, width] in [0, 1], the examples as given.
        margins: [n, classes]; those of the certification, and for falsified examples too.
        answers: what the network says to the adversarial input of each falsified example.
    """

    inputs: Tensor
    margins: Tensor
    answers: Mapping[int, int]


def choose(result: Certification, count: int) -> tuple[list[int], list[int]]:
    """The first certified and the first falsified examples: never ones picked by hand.

    Args:
        result: the certification.
        count: how many of each.

    Returns:
        Numbers of certified examples, each of another class as long as there are classes, and of falsified ones.
    """
    certified = np.flatnonzero(result.status == "certified").tolist()
    labels = result.labels.tolist()
    firsts = list({labels[example]: example for example in reversed(certified)}.values())[::-1]
    rest = [example for example in certified if example not in firsts]
    return sorted((sorted(firsts) + rest)[:count]), sorted(result.adversarial)[:count]


def draw(result: Certification, shown: Shown, path: Path, count: int = 4) -> bool:
    """Writes the picture with matplotlib, where it is installed.

    Args:
        result: the certification.
        shown: the images and their margins.
        path: of the image file to write.
        count: columns for each kind.

    Returns:
        False where matplotlib is not installed; then nothing is written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    certified, falsified = choose(result, count)
    figure = Figure(figsize=(2.2 * 2 * count, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    left.suptitle(f"certified: nothing within ε = {result.settings['eps']:g} changes the answer", color=_PROVED)
    right.suptitle("falsified: as given, and the change that fools the network", color=_OPEN)
    for side, chosen in ((left, certified), (right, falsified)):
        axes = side.subplots(2 if side is left else 3, count, squeeze=False)
        for column in range(count):
            if column >= len(chosen):
                for axis in axes[:, column]:
                    axis.set_axis_off()
                continue
            example = chosen[column]
            _image(axes[0, column], shown.inputs[example], f"{int(result.labels[example])}")
            if side is right:
                _image(axes[1, column], result.adversarial[example], f"read as {shown.answers[example]}")
            _bars(axes[-1, column], shown.margins[example], int(result.labels[example]), column == 0)
    figure.savefig(path, dpi=110)
    return True


def _image(axis: Any, image: Tensor, title: str) -> None:
    axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])


def _bars(axis: Any, margins: Tensor, label: int, named: bool) -> None:
    """Margins of one example, a bar for each class that is not its own."""
    classes = [k for k in range(len(margins)) if k != label]
    values = [float(margins[k]) for k in classes]
    axis.barh([str(k) for k in classes], values, color=[_PROVED if value > 0 else _OPEN for value in values])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if named:
        axis.set_xlabel("margin: proved if above 0", fontsize=8)
        axis.set_ylabel("against class", fontsize=8)


def text_picture(result: Certification, shown: Shown, count: int = 3) -> str:
    """The same for a terminal: a row of certified images, a row of falsified ones, each with what fools the network.

    Args:
        result: the certification.
        shown: the images.
        count: images in a row.

    Returns:
        Lines of shades.
    """
    certified, falsified = choose(result, count)
    parts: list[str] = []
    if certified:
        parts.append("certified: nothing within ε changes the answer")
        parts.append(_row([shown.inputs[example] for example in certified]))
    for example in falsified:
        label, answer = int(result.labels[example]), shown.answers[example]
        parts.append(f"falsified: {label} as given, and as changed within ε, read as {answer}")
        parts.append(_row([shown.inputs[example], result.adversarial[example]]))
    return "\n".join(parts)


def _row(images: list[Tensor]) -> str:
    blocks = [(image[0].clamp(0, 1) * (len(_SHADES) - 1)).round().to(torch.int64).tolist() for image in images]
    lines = zip(*blocks, strict=True)
    return "\n".join("  " + "    ".join("".join(_SHADES[v] * 2 for v in row) for row in line) for line in lines)
