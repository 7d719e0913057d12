"""From `verify` to files that the stand-alone checker accepts, and back."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ironbound as ib
from ironbound.capture.onnx import save_onnx
from ironbound.certificate import network_file, properties
from ironbound.certificate.checker import Checker, File, arrays_of
from ironbound.certificate.checker.claims import BOXES, NONE, TREE
from ironbound.certificate.properties import PropertyCertificates, property_arrays
from ironbound.cli.app import app
from ironbound.errors import CertificateError, InputError, UnsupportedOperatorError
from ironbound.spec import Case, Clause, Constraint, Property, vnnlib_text
from ironbound.verdicts import Proved, Refuted, Unknown
from verification_cases import chain, least_of, random_property, shifted

SOURCE = str(Path(ib.__file__).parents[1])


def checked(folder: Path) -> tuple[Checker, dict[int, str | None]]:
    """What the stand-alone checker says of a folder."""
    checker = Checker(arrays_of(folder / "network.npz"), arrays_of(folder / "data.npz"))
    return checker, checker.check_file(File.read(folder / "certificates.ibc"))


@cache
def tight(inputs: int) -> tuple[nn.Sequential, Property]:
    """A network, and y <= b with the largest b for which no input of a wide box fulfils it."""
    model = chain(3, inputs, 6, 4, 1)
    low = np.random.default_rng(0).normal(size=inputs)
    case = Case(low, low + 1.5, (Clause((Constraint((), ((0, 1.0),), 0.0),)),))
    prop = Property(inputs, 1, (case,))
    return model, shifted(prop, least_of(model, prop))


def question(room: float, inputs: int = 2) -> tuple[nn.Sequential, Property]:
    """The same with some room between the least output and b."""
    model, prop = tight(inputs)
    return model, shifted(prop, -room)


@pytest.mark.parametrize("seed", range(8))
def test_random_properties_that_hold_come_with_certificates_that_check(seed: int, tmp_path: Path) -> None:
    inputs = 1 + seed % 3
    model, prop = chain(seed, inputs, 4, 3, 2), random_property(seed, inputs, 2)
    exact = least_of(model, prop)
    true = prop if np.isinf(exact) else shifted(prop, exact - 0.01)
    verdict = ib.verify(model, true, timeout=30, certificates=tmp_path)
    assert isinstance(verdict, Proved)
    count = sum(len(case.clauses) for case in prop.cases)
    assert verdict.arithmetic == "real arithmetic" and len(verdict.certificates) == count
    checker, answers = checked(tmp_path)
    assert set(answers.values()) == {None} and checker.missing(answers) == []
    assert File.read(tmp_path / "certificates.ibc").certificates == list(verdict.certificates)
    if np.isfinite(exact):  # certificates of a true property are none of a false one
        false = shifted(prop, exact + 1e-6)
        assert PropertyCertificates(model, false, (inputs,), tmp_path / "false").write(0.5).open
        other = Checker(arrays_of(tmp_path / "network.npz"), property_arrays(false, (inputs,)))
        found = {one.index: other.check(one, "box", "real", (np.nan, np.nan)) for one in verdict.certificates}
        assert other.missing(found)


def test_what_only_a_tree_of_boxes_proves(tmp_path: Path) -> None:
    model, prop = question(0.02)
    verdict = ib.verify(model, prop, certificates=tmp_path)
    (one,) = verdict.certificates
    assert one.kind == BOXES and len(one.payload) > 2
    checker, answers = checked(tmp_path)
    assert answers == {0: None}
    assert checker.check(replace(one, kind=NONE, payload=b""), "box", "real", (np.nan, np.nan)) is not None


def test_what_only_a_tree_of_signs_proves(tmp_path: Path) -> None:
    model, prop = question(0.02, 22)
    verdict = ib.verify(model, prop, certificates=tmp_path)
    (one,) = verdict.certificates
    assert one.kind == TREE
    checker, answers = checked(tmp_path)
    assert answers == {0: None}
    assert checker.check(replace(one, kind=NONE, payload=b""), "box", "real", (np.nan, np.nan)) is not None


def test_the_network_as_executed(tmp_path: Path) -> None:
    model, prop = question(0.1)
    written = PropertyCertificates(model, prop, (2,), tmp_path, "float32").write(20)
    assert not written.open and len(written.certificates) == 1
    checker, answers = checked(tmp_path)
    assert File.read(tmp_path / "certificates.ibc").mode == "float32" and answers == {0: None}
    least = min(checker.property.least(one, "real") for one in written.certificates)  # type: ignore[union-attr]
    assert least > written.certificates[0].margin
    with pytest.raises(InputError, match="not in float32"):
        PropertyCertificates(copy.deepcopy(model).double(), prop, (2,), tmp_path / "other", "float32")


def test_nothing_is_written_of_what_is_not_proved(tmp_path: Path) -> None:
    model, prop = question(-0.1)
    assert not ib.verify(model, prop, certificates=tmp_path / "a")
    written = PropertyCertificates(model, prop, (2,), tmp_path / "a").write(1.0)
    assert written.open == (0,) and not written.certificates and written.bytes == 0
    always = Property(2, 1, (replace(prop.cases[0], clauses=(Clause(()),)),))
    assert PropertyCertificates(model, always, (2,), tmp_path / "a").write(1.0).open == (0,)
    assert not (tmp_path / "a").exists()


def test_without_time_the_verdict_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prop = question(0.02)
    write = PropertyCertificates.write
    monkeypatch.setattr(PropertyCertificates, "write", lambda self, seconds: write(self, 0.0))
    verdict = ib.verify(model, prop, certificates=tmp_path / "a")
    assert isinstance(verdict, Proved) and verdict.certificates == () and verdict.arithmetic == "float64"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("wanted", "words"), [("real", "real arithmetic"), ("float32", "as executed in float32")])
def test_with_an_arithmetic_only_its_proofs_count(wanted: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prop = question(0.02)
    verdict = ib.verify(model, prop, arithmetic=wanted)  # type: ignore[arg-type]
    assert isinstance(verdict, Proved) and verdict.arithmetic == words and len(verdict.certificates) == 1
    assert isinstance(ib.verify(*question(-0.1), arithmetic=wanted), Refuted)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exact"):
        ib.verify(model, prop, arithmetic="exact")  # type: ignore[arg-type]
    write = PropertyCertificates.write
    monkeypatch.setattr(PropertyCertificates, "write", lambda self, seconds: write(self, 0.0))
    verdict = ib.verify(model, prop, arithmetic=wanted)  # type: ignore[arg-type]
    assert isinstance(verdict, Unknown) and (verdict.why, verdict.word, verdict.open) == ("rounding", "unknown", 1)
    assert isinstance(ib.verify(model, prop), Proved)


def test_the_command_asks_for_proofs(tmp_path: Path) -> None:
    model, prop = question(0.02)
    network, path = tmp_path / "net.onnx", tmp_path / "prop.vnnlib"
    save_onnx(model, network, torch.zeros(1, 2))
    path.write_text(vnnlib_text(prop))
    for wanted, words in (("real", "real arithmetic"), ("none", "float64")):
        said = CliRunner().invoke(app, ["verify", str(network), str(path), "--json", "--arithmetic", wanted])
        assert said.exit_code == 0 and json.loads(said.stdout)["arithmetic"] == words
    said = CliRunner().invoke(app, ["verify", str(network), str(path), "--arithmetic", "exact"])
    assert said.exit_code == 1 and "exact" in said.stderr


def test_what_cannot_be_written_is_refused_before_the_search(tmp_path: Path) -> None:
    prop = random_property(1, 2, 2)
    smooth = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    with pytest.raises(UnsupportedOperatorError, match="Tanh"):
        ib.verify(smooth, prop, certificates=tmp_path)
    model, prop = question(0.1)
    ib.verify(model, prop, certificates=tmp_path)
    with pytest.raises(CertificateError, match="another query"):
        ib.verify(model, shifted(prop, -0.1), certificates=tmp_path)
    (tmp_path / "certificates.ibc").write_bytes(b"nothing")
    with pytest.raises(CertificateError, match="cannot be read"):
        ib.verify(model, prop, certificates=tmp_path)


def test_the_same_call_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prop = question(0.02)
    first = ib.verify(model, prop, certificates=tmp_path)
    monkeypatch.setattr(properties, "box_tree", lambda *arguments: pytest.fail("searched again"))
    again = ib.verify(model, prop, certificates=tmp_path)
    assert again.certificates == first.certificates and again.arithmetic == "real arithmetic"


def test_a_write_that_is_killed_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(network_file.np, "savez_compressed", killed)
    model, prop = question(0.1)
    with pytest.raises(KeyboardInterrupt):
        ib.verify(model, prop, certificates=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".part"]


def test_verify_and_check_on_the_command_line(tmp_path: Path) -> None:
    model, prop = question(0.02)
    far = Case(prop.cases[0].upper, prop.cases[0].lower, prop.cases[0].clauses)  # an empty box
    prop = replace(prop, cases=(far, *prop.cases))
    save_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 2))
    (tmp_path / "p.vnnlib").write_text(vnnlib_text(prop))
    out, files = tmp_path / "out", [str(tmp_path / "net.onnx"), str(tmp_path / "p.vnnlib")]
    command = [sys.executable, "-m", "ironbound", "verify", *files, "--certificates", str(out), "--json"]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(done.stdout)
    assert found["verdict"] == "unsat" and found["arithmetic"] == "real arithmetic" and found["certificates"] >= 1
    assert "certificates of all clauses are written" in done.stderr
    run = CliRunner().invoke
    result = run(app, ["check", str(out), "--jobs", "1"])
    count = found["certificates"]
    assert result.exit_code == 0 and f"property proved: all {count} clauses" in result.output
    report = json.loads(run(app, ["check", str(out), "--json"]).output)
    assert report["property"]["missing"] == [] and report["norm"] == "box"
    assert run(app, ["check", str(out), "--eps", "0.1"]).exit_code == 1
    checker = SOURCE + "/ironbound/certificate"
    alone = [sys.executable, "-m", "checker", str(out / "certificates.ibc"), "--jobs", "1"]
    alone += ["--network", str(out / "network.npz"), "--data", str(out / "data.npz")]
    assert "property proved" in subprocess.run(alone, cwd=checker, capture_output=True, text=True, check=True).stdout
    file = File.read(out / "certificates.ibc")
    (out / "certificates.ibc").write_bytes(replace(file, certificates=file.certificates[1:]).pack())
    result = run(app, ["check", str(out), "--jobs", "1"])
    assert result.exit_code == 1 and "no accepted certificate (0)" in result.output
    assert run(app, ["verify", "--instances", "x.csv", "--certificates", str(out)]).exit_code == 2


def test_a_verdict_is_printed_though_its_certificates_take_too_long(tmp_path: Path) -> None:
    model, prop = question(0.02)
    save_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 2))
    (tmp_path / "p.vnnlib").write_text(vnnlib_text(prop))
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from ironbound.certificate.properties import PropertyCertificates\n"
        "PropertyCertificates.write = lambda self, seconds: time.sleep(60)\n"
        "from ironbound.cli.app import main\n"
        "main()\n"
    )
    files = [str(tmp_path / "net.onnx"), str(tmp_path / "p.vnnlib")]
    command = [sys.executable, str(tmp_path / "slow.py"), "verify", *files, "--timeout", "12"]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command += ["--certificates", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=True)
    assert done.stdout == "unsat\n" and "written: 0" in done.stderr
    assert not (tmp_path / "out").exists()


INSTANCES = [
    ("acasxu", "ACASXU_run2a_1_5_batch_2000.onnx.gz", "prop_1.vnnlib.gz"),
    ("acasxu", "ACASXU_run2a_1_4_batch_2000.onnx.gz", "prop_3.vnnlib.gz"),
    ("rl_benchmarks", "dubinsrejoin.onnx.gz", "dubinsrejoin_case_unsafe_28.vnnlib.gz"),
    ("mnist_fc", "mnist-net_256x2.onnx.gz", "prop_0_0.03.vnnlib.gz"),
]


@pytest.mark.shared
@pytest.mark.parametrize(("benchmark", "network", "prop"), INSTANCES)
def test_instances_of_the_competition(benchmark: str, network: str, prop: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "vnncomp" / benchmark
    if not (folder / "onnx" / network).exists():
        pytest.skip(f"{network} is not there")
    verdict = ib.verify(folder / "onnx" / network, folder / "vnnlib" / prop, 120, certificates=tmp_path)
    assert isinstance(verdict, Proved) and verdict.arithmetic == "real arithmetic"
    checker, answers = checked(tmp_path)
    assert set(answers.values()) == {None} and checker.missing(answers) == []
