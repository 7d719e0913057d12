"""From modules to files that the checker reads: the network is the same, certified examples get their certificates."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import ironbound as ib
from cases import CASES
from ironbound.certificate.checker import Arithmetic, Certificate, Checker, File, arrays_of
from ironbound.certificate.checker import CertificateError as Refusal
from ironbound.certificate.checker.claims import NONE, PREDICTION, SLOPES, TREE
from ironbound.certificate.checker.files import network
from ironbound.certificate.network_file import network_arrays, save_network
from ironbound.certificate.payloads import payload
from ironbound.certificate.writing import write_certificates
from ironbound.cli.check import check
from ironbound.errors import CertificateError, InputError, UnsupportedOperatorError

READ = ("mlp", "convolutional", "residual", "average-pooling", "batch-norm")
_FLAT = (nn.ReLU(), nn.Flatten())
_UNIT = ib.models.Normalize((0.2, 0.4), (0.5, 0.3))
MORE = {
    "grouped": ((nn.Conv2d(2, 4, (3, 2), (1, 2), (2, 0), (2, 1), 2), *_FLAT, nn.Linear(72, 3)), (2, 6, 6)),
    "line": ((nn.Conv1d(2, 3, 3, 2, 1), nn.AvgPool1d(2, 1, 1, False, False), *_FLAT, nn.Linear(15, 3)), (2, 7)),
    "volume": ((nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 3)), (1, 3, 3, 3)),
    "ceiling": ((nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(9, 3)), (1, 4, 4)),
    "mirror": ((nn.Conv2d(2, 2, 2, padding_mode="reflect", padding=1), *_FLAT, nn.Linear(32, 3)), (2, 3, 3)),
    "normalized": ((_UNIT, nn.Conv2d(2, 2, 2), *_FLAT, nn.Linear(8, 3)), (2, 3, 3)),
    "padded": ((nn.ConstantPad2d(1, 0.5), nn.Conv2d(1, 2, 3), *_FLAT, nn.Linear(18, 3)), (1, 3, 3)),
}  # fmt: skip


def _model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    case = next((case for case in CASES if case.name == name), None)
    if case is not None:
        return case.model(), case.shape
    return nn.Sequential(*MORE[name][0]).eval(), MORE[name][1]


@pytest.mark.parametrize("name", [*READ, *MORE])
def test_the_file_is_the_network(name: str, tmp_path: Path) -> None:
    model, shape = _model(name)
    x = torch.randn(5, *shape)
    written = save_network(model, tmp_path / "net.npz", x)
    arrays = arrays_of(tmp_path / "net.npz")
    assert set(written) == set(arrays)
    nodes = network(arrays, Arithmetic())
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double()).numpy()
    for one, want in zip(x, truth, strict=True):
        values = [one.double().reshape(-1).numpy()]
        for node in nodes[1:]:
            parts = [values[i] for i in node.inputs]
            values.append(np.maximum(parts[0], 0) if node.kind == "relu" else node.run(parts) + node.bias)
        assert np.abs(values[-1] - want).max() < 1e-6 * (1 + np.abs(want).max())


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in READ], ids=lambda case: case.name)
def test_other_layers_are_refused_by_name(case) -> None:
    with pytest.raises(UnsupportedOperatorError, match="checker has no rule"):
        network_arrays(case.model(), case.inputs())


def test_a_module_needs_an_example_and_finite_weights() -> None:
    model = nn.Linear(2, 2).eval()
    with pytest.raises(InputError, match="example"):
        network_arrays(model)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        network_arrays(model, torch.zeros(1, 2))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network that tells three clusters apart."""
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    y = torch.arange(30) % 3
    x = centers[y] + 0.1 * torch.randn(30, 3)
    model = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), x, y


@pytest.mark.parametrize("mode", ["real", "float32"])
@pytest.mark.parametrize("detection", [False, True])
def test_certified_examples_get_certificates_that_check(trained, mode: str, detection: bool, tmp_path: Path) -> None:
    model, x, y = trained
    found = ib.certify(model, x, None if detection else y, eps=0.1)
    written = write_certificates(found, model, x, tmp_path, mode=mode)
    certified = np.flatnonzero(found.status == "certified")
    assert len(certified) > 20 and not written.open
    assert [one.index for one in written.certificates] == certified.tolist()
    assert written.bytes <= 102 + 28 * len(certified) == written.bytes
    for one in written.certificates:
        least = np.delete(found.margins[one.index].numpy(), one.label).min()
        assert one.margin >= least - 1e-3 and one.kind == NONE
        assert (one.subject == PREDICTION) == detection
    file = File.read(tmp_path / "certificates.ibc")
    checker = Checker(arrays_of(tmp_path / "network.npz"), arrays_of(tmp_path / "data.npz"))
    assert set(checker.check_file(file).values()) == {None}


