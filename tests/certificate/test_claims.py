"""Certificates as files: what is true and well formed is accepted, everything else is refused."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from certificate.exact_networks import Builder, exact, exact_network, exact_run
from ironbound.certificate import checker as package
from ironbound.certificate.checker import Arithmetic, Certificate, CertificateError, Checker, File, arrays_of, digest
from ironbound.certificate.checker.__main__ import main
from ironbound.certificate.checker.bounds import Analysis, Region
from ironbound.certificate.checker.claims import LABEL, NONE, PREDICTION, SDP, SLOPES, TREE

NO_CLIP = (float("nan"), float("nan"))
EPS = 0.05


class Setting:
    """A small network, some inputs, and true claims about them with every kind of payload."""

    def __init__(self, seed: int = 0, dtype=np.float32):
        rng = np.random.default_rng(seed)
        builder = Builder((4,), dtype, rng)
        last = builder.relu(builder.linear(0, 6))
        last = builder.relu(builder.linear(last, 5))
        builder.linear(last, 3)
        self.arrays = builder.file()
        self.nodes = exact_network(self.arrays)
        x = (2 * rng.random((8, 4))).astype(dtype)
        self.outputs = [exact_run(self.nodes, exact(one)) for one in x]
        labels = np.array([int(np.argmax(y)) for y in self.outputs])
        self.data = {"x": x, "labels": labels}
        self.checker = Checker(self.arrays, self.data)
        self.file = File(digest(self.arrays), digest(self.data), "linf", "real", NO_CLIP, [])

    def proved(self, one: Certificate, mode: str = "real") -> float:
        return float(np.delete(self.checker.margins(one, "linf", mode, NO_CLIP), one.label).min())

    def claim(self, index: int, kind: int = NONE, eps: float = EPS, subject: int = LABEL) -> Certificate:
        payload = {NONE: b"", SLOPES: self.slopes(), TREE: self.tree()}[kind]
        one = Certificate(index, int(self.data["labels"][index]), subject, kind, eps, 0.0, payload)
        least = self.proved(one)
        return replace(one, margin=max(0.0, least - 1e-7 * (1 + abs(least))))

    def claims(self, kinds=(NONE, SLOPES, TREE)) -> list[Certificate]:
        found = [self.claim(index, kinds[index % len(kinds)], 0.01) for index in range(len(self.data["x"]))]
        return [one for one in found if one.margin > 0]

    @staticmethod
    def neurons(*groups) -> list[np.ndarray]:
        parts = [np.array([len(groups)], "<u2")]
        for node, index in groups:
            parts += [np.array([node, len(index)], "<u4"), np.array(index, "<u4")]
        return parts

    def slopes(self) -> bytes:
        parts = [np.array([2, 0, 2], "<u2"), *self.neurons((2, [0, 3]), (4, [1, 2, 4]))]
        parts += [np.array([65535, 20000], "<u2"), np.array([0, 7, 9], "<u2")] * 2
        return b"".join(part.tobytes() for part in parts)

    def tree(self) -> bytes:
        """Both sides of neuron 3, and of neuron 1 of the second layer where that is positive, for two targets."""
        parts = self.neurons((2, [3]), (4, [1]))
        leaf, slopes = np.array([0xFFFF], "<u2"), np.array([30000, 40000], "<u2")
        parts.append(np.array([2], "<u2"))
        for target in (0, 1):
            parts += [np.array([target, 0, 1], "<u2")]
            parts += [leaf, slopes, np.array([0.25, 0.125], "<f4")] * 2
            parts += [leaf, slopes, np.array([0.5], "<f4")]
        return b"".join(part.tobytes() for part in parts)

    def worst(self, one: Certificate) -> float:
        """The least margin at corners of the region and some points inside."""
        rng = np.random.default_rng(1)
        x = self.data["x"][one.index].astype(float)
        steps = np.concatenate([rng.choice([-1.0, 1.0], (60, x.size)), rng.uniform(-1, 1, (20, x.size))])
        found = []
        for step in steps:
            y = exact_run(self.nodes, exact(x + one.eps * (1 - 1e-9) * step)).astype(float)
            found.append(np.delete(y[one.label] - y, one.label).min())
        return min(found)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("kind", [NONE, SLOPES, TREE])
def test_what_is_proved_is_accepted_and_no_more(setting: Setting, kind: int) -> None:
    accepted = 0
    for index in range(len(setting.data["x"])):
        one = setting.claim(index, kind)
        proved = setting.proved(one)
        assert proved <= setting.worst(one)
        above = replace(one, margin=max(0.0, float(np.nextafter(max(proved, 0.0), 9))))
        assert setting.checker.check(above, "linf", "real", NO_CLIP) is not None
        if proved > 1e-6:
            accepted += 1
            assert setting.checker.check(one, "linf", "real", NO_CLIP) is None
            assert setting.checker.check(replace(one, eps=3.0), "linf", "real", NO_CLIP) is not None
    assert accepted >= 3


def test_targeted_lies(setting: Setting) -> None:
    true = next(one for one in setting.claims() if one.kind == NONE)
    proved = setting.proved(true)
    other = (true.label + 1) % 3
    check = setting.checker.check
    assert check(true, "linf", "real", NO_CLIP) is None
    single = replace(true, eps=0.4)
    lies: list[Certificate] = [replace(true, margin=proved * factor) for factor in (1.0, 1.000001, 1.1, 2, 1e3, 1e300)]
    lies += [replace(true, eps=eps) for eps in (0.5, 1.0, 10.0, 1e6, 1e300, 1.7e308)]
    lies += [
        replace(true, label=label, subject=subject) for label in (other, 3, 65535) for subject in (LABEL, PREDICTION)
    ]
    lies += [replace(true, index=index) for index in (8, 2**31, 2**32 - 1)]
    lies += [replace(true, kind=SDP), replace(true, kind=SLOPES), replace(true, kind=TREE)]
    lies += [replace(true, kind=kind, payload=b"\xff" * n) for kind in (SLOPES, TREE, SDP) for n in (1, 2, 40)]
    lies += [replace(single, kind=TREE, payload=_bad_tree(setting, how)) for how in range(4)]
    assert len(lies) >= 30
    for lie in lies:
        assert check(lie, "linf", "real", NO_CLIP) is not None, lie
    for broken in ({"margin": -1e-9}, {"margin": float("nan")}, {"margin": float("inf")}, {"eps": float("nan")}):
        with pytest.raises(CertificateError):
            replace(true, **broken)
    for broken in ({"eps": -0.1}, {"eps": float("inf")}, {"subject": 2}, {"kind": 4}, {"payload": b"x"}):
        with pytest.raises(CertificateError):
            replace(true, **broken)


def _bad_tree(setting: Setting, how: int) -> bytes:
    """Only one side of a split; a neuron split twice; a negative multiplier; a neuron that is not named."""
    parts = [*setting.neurons((2, [3])), np.array([1, 0, 0], "<u2")]
    leaf = [np.array([0xFFFF, 9], "<u2"), np.array([-1.0 if how == 2 else 1.0], "<f4")]
    if how == 1:
        parts += [np.array([0], "<u2")]
    if how == 3:
        parts += [np.array([1], "<u2")]
    parts += leaf if how == 0 else leaf * 3
    return b"".join(part.tobytes() for part in parts)


def test_a_split_proves_more_than_its_root_and_never_too_much() -> None:
    better = 0
    none = np.zeros(2, "<u2").tobytes()
    for seed in range(3):
        setting = Setting(seed)
        for index in range(4):
            one = Certificate(index, int(setting.data["labels"][index]), LABEL, SLOPES, 0.3, 0.0, none)
            root, worst = setting.checker.margins(one, "linf", "real", NO_CLIP), setting.worst(one)
            for node, neuron, positive, negative in itertools.product((2, 4), (0, 1, 2), (0.0, 0.4), (0.0, 0.4)):
                tree = replace(one, kind=TREE, payload=_split(setting, node, neuron, positive, negative))
                margins = setting.checker.margins(tree, "linf", "real", NO_CLIP)
                better += int((margins > root + 1e-6).any())
                assert np.delete(margins, one.label).min() <= worst
    assert better >= 10


def _split(setting: Setting, node: int, neuron: int, positive: float, negative: float) -> bytes:
    parts = [*setting.neurons((node, [neuron])), np.array([3], "<u2")]
    for target in range(3):
        parts += [np.array([target, 0], "<u2")]
        for beta in (positive, negative):
            parts += [np.array([0xFFFF, 0], "<u2"), np.array([beta], "<f4")]
    return b"".join(part.tobytes() for part in parts)


def test_labels_bind_and_predictions_need_none(setting: Setting) -> None:
    one = next(one for one in setting.claims() if one.kind == NONE)
    bare = Checker(setting.arrays, {"x": setting.data["x"]})
    assert bare.check(one, "linf", "real", NO_CLIP) is not None
    assert bare.check(replace(one, subject=PREDICTION), "linf", "real", NO_CLIP) is None


def test_float32_runs_cost_margin_and_need_a_float32_network(setting: Setting) -> None:
    one = setting.claim(0)
    assert setting.proved(one, "float32") < setting.proved(one) - 1e-8
    double = Setting(dtype=np.float64)
    assert double.checker.check(double.claim(0), "linf", "float32", NO_CLIP) == "the network is not in float32"


def test_inputs_outside_the_clip_are_refused(setting: Setting) -> None:
    one = setting.claim(0)
    assert setting.checker.check(one, "linf", "real", (0.0, 2.0)) is None
    assert "outside the clip" in str(setting.checker.check(one, "linf", "real", (1.9, 2.0)))


def test_round_trip_and_size(setting: Setting) -> None:
    file = replace(setting.file, certificates=setting.claims())
    assert {one.kind for one in file.certificates} == {NONE, SLOPES, TREE}
    again = File.unpack(file.pack())
    assert again.certificates == file.certificates and again.pack() == file.pack()
    assert set(setting.checker.check_file(again).values()) == {None}
    assert len(replace(file, certificates=[one for one in file.certificates if one.kind == NONE][:1]).pack()) <= 300


def test_other_networks_and_other_data_are_refused(setting: Setting) -> None:
    file = replace(setting.file, certificates=setting.claims())
    arrays = {**setting.arrays, "a001": np.nextafter(setting.arrays["a001"], np.float32(9))}
    with pytest.raises(CertificateError, match="another network"):
        Checker(arrays, setting.data).check_file(file)
    for data in ({"x": setting.data["x"][::-1]}, {"labels": setting.data["labels"] ^ 1}):
        data = {**setting.data, **{key: np.ascontiguousarray(value) for key, value in data.items()}}
        with pytest.raises(CertificateError, match="other data"):
            Checker(setting.arrays, data).check_file(file)


def test_flipped_bytes_make_nothing_false_accepted(setting: Setting) -> None:
    file = replace(setting.file, certificates=setting.claims())
    true, data = {one.index: one for one in file.certificates}, file.pack()
    accepted = 0
    for place in range(0, len(data), 2):
        flipped = data[:place] + bytes([data[place] ^ (1 + place % 255)]) + data[place + 1 :]
        try:
            found = File.unpack(flipped)
            answers = setting.checker.check_file(found)
        except CertificateError:
            continue
        query = found.norm, found.mode, str(found.clip)
        for one in found.certificates:
            if answers[one.index] is not None or (
                true.get(one.index) == one and query == ("linf", "real", str(NO_CLIP))
            ):
                continue
            accepted += 1  # smaller radii and margins, other slopes, l2 or l1 balls (parts of the box) are true as well
            assert one.margin <= setting.worst(one if found.norm == "linf" else replace(one, eps=0.0))
    assert accepted > 20


def test_fuzzed_bytes_end_in_a_typed_error_or_an_answer(setting: Setting) -> None:
    rng = np.random.default_rng(0)
    data = replace(setting.file, certificates=setting.claims()).pack()
    for round_ in range(1500):
        fuzzed = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(len(fuzzed)))
            how = rng.integers(4)
            if how == 0:
                fuzzed[place] = int(rng.integers(256))
            elif how == 1:
                fuzzed = fuzzed[: place + 1]
            elif how == 2:
                fuzzed[place:place] = rng.bytes(int(rng.integers(1, 9)))
            else:
                fuzzed[place : place + 4] = b"\xff\xff\xff\xff"
        try:
            found = File.unpack(bytes(fuzzed))
            for one in found.certificates if round_ % 3 == 0 else []:
                setting.checker.check(one, found.norm, found.mode, found.clip)
        except CertificateError:
            continue


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
    monkeypatch.setattr("ironbound.certificate.checker.claims.ARRAY_LIMIT", 1 << 16)
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


def test_nan_is_never_proved(setting: Setting) -> None:
    x = setting.data["x"].copy()
    x[0, 0] = np.nan
    one = setting.claim(0)
    assert Checker(setting.arrays, {**setting.data, "x": x}).check(one, "linf", "real", NO_CLIP) is not None
    nodes, a = setting.checker.nodes, Arithmetic()
    with np.errstate(all="ignore"):
        region = Region(a, setting.data["x"][0], "linf", 1.5e308, NO_CLIP)
        assert not (Analysis(nodes, a, region).low[-1] > -np.inf).any()


def test_the_program_and_the_folder_alone(setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    certificates = setting.claims()
    np.savez(tmp_path / "net.npz", **setting.arrays)
    np.savez(tmp_path / "data.npz", **setting.data)
    file = tmp_path / "claims.ibc"
    file.write_bytes(replace(setting.file, certificates=certificates).pack())
    arguments = [str(file), "--network", str(tmp_path / "net.npz"), "--data", str(tmp_path / "data.npz")]
    assert main(arguments) == 0
    assert f"{len(certificates)} certificates proved, 0 refused" in capsys.readouterr().out
    file.write_bytes(replace(setting.file, certificates=[replace(certificates[0], margin=9.0)]).pack())
    assert main(arguments) == 1 and "refused: only a margin" in capsys.readouterr().out
    file.write_bytes(setting.file.pack())
    assert main(arguments) == 1
    file.write_bytes(b"nothing")
    assert main(arguments) == 2 and "cut short" in capsys.readouterr().err
    file.write_bytes(replace(setting.file, certificates=certificates).pack())
    assert package.__file__ is not None
    (tmp_path / "alone").mkdir()
    os.symlink(Path(package.__file__).parent, tmp_path / "alone" / "checker", target_is_directory=True)
    code = (
        "import sys, checker.__main__ as m; code = m.main(sys.argv[1:]); "
        "assert not {'torch', 'ironbound', 'scipy'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path / "alone", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
