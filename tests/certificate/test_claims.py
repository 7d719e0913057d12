"""Certificates as files: what is true and well formed is accepted, everything else is refused."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from certificate.exact_networks import Builder, exact, exact_network, exact_run
from ironbound.certificate import checker as package
from ironbound.certificate.checker import Arithmetic, Certificate, CertificateError, Checker, File, digest
from ironbound.certificate.checker.__main__ import main
from ironbound.certificate.checker.bounds import Analysis, Region
from ironbound.certificate.checker.claims import LABEL, NONE, PREDICTION, SDP, SLOPES, TREE
from ironbound.certificate.checker.payloads import LEAF

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
        one = Certificate(index, int(self.data["labels"][index]), subject, kind, eps, 0.0)
        one = replace(one, payload={NONE: bytes, SLOPES: self.slopes, TREE: self.tree}[kind](*[one][: kind != NONE]))
        least = self.proved(one)
        return replace(one, margin=max(0.0, least - 1e-7 * (1 + abs(least))))

    def claims(self, kinds=(NONE, SLOPES, TREE)) -> list[Certificate]:
        found = [self.claim(index, kinds[index % len(kinds)], 0.01) for index in range(len(self.data["x"]))]
        return [one for one in found if one.margin > 0]

    def width(self, one: Certificate) -> int:
        """Number of neurons that the checker leaves open."""
        return len(self.checker.analysis(replace(one, kind=SLOPES), "linf", "real", NO_CLIP).open_neurons())

    def slopes(self, one: Certificate, bits: int = 3) -> bytes:
        """Some slopes for two classes."""
        width = self.width(one)
        parts = [np.array([bits], "u1"), np.array([2], "<u2")]
        for target in (0, 2):
            parts += [np.array([target], "<u2"), packed(np.arange(width) * 3 + target, bits)]
        return b"".join(part.tobytes() for part in parts)

    def tree(self, one: Certificate, columns=(0, 1), betas=((0.25, 0.125), (0.5,)), targets=(0, 1)) -> bytes:
        """Both sides of a neuron, and of a second one where the first is positive, as far as there are any."""
        width = self.width(one)
        leaf = [np.array([LEAF], "<u2"), packed(np.arange(width) * 5, 4)]
        parts = [np.array([4], "u1"), np.array([len(targets)], "<u2")]
        for target in targets:
            parts.append(np.array([target, *columns[:width]], "<u2"))
            if width == 0:
                parts += leaf
            if width >= 2:
                parts += [*leaf, np.array(betas[0], "<f2")] * 2
            if width:
                parts += [*leaf, np.array(betas[1], "<f2")] * (1 if width >= 2 else 2)
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


def packed(values, bits: int) -> np.ndarray:
    """Numbers modulo 2^bits, from the highest bit on."""
    digits = np.unpackbits(np.asarray(values).astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(digits.reshape(-1))


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
    near = [replace(true, eps=float(eps), margin=0.0) for eps in np.linspace(0.01, 0.4, 40)]
    single = next(one for one in near if setting.width(one))  # proved as it is, with an open neuron to split
    assert check(single, "linf", "real", NO_CLIP) is None
    lies: list[Certificate] = [replace(true, margin=proved * factor) for factor in (1.0, 1.000001, 1.1, 2, 1e3, 1e300)]
    lies += [replace(true, eps=eps) for eps in (0.5, 1.0, 10.0, 1e6, 1e300, 1.7e308)]
    lies += [
        replace(true, label=label, subject=subject) for label in (other, 3, 65535) for subject in (LABEL, PREDICTION)
    ]
    lies += [replace(true, index=index) for index in (8, 2**31, 2**32 - 1)]
    lies += [replace(true, kind=SDP), replace(true, kind=SLOPES), replace(true, kind=TREE)]
    lies += [replace(true, kind=kind, payload=b"\xff" * n) for kind in (SLOPES, TREE) for n in (1, 2, 40)]
    lies += [replace(true, kind=SLOPES, payload=setting.slopes(true) + b"\0")]
    lies += [replace(true, kind=SLOPES, payload=bytes([bits]) + setting.slopes(true)[1:]) for bits in (0, 9, 255)]
    lies += [replace(single, kind=TREE, payload=_bad_tree(setting, single, how)) for how in range(4)]
    assert len(lies) >= 30
    for lie in lies:
        assert check(lie, "linf", "real", NO_CLIP) is not None, lie
    for broken in ({"margin": -1e-9}, {"margin": float("nan")}, {"margin": float("inf")}, {"eps": float("nan")}):
        with pytest.raises(CertificateError):
            replace(true, **broken)
    for broken in (
        {"eps": -0.1},
        {"eps": float("inf")},
        {"subject": 2},
        {"kind": 4},
        {"payload": b"x"},
        {"kind": SDP, "payload": b"x"},
    ):
        with pytest.raises(CertificateError):
            replace(true, **broken)


def _bad_tree(setting: Setting, one: Certificate, how: int) -> bytes:
    """Only one side of a split; a neuron split twice; a negative multiplier; a neuron that is not open."""
    width = setting.width(one)
    assert width >= 1
    parts = [np.array([4], "u1"), np.array([1, 0, 0], "<u2")]
    leaf = [np.array([LEAF], "<u2"), packed(np.zeros(width), 4), np.array([-1.0 if how == 2 else 1.0], "<f2")]
    if how == 1:
        parts += [np.array([0], "<u2")]
    if how == 3:
        parts += [np.array([width], "<u2")]
    parts += leaf * {0: 1, 1: 3, 2: 2, 3: 3}[how]
    return b"".join(part.tobytes() for part in parts)


def test_a_split_proves_more_than_its_root_and_never_too_much() -> None:
    better = 0
    for seed in range(3):
        setting = Setting(seed)
        for index in range(4):
            one = Certificate(index, int(setting.data["labels"][index]), LABEL, TREE, 0.3, 0.0)
            width, worst = setting.width(one), setting.worst(one)
            root = setting.checker.margins(replace(one, payload=_split(width, None)), "linf", "real", NO_CLIP)
            for column, positive, negative in itertools.product(range(min(width, 6)), (0.0, 0.4), (0.0, 0.4)):
                tree = replace(one, payload=_split(width, column, positive, negative))
                margins = setting.checker.margins(tree, "linf", "real", NO_CLIP)
                better += int((margins > root + 1e-6).any())
                assert np.delete(margins, one.label).min() <= worst
    assert better >= 10


def _split(width: int, column: int | None, *betas: float) -> bytes:
    """A tree of one split for each of three classes, or of its root alone."""
    parts = [np.array([1], "u1"), np.array([3], "<u2")]
    leaf = [np.array([LEAF], "<u2"), packed(np.zeros(width), 1)]
    for target in range(3):
        parts += [np.array([target], "<u2")]
        parts += leaf if column is None else [np.array([column], "<u2")]
        for beta in betas:
            parts += [*leaf, np.array([beta], "<f2")]
    return b"".join(part.tobytes() for part in parts)


def test_labels_bind_and_predictions_need_none(setting: Setting) -> None:
    one = next(one for one in setting.claims() if one.kind == NONE)
    bare = Checker(setting.arrays, {"x": setting.data["x"]})
    assert bare.check(one, "linf", "real", NO_CLIP) is not None
    others = Checker(setting.arrays, {**setting.data, "labels": (setting.data["labels"] + 1) % 3})
    assert others.check(one, "linf", "real", NO_CLIP) == "the data have another label, or none"
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


def test_records_stand_in_order(setting: Setting) -> None:
    data = replace(setting.file, certificates=setting.claims()[::-1]).pack()
    with pytest.raises(CertificateError, match="not in order"):
        File.unpack(data)
    first = setting.claims()[0]
    with pytest.raises(CertificateError, match="not in order"):
        File.unpack(replace(setting.file, certificates=[first, first]).pack())


def test_the_hash_covers_names_types_and_shapes(setting: Setting) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = [{"b": x}, {"a": x.reshape(3, 2)}, {"a": x.view("<i4")}, {"a": x + 1}, {"a": x, "b": x}, {}]
    assert len({digest(arrays) for arrays in [{"a": x}, *others]}) == 7
    assert digest({"a": x}) == digest({"a": np.asfortranarray(x)})


def test_flipped_bytes_make_nothing_false_accepted(setting: Setting) -> None:
    file = replace(setting.file, certificates=setting.claims())
    true, data = {one.index: one for one in file.certificates}, file.pack()
    accepted = 0
    for place in range(0, len(data), 5):
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
    assert main([*arguments, "--jobs", "1"]) == 0
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
