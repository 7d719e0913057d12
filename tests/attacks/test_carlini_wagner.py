"""Carlini and Wagner's attack inside a region, and Foolbox's attacks beside ours."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.attacks import carlini_wagner as package_name
from ironbound.errors import InputError, LabelError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        net[3].weight.mul_(3)
    return net


def images(count: int = 60) -> Tensor:
    return torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox")


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.15])
def test_candidates_lie_in_the_region_and_are_run_again(foolbox, eps: float, clip) -> None:
    net, x = network(), images()
    labels = net(x).argmax(1)
    labels[:3] = (labels[:3] + 1) % 3  # wrong from the start
    region = ib.LinfBall(x, eps, clip)
    found = ib.carlini_wagner(net, region, labels)
    assert bool(region.contains(found.points).all())
    logits = net(found.points).detach()
    own = nn.functional.one_hot(labels, 3).bool()
    rivals = logits.masked_fill(own, -torch.inf).amax(1)
    assert torch.equal(found.success, logits.gather(1, labels[:, None]).squeeze(1) <= rivals)
    assert bool(found.success[:3].all())
    if eps == 0:
        assert not bool(found.success[3:].any())


def test_it_finds_about_what_pgd_finds_and_never_beats_a_bound(foolbox) -> None:
    net, x = network(), images(200)
    labels = net(x).argmax(1)
    region = ib.LinfBall(x, 0.12)
    mine = ib.pgd(net, region, labels, restarts=5, targeted=True).success
    theirs = ib.carlini_wagner(net, region, labels).success
    proved = (ib.margins(net, region, labels, "alpha").scatter(1, labels[:, None], torch.inf) > 0).all(1)
    assert not bool((theirs & proved).any())
    assert int(mine.sum()) > 20 and int((theirs & mine).sum()) >= 0.9 * int(mine.sum())


def test_boxes_and_batches(foolbox, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), images(30)
    labels = net(x).argmax(1)
    box = ib.Box(x - 0.2, x + 0.1)
    whole = ib.carlini_wagner(net, box, labels)
    assert bool(box.contains(whole.points).all()) and 0 < int(whole.success.sum()) < 30
    monkeypatch.setattr(sys.modules["ironbound.attacks.carlini_wagner"], "_BATCH", 7)
    cut = ib.carlini_wagner(net, box, labels)
    assert int((whole.success != cut.success).sum()) <= 1


def test_mode_and_gradients_stay(foolbox) -> None:
    net, x = network().train(), images(4)
    ib.carlini_wagner(net, ib.LinfBall(x, 0.1), torch.zeros(4, dtype=torch.long), steps=2)
    assert net.training and all(parameter.grad is None for parameter in net.parameters())


def test_fgsm_is_that_of_the_library(foolbox) -> None:
    net, x = network(), images()
    labels = net(x).argmax(1)
    ours = ib.fgsm(net, ib.LinfBall(x, 0.05, (0.0, 1.0)), labels)
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, (theirs,), (success,) = foolbox.attacks.LinfFastGradientAttack()(wrapped, x, labels, epsilons=[0.05])
    assert torch.allclose(ours.points, theirs, atol=1e-6)
    assert torch.equal(ours.success, success)


def test_what_does_not_fit_is_refused(foolbox) -> None:
    net, x = network(), images(4)
    labels = torch.zeros(4, dtype=torch.long)
    with pytest.raises(InputError, match="l-infinity ball or a box"):
        ib.carlini_wagner(net, ib.L2Ball(x, 0.1), labels)
    for options in ({"steps": 0}, {"constant": 0.0}, {"constant": float("nan")}):
        with pytest.raises(InputError, match="must be"):
            ib.carlini_wagner(net, ib.LinfBall(x, 0.1), labels, **options)
    with pytest.raises(LabelError):
        ib.carlini_wagner(net, ib.LinfBall(x, 0.1), labels[:3])


def test_without_the_library_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"install ironbound\[attacks\]"):
        package_name(network(), ib.LinfBall(images(1), 0.1), torch.zeros(1, dtype=torch.long))
