"""The architectures: their structure, counted by hand from the papers, and the released weights' published errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ironbound.data import load
from ironbound.errors import InputError, WeightsError
from ironbound.models import build, load_raghunathan, load_weights, names

IMAGE_NETS = [name for name in names() if name != "har"]


def layers(name: str, **options: int) -> list[str]:
    """Spell a network: `16x4/2` is a convolution of 16 channels, kernel 4, stride 2; a number is a linear layer."""
    spelled = []
    for layer in build(name, **options):
        if isinstance(layer, nn.Conv2d):
            spelled.append(f"{layer.out_channels}x{layer.kernel_size[0]}/{layer.stride[0]}+{layer.padding[0]}")
        elif isinstance(layer, nn.Linear):
            spelled.append(str(layer.out_features))
        else:
            spelled.append(type(layer).__name__)
    return spelled


def spelled(text: str) -> list[str]:
    return text.replace("r", "ReLU").replace("f", "Flatten").split()


# Zhang et al. 2019, ten small: 0, 1 have two convolutions; 2 … 5 four; 6 … 9 three, the last with stride 4.
STRUCTURES = {
    "small": "16x4/2+1 r 32x4/2+1 r f 100 r 10",
    "wide": "32x4/2+1 r 64x4/2+1 r f 200 r 10",
    "large": "32x3/1+1 r 32x4/2+1 r 64x3/1+1 r 64x4/2+1 r f 512 r 512 r 10",
    "mlp-2x100": "f 100 r 100 r 10",
    "two-layer": "f 500 r 10",
    "har": "500 r 6",
    "crown-ibp-small-0": "4x4/2+1 r 8x4/2+1 r f 128 r 10",
    "crown-ibp-small-1": "8x4/2+1 r 16x4/2+1 r f 256 r 10",
    "crown-ibp-small-2": "4x3/1+1 r 4x4/2+1 r 8x3/1+1 r 8x4/2+1 r f 256 r 256 r 10",
    "crown-ibp-small-3": "8x3/1+1 r 8x4/2+1 r 16x3/1+1 r 16x4/2+1 r f 256 r 256 r 10",
    "crown-ibp-small-4": "4x3/1+1 r 4x4/2+1 r 8x3/1+1 r 8x4/2+1 r f 512 r 512 r 10",
    "crown-ibp-small-5": "8x3/1+1 r 8x4/2+1 r 16x3/1+1 r 16x4/2+1 r f 512 r 512 r 10",
    "crown-ibp-small-6": "4x3/1+1 r 8x3/1+1 r 8x4/4+0 r f 64 r 10",
    "crown-ibp-small-7": "8x3/1+1 r 16x3/1+1 r 16x4/4+0 r f 128 r 10",
    "crown-ibp-small-8": "4x5/1+1 r 8x5/1+1 r 8x4/4+0 r f 64 r 10",
    "crown-ibp-small-9": "8x5/1+1 r 16x5/1+1 r 16x4/4+0 r f 128 r 10",
    "crown-ibp-large-0": "16x3/1+1 r 16x4/2+1 r 32x3/1+1 r 32x4/2+1 r f 512 r 512 r 10",
    "crown-ibp-large-1": "16x3/1+1 r 16x4/2+1 r 32x3/1+1 r 32x4/2+1 r f 512 r 512 r 10",
    "crown-ibp-large-2": "32x3/1+1 r 32x4/2+1 r 64x3/1+1 r 64x4/2+1 r f 512 r 512 r 10",
    "crown-ibp-large-3": "64x3/1+1 r 64x4/2+1 r 128x3/1+1 r 128x4/2+1 r f 512 r 512 r 10",
    "crown-ibp-large-4": "64x5/1+1 r 128x5/1+1 r 128x4/4+0 r f 512 r 10",
    "crown-ibp-large-5": "32x5/1+1 r 64x5/1+1 r 64x4/4+0 r f 512 r 10",
    "crown-ibp-large-6": "16x5/1+1 r 32x5/1+1 r 32x4/4+0 r f 512 r 10",
    "crown-ibp-large-7": "32x3/1+1 r 64x3/1+1 r 64x4/4+0 r f 512 r 10",
}


def test_every_name_but_the_demo_has_a_published_structure() -> None:
    assert set(names()) - {"digits"} == set(STRUCTURES)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name: str) -> None:
    assert layers(name) == spelled(STRUCTURES[name])


@pytest.mark.parametrize("name", IMAGE_NETS)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 7)])
def test_image_networks_fit_other_images(name: str, channels: int, size: int, classes: int) -> None:
    model = build(name, in_channels=channels, size=size, classes=classes)
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)


def test_defaults_fit_their_data() -> None:
    assert build("digits")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert build("har")(torch.zeros(2, 561)).shape == (2, 6)


def test_seeding_torch_makes_the_weights_reproducible() -> None:
    torch.manual_seed(3)
    first = build("small").state_dict()
    torch.manual_seed(3)
    second = build("small").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["0.weight"], build("small").state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet", {}),
        ("small", {"width": 2}),
        ("small", {"hidden": 2}),
        ("har", {"size": 28}),
        ("small", {"size": 0}),
        ("small", {"classes": True}),
        ("small", {"classes": 2.0}),
        ("crown-ibp-small-8", {"size": 4}),
    ],
)
def test_unknown_names_and_options_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        build(name, **options)


def errors(model: nn.Module, root: Path) -> int:
    data = load("mnist", root=root / "data" / "mnist")
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in data.inputs.split(1000)])
    return int((answers != data.labels).sum())


@pytest.mark.shared
@pytest.mark.parametrize(("file", "published"), [("", 180), ("_b", 189)])
def test_released_small_networks_have_their_published_error(shared: Path, file: str, published: int) -> None:
    path = shared / "models" / f"wong_kolter_mnist_small{file}.pth"
    assert errors(load_weights(build("small"), path), shared) == published


@pytest.mark.shared
def test_released_two_layer_network_has_about_its_published_error(shared: Path) -> None:
    assert 410 <= errors(load_raghunathan(shared / "models" / "raghunathan_mnist"), shared) <= 429  # 4.2 %


@pytest.mark.shared
def test_released_har_network_fits(shared: Path) -> None:
    model = load_weights(build("har"), shared / "models" / "wong_kolter_har.pth")
    assert bool(torch.isfinite(model(torch.zeros(1, 561))).all())


def write_raghunathan(folder: Path) -> dict[str, torch.Tensor]:
    import numpy as np

    shapes = {"W1": (784, 500), "B1": (500,), "W2": (500, 10), "B2": (10,)}
    arrays = {name: torch.randn(shape) / 10 for name, shape in shapes.items()}
    for name, value in arrays.items():
        np.save(folder / f"{name}.npy", value.numpy())
    return arrays


def test_raghunathan_multiplies_from_the_right(tmp_path: Path) -> None:
    part = write_raghunathan(tmp_path)
    x = torch.rand(3, 1, 28, 28)
    expected = torch.relu(x.reshape(3, 784) @ part["W1"] + part["B1"]) @ part["W2"] + part["B2"]
    torch.testing.assert_close(load_raghunathan(tmp_path)(x), expected)


@pytest.mark.parametrize("case", ["missing", "empty", "truncated", "shape", "integers", "objects", "NaN"])
def test_bad_raghunathan_files_are_refused(tmp_path: Path, case: str) -> None:
    import numpy as np

    write_raghunathan(tmp_path)
    path = tmp_path / "B1.npy"
    replaced = {
        "shape": np.zeros(501, np.float32),
        "integers": np.zeros(500, np.int64),
        "objects": np.array([{}] * 500, dtype=object),
        "NaN": np.full(500, np.nan, np.float32),
    }
    if case in replaced:
        np.save(path, replaced[case], allow_pickle=True)
    elif case == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if case == "empty" else path.read_bytes()[:300])
    with pytest.raises(WeightsError):
        load_raghunathan(tmp_path)
