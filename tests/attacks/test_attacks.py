"""Laws of the attacks: candidates are inside and judged at exactly the returned point; the caller's state stays."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from ironbound.attacks import Attack, fgsm, pgd
from ironbound.attacks import logits as attack_logits
from ironbound.errors import InputError, LabelError
from ironbound.regions import REGIONS, Box, Region, ball

NORMS = sorted(REGIONS)
EPS = {"linf": 0.15, "l2": 0.6, "l1": 1.5}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():  # every class is the answer for some input
        model[3].bias -= model(torch.rand(1000, 1, 3, 4)).mean(0)
    return model


def problem(
    norm: str = "linf", clip: tuple[float, float] | None = None, count: int = 40
) -> tuple[nn.Module, Region, Tensor]:
    """A network, its own answers as labels, and regions that break some of them."""
    model = network()
    x = torch.rand(count, 1, 3, 4)
    labels = model(x).argmax(1)
    return model, ball(norm, x, EPS[norm], clip), labels


def margin(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """A second way to the margins: sorting."""
    rows = []
    for logits, label in zip(model(points).detach(), labels.tolist(), strict=True):
        rest = sorted(value for k, value in enumerate(logits.tolist()) if k != label)
        rows.append(logits[label].item() - rest[-1])
    return torch.tensor(rows)


ATTACKS = {
    "fgsm": fgsm,
    "pgd": lambda *a: pgd(*a, steps=8),
    "restarts": lambda *a: pgd(*a, steps=4, restarts=3),
    "targeted": lambda *a: pgd(*a, steps=8, targeted=True, restarts=2),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("norm", "clip"), [(n, c) for n in NORMS for c in (None, (0.0, 1.0))])
def test_candidates_are_inside_and_judged_at_the_returned_point(
    name: str, norm: str, clip: tuple[float, float] | None
) -> None:
    model, region, labels = problem(norm, clip)
    for part in (region, ball(norm, region.center, torch.linspace(0, EPS[norm], 40), clip)):
        found: Attack = ATTACKS[name](model, part, labels)
        assert part.contains(found.points).all()
        torch.testing.assert_close(found.margins, margin(model, found.points, labels), atol=1e-6, rtol=0)
        assert torch.equal(found.success, found.margins <= 0)
        assert len(found) == 40
    assert 0 < found.success.sum() < 40  # both outcomes were seen


@pytest.mark.parametrize("name", ATTACKS)
def test_boxes_and_radii_per_element(name: str) -> None:
    model, region, labels = problem()
    radius = torch.rand_like(region.center).round() * 0.2
    for part in (Box(region.center - radius, region.center + 2 * radius), ball("l2", region.center, radius)):
        assert part.contains(ATTACKS[name](model, part, labels).points).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_attacked_optimally(norm: str) -> None:
    """There the worst margin is known: margin - eps * the dual norm of the difference of two rows."""
    torch.manual_seed(0)
    model = nn.Linear(12, 4).eval()
    x = torch.rand(30, 12)
    labels = model(x).argmax(1)
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    logits = model(x).detach()
    worst = torch.full((30,), math.inf)
    for row, k in itertools.product(range(30), range(4)):
        if k != labels[row]:
            reach = EPS[norm] / 10 * (model.weight[labels[row]] - model.weight[k]).detach().norm(p=dual)
            worst[row] = torch.minimum(worst[row], logits[row, labels[row]] - logits[row, k] - reach)
    found = pgd(model, ball(norm, x, EPS[norm] / 10), labels, steps=60, targeted=True)
    assert (found.margins >= worst - 1e-5).all()
    solid = worst > 0  # the others stop at the first error
    assert solid.sum() > 10
    torch.testing.assert_close(found.margins[solid], worst[solid], atol=2e-3, rtol=0)
    assert torch.equal(found.success, worst <= 0)


def test_fgsm_is_one_step_along_the_sign_of_the_gradient_of_cross_entropy() -> None:
    model, region, labels = problem()
    x = region.center.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
    torch.testing.assert_close(fgsm(model, region, labels).points, region.center + 0.15 * x.grad.sign())


def test_pgd_is_the_papers_where_nothing_breaks() -> None:
    """Against the loop written down again, for a region so small that every run goes to its end."""
    model, region, labels = problem(count=150)
    region = region[model(region.center).topk(2).values.diff().abs().squeeze(1) > 0.05]
    labels, eps = model(region.center).argmax(1), 0.01
    assert len(region) > 20  # enough to mean something
    region = ball("linf", region.center, eps)
    points, best = region.center.clone(), margin(model, region.center, labels)
    for _ in range(5):
        x = points.clone().requires_grad_()
        nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
        points = (points + eps / 2 * x.grad.sign()).clamp(region.center - eps, region.center + eps)
        best = torch.minimum(best, margin(model, points, labels))
    torch.testing.assert_close(pgd(model, region, labels, steps=5).margins, best, atol=1e-6, rtol=0)


def test_the_loss_is_cross_entropy_up_to_a_monotone_function() -> None:
    logits, labels = torch.randn(9, 5), torch.arange(9) % 5
    value = attack_logits.untargeted(labels, None)(logits)
    torch.testing.assert_close(value.exp().add(1).log(), nn.functional.cross_entropy(logits, labels, reduction="none"))


def test_a_certain_network_still_gives_a_direction() -> None:
    model, region, labels = problem()
    with torch.no_grad():
        for tensor in (model[3].weight, model[3].bias):
            tensor *= 1e4  # cross-entropy is 0 in float32, and so is its gradient
    assert pgd(model, region, labels).success.sum() > 5


def test_more_effort_never_finds_less() -> None:
    model, region, labels = problem()
    plain = pgd(model, region, labels, steps=10)
    more = pgd(model, region, labels, steps=10, restarts=4)
    assert (more.margins <= plain.margins.clamp(min=0) + 1e-6).all()
    assert (plain.margins <= margin(model, region.center, labels) + 1e-6).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_only_the_wanted_classes_are_aimed_at(targeted: bool) -> None:
    model, region, labels = problem(count=60)
    runs: list[int] = []
    targets = torch.zeros(60, 4, dtype=torch.bool)
    targets[::2, 1] = True
    found = pgd(
        model, region, labels, targets=targets, targeted=targeted, progress=lambda done, total: runs.append(total)
    )
    aimed = targets[:, 1] & (labels != 1)
    assert runs[-1] == aimed.sum()
    assert torch.equal(found.points[~aimed], region.center[~aimed])
    assert (found.points[aimed] != region.center[aimed]).flatten(1).any(1).all()
    answers = model(found.points[aimed & found.success]).argmax(1)
    assert (answers == 1).float().mean() > 0.6  # an error towards another class on the way counts too


def test_targeted_tries_every_other_class_once() -> None:
    model, region, labels = problem()
    seen: list[tuple[int, int]] = []
    pgd(model, region, labels, steps=1, targeted=True, restarts=2, progress=lambda *state: seen.append(state))
    assert seen[-1][1] == 40 * 3 * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])  # random starts are drawn chunk by chunk
def test_chunks_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, region, labels = problem()
    whole = ATTACKS[name](model, region, labels)
    monkeypatch.setattr(attack_logits, "CHUNK_ROWS", 7)
    parts = ATTACKS[name](model, region, labels)
    torch.testing.assert_close(parts.margins, whole.margins, atol=1e-5, rtol=0)
    assert torch.equal(parts.success, whole.success)


def test_several_runs_of_one_example_in_a_chunk_keep_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    model, region, labels = problem()
    one_chunk = pgd(model, region, labels, steps=10, targeted=True)
    monkeypatch.setattr(attack_logits, "CHUNK_ROWS", 5)
    chunks = pgd(model, region, labels, steps=10, targeted=True)
    solid = ~one_chunk.success
    torch.testing.assert_close(chunks.margins[solid], one_chunk.margins[solid], atol=1e-5, rtol=0)
    assert torch.equal(chunks.success, one_chunk.success)


def test_misclassified_examples_are_returned_as_they_are() -> None:
    model, region, labels = problem()
    wrong = (labels + 1) % 4
    found = pgd(model, region, wrong)
    assert found.success.all() and torch.equal(found.points, region.center)


def test_ties_are_errors() -> None:
    class Tie(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.sum(1, keepdim=True)] * 3, 1)

    found = pgd(Tie().eval(), ball("linf", torch.rand(5, 2), 0.1), torch.zeros(5, dtype=torch.long))
    assert found.success.all() and (found.margins == 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_callers_state_does_not_change(name: str) -> None:
    model, region, labels = problem()
    model.append(nn.Dropout(0.0))
    model[1].train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [part.training for part in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    center, state = region.center.clone(), torch.get_rng_state()
    ATTACKS[name](model, region, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert all((parameter.grad == 1).all() and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(have, want) for have, want in zip(model.parameters(), weights, strict=True))
    assert torch.equal(region.center, center) and not region.center.requires_grad and torch.is_grad_enabled()


def test_a_seed_decides_the_result() -> None:
    model, region, labels = problem()
    first, again, other = (pgd(model, region, labels, steps=3, restarts=3, seed=seed).points for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_works_without_gradients_and_in_float64() -> None:
    model, region, labels = problem()
    with torch.no_grad():
        assert pgd(model, region, labels).success.any()
    found = pgd(model.double(), region.to(torch.float64), labels.int())
    assert found.points.dtype == found.margins.dtype == torch.float64


class Poisoned(nn.Module):
    """NaN where the first element has grown: at no center, but inside the region."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        logits = torch.cat([1 - 0.1 * first, first, 0 * first], 1)
        return torch.where(first > 0.55, math.nan, logits)