def test_slopes_and_trees_prove_what_defaults_do_not(trained, tmp_path: Path) -> None:
    model, x, y = trained
    kinds = set()
    x, y = x[:12], y[:12]
    for eps in (0.3, 0.38):
        found = ib.certify(model, x, y, eps=eps, methods=("dual", "split"), attack=None)
        written = write_certificates(found, model, x, tmp_path / str(eps))
        kinds |= {one.kind for one in written.certificates}
        assert not written.open
        file = File.read(tmp_path / str(eps) / "certificates.ibc")
        checker = Checker(arrays_of(tmp_path / str(eps) / "network.npz"), arrays_of(tmp_path / str(eps) / "data.npz"))
        assert set(checker.check_file(file).values()) == {None}
    assert {NONE, TREE} <= kinds


def test_slopes_raise_margins(trained) -> None:
    model, x, y = trained
    checker = Checker(network_arrays(model, x[:2]), {"x": x.numpy(), "labels": y.numpy()})
    query = ("linf", "real", (float("nan"), float("nan")))
    gains = []
    for index in range(6):
        for eps in np.linspace(0.15, 0.45, 16):  # the first radius at which some margin is not proved
            bare = replace(_bare(index, int(y[index])), eps=float(eps))
            plain = checker.margins(bare, *query)
            targets = np.flatnonzero(plain < 0)
            if len(targets):
                break
        one = replace(bare, kind=SLOPES)
        found = payload(checker, one, query, targets, 1.0)
        if found is not None:
            better = checker.margins(replace(one, payload=found), *query)
            assert (better[targets] > 0).all()
            gains.append((better - plain)[targets].max())
    assert max(gains) > 1e-3


def _bare(index: int, label: int) -> Certificate:
    return Certificate(index, label, 0, NONE, 0.3, 0.0)


def test_radii_of_their_own(trained, tmp_path: Path) -> None:
    model, x, y = trained
    eps = torch.linspace(0.01, 0.1, len(x))
    found = ib.certify(model, x, y, eps=eps)
    with pytest.raises(InputError, match="one per example"):
        write_certificates(found, model, x, tmp_path)
    written = write_certificates(found, model, x, tmp_path, eps=eps)
    assert [one.eps for one in written.certificates] == eps[[one.index for one in written.certificates]].tolist()
    with pytest.raises(InputError, match="do not fit"):
        write_certificates(found, model, x[:4], tmp_path, eps=0.1)
    with pytest.raises(InputError, match="mode"):
        write_certificates(found, model, x, tmp_path, eps=0.1, mode="tf32")


def test_the_command(trained, tmp_path: Path) -> None:
    model, x, y = trained
    written = write_certificates(ib.certify(model, x, y, eps=0.1), model, x, tmp_path)
    app = typer.Typer()
    app.command()(check)
    run = CliRunner().invoke
    done = run(app, [str(tmp_path)])
    assert done.exit_code == 0 and f"{len(written.certificates)} certificates proved, 0 refused" in done.output
    report = json.loads(run(app, [str(tmp_path / "certificates.ibc"), "--json"]).output)
    assert report["proved"] == len(written.certificates) and report["arithmetic"] == "real" and report["eps"] == [0.1]
    refused = run(app, [str(tmp_path), "--eps", "0.2"])
    assert refused.exit_code == 1 and "its radius is below 0.2" in refused.output
    (tmp_path / "certificates.ibc").write_bytes(b"IRONCERT")
    broken = run(app, [str(tmp_path)])
    assert broken.exit_code == 1 and "cut short" in broken.output


