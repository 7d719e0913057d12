"""Batch norm with the statistics of the clean pass: the folded network's bounds, gradients, averages, the cache."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ironbound.bounding import bounds, margins
from ironbound.capture import export
from ironbound.errors import InputError, TrainingModeError
from ironbound.regions import LinfBall
from ironbound.training import losses
from ironbound.training.batch_norm import batch_norm_layers, batch_statistics
from ironbound.training.losses import LOSSES, STEPWISE
from training.losses_cases import EPS, SHAPE, examples, slope_along

BOUNDED = ("robust", "interval", "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp")


def normalised(seed: int = 0, momentum: float | None = 0.1) -> nn.Sequential:
    """Batch norm after a convolution and after a linear layer, with running statistics far from those of the data."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1),
        nn.BatchNorm2d(3, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).double()
    for layer in (model[1], model[5]):
        nn.init.uniform_(layer.weight, -1.5, 1.5)
        nn.init.normal_(layer.bias)
        layer.running_mean.normal_()
        layer.running_var.uniform_(2, 3)
    return model.train()


def folded(model: nn.Sequential, x: Tensor) -> nn.Sequential:
    """The network with batch norm merged into the layers before it, by the statistics of a clean pass."""
    model = copy.deepcopy(model).eval()
    value = model[0](x)
    for index in (1, 5):
        axes = [0, 2, 3] if value.dim() == 4 else [0]
        model[index].running_mean = value.mean(axes).detach()
        model[index].running_var = value.var(axes, correction=0).detach()
        value = model[index](value)
        value = model[2:5](value) if index == 1 else value
    return nn.Sequential(
        fuse_conv_bn_eval(model[0], model[1]),
        *model[2:4],
        fuse_linear_bn_eval(model[4], model[5]),
        *model[6:],
    ).eval()


@pytest.mark.parametrize("method", ["interval", "dual", "crown-ibp"])
def test_bounds_inside_are_those_of_the_folded_network(method: str) -> None:
    model, (x, labels) = normalised(), examples()
    plain, region = folded(model, x), LinfBall(x, EPS)
    with batch_statistics(model, x):
        assert not any(part.training for part in model.modules())
        torch.testing.assert_close(margins(model, region, labels, method), margins(plain, region, labels, method))
        torch.testing.assert_close(bounds(model, region, method).upper, bounds(plain, region, method).upper)
        torch.testing.assert_close(model(x), plain(x))
        # one example alone gives the same: nothing mixes
        torch.testing.assert_close(model(x[:1]), plain(x[:1]))
        alone = margins(model, LinfBall(x[:1], EPS), labels[:1], method)
        torch.testing.assert_close(alone, margins(plain, LinfBall(x[:1], EPS), labels[:1], method))
    assert all(part.training for part in model.modules())


def test_logits_inside_are_those_of_a_pass_in_training_mode() -> None:
    model, (x, _) = normalised(), examples()
    twin = copy.deepcopy(model)
    with batch_statistics(model, x):
        torch.testing.assert_close(model(x), twin(x))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_averages_move_once_as_in_training(momentum: float | None) -> None:
    model, (x, labels) = normalised(momentum=momentum), examples()
    twin, buffers = copy.deepcopy(model), dict(model.named_buffers())
    for _ in range(3):
        twin(x)
        with batch_statistics(model, x):
            margins(model, LinfBall(x, EPS), labels, "interval")
            losses.mtl_ibp(model, LinfBall(x, EPS), labels)
        for (name, have), want in zip(model.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(have, want)
            assert have is buffers[name] and not have.requires_grad
        with torch.no_grad():
            for one, other in zip(model.parameters(), twin.parameters(), strict=True):
                one.add_(0.01)
                other.add_(0.01)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(STEPWISE)))