@pytest.mark.parametrize("name", ATTACKS)
def test_nan_is_neither_success_nor_safety(name: str) -> None:
    region, labels = ball("linf", torch.full((3, 4), 0.5), 0.1), torch.zeros(3, dtype=torch.long)
    with pytest.raises(InputError, match="NaN"):
        ATTACKS[name](Poisoned(), region, labels)
    broken = nn.Linear(4, 3)
    nn.init.constant_(broken.weight, math.nan)
    with pytest.raises(InputError, match="NaN"):
        ATTACKS[name](broken, region, labels)
    nn.init.constant_(broken.weight, math.inf)
    with pytest.raises(InputError, match="infinite|NaN"):
        ATTACKS[name](broken, region, labels)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(40),
        torch.zeros(40, dtype=torch.bool),
        torch.zeros(39, dtype=torch.long),
        torch.full((40,), 4),
        torch.full((40,), -1),
    ],
)
def test_labels_that_do_not_fit_are_refused(name: str, labels: Tensor) -> None:
    model, region, _ = problem()
    with pytest.raises(LabelError):
        ATTACKS[name](model, region, labels)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"restarts": 0},
        {"step_size": 0.0},
        {"step_size": math.nan},
        {"step_size": -1.0},
        {"targets": torch.ones(40, 4)},
        {"targets": torch.ones(40, 3, dtype=torch.bool)},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings: dict) -> None:
    with pytest.raises(InputError):
        pgd(*problem(), **settings)


@pytest.mark.parametrize("name", ATTACKS)
def test_networks_that_no_gradient_attacks_are_refused(name: str) -> None:
    model, region, labels = problem()
    with pytest.raises(InputError, match="cuts its output"):
        ATTACKS[name](lambda x: model(x.detach()).detach(), region, labels)
    with pytest.raises(InputError, match="2 or more classes"):
        ATTACKS[name](lambda x: model(x)[:, :1], region, labels)
    with pytest.raises(InputError, match="2 or more classes"):
        ATTACKS[name](lambda x: x, region, labels)
    with pytest.raises(InputError, match="no example"):
        ATTACKS[name](model, region[:0], labels[:0])