def test_certify_writes_certificates_and_goes_on(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = trained
    folder = tmp_path / "claims"
    found = ib.certify(model, x, y, eps=0.1, certificates=folder)
    certified = np.flatnonzero(found.status == "certified").tolist()
    assert list(found.certificates) == certified
    assert all(found.certificates[index].label == y[index] for index in certified)
    file = File.read(folder / "certificates.ibc")
    assert {one.index: one for one in file.certificates} == found.certificates
    # what is there is kept; the rest is made
    (folder / "certificates.ibc").write_bytes(replace(file, certificates=file.certificates[:-2]).pack())
    asked, margins = [], Checker.margins

    def watched(self, one, *rest):
        asked.append(one.index)
        return margins(self, one, *rest)

    monkeypatch.setattr(Checker, "margins", watched)
    again = write_certificates(found, model, x, folder)
    assert set(asked) == {one.index for one in file.certificates[-2:]}
    assert list(again.certificates) == file.certificates
    monkeypatch.undo()
    with pytest.raises(CertificateError, match="another query"):
        write_certificates(found, model, x, folder, mode="float32")
    (folder / "certificates.ibc").write_bytes(b"nothing")
    with pytest.raises(CertificateError, match="cannot be read"):
        write_certificates(found, model, x, folder)
    with pytest.raises(InputError, match="one radius"):
        ib.certify(model, x, y, eps=torch.full_like(x, 0.1), certificates=folder)


def test_certify_and_check_on_the_command_line(trained, tmp_path: Path) -> None:
    from ironbound.cli.app import app

    model, x, y = trained
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    torch.save(model.state_dict(), tmp_path / "net.pt")
    layers = "nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)"
    (tmp_path / "net.py").write_text(f"from torch import nn\ndef net():\n    return nn.Sequential({layers})\n")
    run = CliRunner().invoke
    arguments = ["certify", "--factory", f"{tmp_path / 'net.py'}:net", "--weights", str(tmp_path / "net.pt")]
    arguments += ["--data", str(tmp_path / "data.npz"), "--eps", "0.1"]
    arguments += ["--store", str(tmp_path / "store"), "--certificates", str(tmp_path / "out")]
    first = run(app, arguments)
    assert first.exit_code == 0, first.output
    assert "certified examples are in" in first.output
    written = (tmp_path / "out" / "certificates.ibc").read_bytes()
    assert run(app, arguments).exit_code == 0 and (tmp_path / "out" / "certificates.ibc").read_bytes() == written
    report = json.loads(run(app, ["check", str(tmp_path / "out"), "--jobs", "1", "--eps", "0.1", "--json"]).output)
    assert report["proved"] == len(File.unpack(written).certificates) > 20 and not report["refused"]


def test_several_processes_give_the_same_answers(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ironbound.certificate.checker import parallel

    model, x, y = trained
    write_certificates(ib.certify(model, x, y, eps=0.1), model, x, tmp_path)
    file = File.read(tmp_path / "certificates.ibc")
    lies = [replace(one, margin=one.margin + one.index % 3) for one in file.certificates]
    checker = Checker(arrays_of(tmp_path / "network.npz"), arrays_of(tmp_path / "data.npz"))
    monkeypatch.setattr(parallel, "CHUNK", 8)
    alone, together = (parallel.check_file(checker, replace(file, certificates=lies), jobs) for jobs in (1, 2))
    assert alone == together and list(alone) == list(together)
    assert 0 < sum(answer is None for answer in together.values()) < len(lies)
    other = Checker({**arrays_of(tmp_path / "network.npz"), "more": np.zeros(1)}, checker.data)
    with pytest.raises(Refusal, match="another network"):
        parallel.check_file(other, file, 2)


@pytest.mark.shared
def test_the_released_network(shared: Path) -> None:
    root = shared / "data" / "mnist"
    data = ib.data.load("mnist", split="test", root=root)
    small = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    weights = shared / "models" / "wong_kolter_mnist_small.pth"
    small.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    small.eval().requires_grad_(False)
    x, y = data.inputs[:24], data.labels[:24]
    checker = Checker(network_arrays(small, x[:2]), {"x": x.numpy(), "labels": y.numpy()})
    margins = ib.margins(small.double(), ib.LinfBall(x.double(), 0.1), y, method="dual").numpy()
    for index in range(len(x)):
        one = Certificate(index, int(y[index]), 0, NONE, 0.1, 0.0)
        proved = checker.margins(one, "linf", "real", (float("nan"), float("nan")))
        assert (proved >= margins[index] - 1e-8).all()