def test_gradients_flow_through_the_statistics(name: str) -> None:
    model, (x, labels) = normalised(), examples()
    slope, difference = slope_along(model, lambda: LOSSES[name](model, LinfBall(x, 0.02), labels).value)
    assert abs(difference.item()) > 1e-3
    torch.testing.assert_close(slope, difference, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_loss_enters_by_itself_in_training_mode_only(name: str) -> None:
    model, (x, labels) = normalised(), examples()
    region, plain = LinfBall(x, EPS), folded(model, x)
    count = model[1].num_batches_tracked.clone()
    inside = LOSSES[name](model, region, labels).value
    torch.testing.assert_close(inside, LOSSES[name](plain, region, labels).value)
    assert model[1].num_batches_tracked == count + 1
    with batch_statistics(model, x):
        torch.testing.assert_close(LOSSES[name](model, region, labels).value, inside)
        torch.testing.assert_close(losses.shi(model, region, labels), losses.shi(plain, region, labels))
    assert model[1].num_batches_tracked == count + 2
    model.eval()
    frozen = LOSSES[name](model, region, labels).value  # running statistics, which do not move
    assert model[1].num_batches_tracked == count + 2 and not torch.allclose(frozen, inside)


def test_optimizer_steps_work_and_follow_the_changing_statistics() -> None:
    model, (x, labels) = normalised(), examples()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    region, values = LinfBall(x, 0.02), []
    for _ in range(25):
        with batch_statistics(model, x):
            loss = losses.interval(model, region, labels).value + 0.1 * losses.shi_tightness(model, region, labels)
        plain = folded(model, x)
        want = losses.interval(plain, region, labels).value + 0.1 * losses.shi_tightness(plain, region, labels)
        torch.testing.assert_close(loss, want)  # never those of an earlier step
        optimizer.zero_grad()
        loss.backward()  # outside the context
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_the_network_is_traced_once_and_never_served_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, labels) = normalised(), examples()
    traces, trace = [], export._captured
    monkeypatch.setattr(export, "_captured", lambda *inputs: traces.append(1) or trace(*inputs))
    for step in range(4):
        shifted = x + 0.05 * step
        region = LinfBall(shifted, EPS)
        with batch_statistics(model, shifted):
            inside = margins(model, region, labels, "interval")
        torch.testing.assert_close(inside, margins(folded(model, shifted), region, labels, "interval"))
        model.eval()
        outside = margins(model, region, labels, "interval")  # the running averages
        fresh = copy.deepcopy(model)
        torch.testing.assert_close(outside, margins(fresh, region, labels, "interval"))
        model.train()
    assert len(traces) == 1 + 2 * 4  # the network once; folded and copied ones each time


class Rescaled(nn.Module):
    """Reads a running variance to compute a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        assert self.norm.running_var is not None
        return self.head(torch.relu(self.norm(x.flatten(1))) / (1 + self.norm.running_var.sqrt()))


class Unused(nn.Module):
    """Runs a batch norm whose result nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        self.norm(x.flatten(1))
        return self.head(x.flatten(1))


class Own(nn.BatchNorm1d):
    """Batch norm that does something else."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Run the layer."""
        return 2 * super().forward(input)


@pytest.mark.parametrize(("network", "word"), [(Rescaled, "constant"), (Unused, "output")])
def test_statistics_that_the_graph_does_not_show_are_refused(network: type[nn.Module], word: str) -> None:
    model, (x, _) = network().double(), examples()
    with pytest.raises(InputError, match=word), batch_statistics(model, x):
        pass
    assert model.training and "forward" not in vars(model.norm)


@pytest.mark.parametrize("affine", [True, False])
def test_layers_without_scale_and_shift(affine: bool) -> None:
    torch.manual_seed(0)
    x, labels = examples()
    norm = nn.BatchNorm1d(16, affine=affine)
    model = nn.Sequential(nn.Flatten(), norm, nn.ReLU(), nn.Linear(16, 3)).double()
    twin = copy.deepcopy(model)
    with batch_statistics(model, x):
        torch.testing.assert_close(model(x), twin(x))
        torch.testing.assert_close(
            margins(model, LinfBall(x, 0.0), labels), model(x).gather(1, labels.unsqueeze(1)) - model(x)
        )


def test_errors_inside_put_everything_back() -> None:
    model, (x, _) = normalised(), examples()
    buffers = dict(model.named_buffers())
    with pytest.raises(RuntimeError, match="stop"), batch_statistics(model, x):
        raise RuntimeError("stop")
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    assert all(part.training for part in model.modules())
    assert "forward" not in vars(model[1])
    with pytest.raises(InputError, match="already"), batch_statistics(model, x), batch_statistics(model, x):
        pass


def test_without_batch_norm_only_the_mode_changes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double().train()
    with batch_statistics(model, examples()[0]):
        assert not model.training
    assert model.training


class Twice(nn.Module):
    """One batch norm in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        return self.norm(torch.relu(self.norm(x.flatten(1))))


def test_layers_that_cannot_be_handled_are_refused() -> None:
    x, labels = examples()
    with pytest.raises(InputError, match="more than once"), batch_statistics(Twice().double(), x):
        pass
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16, track_running_stats=False), nn.Linear(16, 3)).double()
    with pytest.raises(InputError, match="track_running_stats"):
        batch_norm_layers(flat)
    with pytest.raises(InputError, match="of its own"):
        batch_norm_layers(Own(3))
    with pytest.raises(InputError, match="across processes"):
        batch_norm_layers(nn.SyncBatchNorm(3))
    flat[1] = nn.BatchNorm1d(16).double()
    with pytest.raises(InputError, match="one value"), batch_statistics(flat, x[:1]):
        pass
    assert flat.training and set(batch_norm_layers(flat)) == {"1"}
    with pytest.raises(TrainingModeError):  # bounds themselves never guess
        margins(flat, LinfBall(x, EPS), labels)
    assert tuple(x.shape[1:]) == SHAPE
