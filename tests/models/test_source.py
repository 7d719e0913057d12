"""What the command line's network options open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ironbound.capture.onnx import save_onnx
from ironbound.errors import InputError, WeightsError
from ironbound.models import build, open_model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(build("digits").state_dict(), path)
    return path


def write(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


MINE = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()\n"


def test_architecture_with_weights(weights: Path) -> None:
    model = open_model("digits", weights)
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert not model.training


def test_architecture_with_options() -> None:
    assert open_model("small", in_channels=3, size=32)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_factory(tmp_path: Path) -> None:
    model = open_model(factory=f"{write(tmp_path, MINE)}:make")
    assert not any(part.training for part in model.modules())
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_factory_with_weights(tmp_path: Path) -> None:
    factory = f"{write(tmp_path, MINE)}:make"
    source = open_model(factory=factory)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    found = open_model(factory=factory, weights=tmp_path / "w.pth")
    assert torch.equal(found.state_dict()["1.weight"], source.state_dict()["1.weight"])


def test_a_factory_may_import_its_neighbours_and_leaves_the_path_alone(tmp_path: Path) -> None:
    import sys

    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 3\n")
    text = "from neighbour_of_mine import WIDTH\nfrom torch import nn\ndef make():\n    return nn.Linear(WIDTH, 2)\n"
    before = list(sys.path)
    assert open_model(factory=f"{write(tmp_path, text)}:make")(torch.zeros(1, 3)).shape == (1, 2)
    assert sys.path == before


FACTORIES = {
    "raises": ("def make():\n    raise RuntimeError('no luck')\n", "no luck"),
    "no module": ("def make():\n    return 3\n", "returned a int"),
    "no function": ("make = 3\n", "no function"),
    "no import": ("import a_package_that_is_not_there\n", "cannot be imported"),
    "no python": ("def make(:\n", "SyntaxError"),
    "needs arguments": ("def make(width):\n    return width\n", "TypeError"),
}


@pytest.mark.parametrize("case", FACTORIES)
def test_factories_that_fail_end_in_one_sentence(tmp_path: Path, case: str) -> None:
    text, sentence = FACTORIES[case]
    with pytest.raises(InputError, match=sentence):
        open_model(factory=f"{write(tmp_path, text)}:make")


@pytest.mark.parametrize("factory", ["mine.py", "absent.py:make", ":make", "mine.py:", "mine.py:a b"])
def test_malformed_factories_are_refused(factory: str) -> None:
    with pytest.raises(InputError, match="path/module.py:function"):
        open_model(factory=factory)


def test_a_factory_with_nan_weights_is_refused(tmp_path: Path) -> None:
    text = "import torch\ndef make():\n    m = torch.nn.Linear(2, 2)\n    m.bias.data[0] = float('nan')\n    return m\n"
    with pytest.raises(WeightsError, match="NaN or infinity in bias"):
        open_model(factory=f"{write(tmp_path, text)}:make")


def export(model: nn.Module, path: Path, example: torch.Tensor) -> Path:
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: batch},)), path)
    return path


def test_an_exported_program_gives_the_same_logits_for_any_batch(tmp_path: Path) -> None:
    model = build("digits")
    found = open_model(weights=export(model, tmp_path / "net.pt2", torch.zeros(2, 1, 8, 8)))
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(found(x), model(x))
    assert not any(part.training for part in found.modules())
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_environment_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    (tmp_path / "net.pt2").write_bytes(b"nothing")
    with pytest.raises(WeightsError):
        open_model(weights=tmp_path / "net.pt2")
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


def test_an_exported_program_with_nan_weights_is_refused(tmp_path: Path) -> None:
    model = build("digits")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinity"):
        open_model(weights=export(model, tmp_path / "net.pt2", torch.zeros(2, 1, 8, 8)))


@pytest.mark.parametrize("content", [None, b"", b"not a program"])
def test_bad_programs_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(WeightsError, match=r"net\.pt2"):
        open_model(weights=tmp_path / "net.pt2")


@pytest.mark.parametrize("name", ["net.onnx", "net.onnx.gz"])
def test_an_onnx_file_is_a_whole_network(tmp_path: Path, name: str) -> None:
    model, x = build("digits"), torch.rand(3, 1, 8, 8)
    save_onnx(model, tmp_path / name, x)
    opened = open_model(weights=tmp_path / name)
    torch.testing.assert_close(opened(x), model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="whole network"):
        open_model("digits", tmp_path / name)
    with pytest.raises(WeightsError, match="missing"):
        open_model(weights=tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weights": "w.pth"},
        {"arch": "small", "factory": "mine.py:make"},
        {"arch": "small", "weights": "net.pt2"},
        {"factory": "mine.py:make", "weights": "net.pt2"},
        {"weights": "net.pt2", "size": 28},
        {"arch": "unheard of"},
    ],
    ids=str,
)
def test_combinations_that_name_no_network_or_two_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        open_model(**arguments)
