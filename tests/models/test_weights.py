"""Loading weights: the layouts that are understood, and one clear sentence for every one that is not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ironbound.errors import WeightsError
from ironbound.models import build, load_weights

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return build("digits").state_dict()


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "nested": lambda state: {"state_dict": state, "epoch": 3},
    "list of one": lambda state: {"state_dict": [state], "err": 0.1},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "data parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "deep prefix": lambda state: {"model": {f"module.net.{key}": value for key, value in state.items()}},
    "double precision": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_layouts(tmp_path: Path, state: State, layout: str, legacy: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](state), path, _use_new_zipfile_serialization=not legacy)
    model = build("digits").train()
    assert load_weights(model, path) is model
    assert not model.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key])


def spoil(state: State, key: str, value: Tensor | None) -> State:
    changed = dict(state)
    if value is None:
        del changed[key]
    else:
        changed[key] = value
    return changed


NAN = torch.full((8,), float("nan"))
REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "missing": (lambda state: spoil(state, "0.bias", None), r"missing: 0\.bias"),
    "unexpected": (lambda state: spoil(state, "9.bias", torch.zeros(2)), r"unexpected: 9\.bias"),
    "shape": (lambda state: spoil(state, "0.bias", torch.zeros(9)), r"0\.bias is \[9\] instead of \[8\]"),
    "integers": (lambda state: spoil(state, "0.bias", torch.zeros(8, dtype=torch.int64)), r"0\.bias is torch\.int64"),
    "sparse": (lambda state: spoil(state, "0.bias", torch.zeros(8).to_sparse()), r"0\.bias is .*sparse"),
    "NaN": (lambda state: spoil(state, "0.bias", NAN), r"NaN or infinity in 0\.bias"),
    "infinity": (lambda state: spoil(state, "0.bias", 1 / torch.zeros(8)), r"NaN or infinity in 0\.bias"),
    "cascade": (lambda state: {"state_dict": [state, state]}, "2 networks"),
    "empty dict": (lambda state: {}, "no state dict"),
    "no tensors": (lambda state: {"epoch": 3}, "no state dict"),
    "one tensor": (lambda state: torch.zeros(3), "no state dict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path, state: State, case: str) -> None:
    change, sentence = REFUSED[case]
    path = tmp_path / "weights.pth"
    torch.save(change(state), path)
    model = build("digits")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_all_differences_stand_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build("small").state_dict(), path)
    with pytest.raises(WeightsError) as caught:
        load_weights(build("mlp-2x100"), path)
    for part in ("missing: 1.weight", "unexpected: 0.weight", "5.weight is [100, 1568] instead of [10, 100]"):
        assert part in str(caught.value)


class Runs:
    """An object whose pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, state: State, legacy: bool) -> None:
    victim, path = tmp_path / "made", tmp_path / "weights.pth"
    torch.save({**state, "extra": Runs(victim)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="could run code"):
        load_weights(build("digits"), path)
    assert not victim.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build("digits"), path)
    with pytest.raises(WeightsError, match=r"save model\.state_dict"):
        load_weights(build("digits"), path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"not weights at all", pickle.dumps([1, 2], protocol=2), b"PK\x03\x04"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(build("digits"), path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, state: State, legacy: bool, share: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError):
        load_weights(build("digits"), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth is not a file"):
        load_weights(build("digits"), tmp_path / "absent.pth")


def test_integer_buffers_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model(torch.randn(5, 2))  # one update: the counter of batches, an integer buffer, becomes 1
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = load_weights(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), tmp_path / "weights.pth")
    assert int(loaded.state_dict()["1.num_batches_tracked"]) == 1
