"""Networks, inputs and npz files: what is malformed, impossible or too large is refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from certificate.exact_networks import Builder
from certificate.test_claims import Setting
from ironbound.certificate.checker import CertificateError, Checker, File, arrays_of


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def _npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def _npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def test_bombs_and_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = _npy(np.zeros(3, np.float32))
    assert arrays_of(_npz(tmp_path / "good.npz", a=good))["a"].shape == (3,)
    bad = {
        "shape": good.replace(b"(3,)", b"(9,)"),
        "huge": good.replace(b"(3,), }      ", b"(99999999,)}"),
        "pickle": _npy(np.array([{}], object), allow_pickle=True),
        "columns": _npy(np.asfortranarray(np.ones((2, 3)))),
        "text": _npy(np.array(["a"])),
        "cut": good[:-1],
        "empty": b"",
        "nested": good[:10] + b"(" * 100 + good[110:],
    }
    for name, content in bad.items():
        with pytest.raises(CertificateError):
            arrays_of(_npz(tmp_path / f"{name}.npz", a=content))
    (tmp_path / "no.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CertificateError):
        arrays_of(tmp_path / "no.npz")
    monkeypatch.setattr("ironbound.certificate.checker.files.ARRAY_LIMIT", 1 << 16)
    with pytest.raises(CertificateError, match="unpacks to too much"):
        arrays_of(_npz(tmp_path / "bomb.npz", a=_npy(np.zeros(1 << 16))))
    monkeypatch.setattr("ironbound.certificate.checker.claims.FILE_LIMIT", 10)
    with pytest.raises(CertificateError, match="larger"):
        File.read(tmp_path / "good.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"op": "gelu"}, {"in": [5]}, {"in": []}, {"in": [0, 0]}, {"in": [-1]}, {"weight": "missing"}, {"weight": 3},
        {"stride": [0, 1]}, {"stride": [1]}, {"stride": [1, 0.5]}, {"stride": None}, {"padding": [-1, 0]},
        {"padding": [10**9, 10**9]}, {"dilation": [0, 1]}, {"dilation": [9, 9]}, {"groups": 2}, {"groups": 0},
        {"more": 1}, {"stride": [[[[]]]]}, {"bias": "a002"},
    ],
)  # fmt: skip
def test_impossible_descriptions_are_refused(change: dict) -> None:
    builder = Builder((1, 4, 4), np.float32, np.random.default_rng(0))
    last = builder.conv(0, 2, (2, 2), (1, 1), (0, 0), (1, 1))
    builder.linear(builder.reshape(last, [18]), 3)
    data = {"x": np.zeros((1, 1, 4, 4), np.float32)}
    Checker(builder.file(), data)
    builder.nodes[0] |= change
    with pytest.raises(CertificateError):
        Checker(builder.file(), data)


@pytest.mark.parametrize("change", [{"extra": 0}, {"spread": "a001"}, {"divisor": "a001"}, {"factor": "a002"}, {}])
def test_rounding_is_not_the_file_s_to_say(change: dict) -> None:
    builder = Builder((3,), np.float32, np.random.default_rng(0))
    builder.scale(0)
    builder.arrays |= {"a001": np.array([1, -1, 1], np.float32), "a002": np.array([1, 2, 2**53 + 1])}
    data = {"x": np.zeros((1, 3), np.float32)}
    del builder.nodes[0]["divisor"]
    builder.nodes[0] |= change
    if not change:
        Checker(builder.file(), data)
        return
    with pytest.raises(CertificateError):
        Checker(builder.file(), data)


def test_malformed_networks_and_data_are_refused(setting: Setting) -> None:
    def text(**change) -> dict:
        content = json.loads(setting.arrays["network"].tobytes()) | change
        return {**setting.arrays, "network": np.frombuffer(json.dumps(content).encode(), np.uint8)}

    nan = {**setting.arrays, "a000": setting.arrays["a000"] * np.float32("nan")}
    deep = {**setting.arrays, "network": np.frombuffer(b"[" * 10**5, np.uint8)}
    broken = [text(format="x"), text(nodes=[{}]), text(shape=[-4]), text(shape=[2.0, 2]), text(nodes=5), text(shape=[])]
    for arrays in [{}, deep, nan, *broken, text(shape=[10**10, 10**10])]:
        with pytest.raises(CertificateError):
            Checker(arrays, setting.data)
    x = setting.data["x"]
    for data in [
        {},
        {"x": x[0]},
        {"x": x[:, :3]},
        {"x": x.astype(np.int64)},
        {"x": x, "labels": np.zeros(2, np.int64)},
    ]:
        with pytest.raises(CertificateError):
            Checker(setting.arrays, data)
