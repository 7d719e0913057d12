"""The demo's picture: examples chosen by rule, an image file, and shades where matplotlib is absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ironbound.certification import Certification, certify
from ironbound.report.picture import Shown, choose, draw, text_picture


@pytest.fixture(scope="module")
def result() -> tuple[Certification, Shown]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(30, 1, 4, 4)
    with torch.no_grad():
        labels = model(x).argmax(1)
        found = certify(model, x, labels, eps=0.08)
        answers = {at: int(model(point[None]).argmax()) for at, point in found.adversarial.items()}
    assert len(answers) > 4
    return found, Shown(x, found.margins, answers)


def test_the_first_of_each_kind_are_shown(result: tuple[Certification, Shown]) -> None:
    found, _ = result
    certified, falsified = choose(found, 4)
    assert falsified == sorted(found.adversarial)[:4]
    assert (found.status[certified] == "certified").all()
    classes = found.labels[torch.from_numpy(found.status == "certified")].unique()
    assert found.labels[certified].unique().tolist() == classes.tolist()  # each class that there is has its image
    first = {
        int(k): int(np.flatnonzero((found.status == "certified") & (found.labels == k).numpy())[0]) for k in classes
    }
    assert set(first.values()) <= set(certified)


@pytest.mark.parametrize("count", [2, 40])
def test_an_image_is_written(result: tuple[Certification, Shown], tmp_path: Path, count: int) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "picture.png"
    assert draw(*result, path, count=min(count, 6))
    pixels = image.imread(path)
    assert pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_without_matplotlib_nothing_is_written(
    result: tuple[Certification, Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw(*result, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_shades_follow_the_pixels(result: tuple[Certification, Shown]) -> None:
    found, shown = result
    text = text_picture(found, shown, count=1)
    example = sorted(found.adversarial)[0]
    assert f"falsified: {int(found.labels[example])} as given" in text
    assert f"read as {shown.answers[example]}" in text
    lines = text.splitlines()
    assert len(lines) == 2 * (1 + 4)
    original, adversarial = lines[6][2:10], lines[6][14:22]
    shades = " ░▒▓█"
    for drawn, image in ((original, shown.inputs[example]), (adversarial, found.adversarial[example])):
        expected = [shades[round(float(value) * 4)] for value in image[0, 0].clamp(0, 1)]
        assert list(drawn[::2]) == expected
